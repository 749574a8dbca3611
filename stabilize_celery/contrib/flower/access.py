"""Who may look, who may act: Flower's own authentication and read-only mode, and no requests from other sites."""

from __future__ import annotations

from base64 import b64decode
from typing import Any

import tornado.web
from flower.views import BaseHandler
from tornado.options import define, options

#: No script, style or frame of anybody else; Bootstrap and Cytoscape set styles of elements.
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
NOBODY = "flower"


def define_options() -> None:
    """Flower options of ours: ``--stabilize_read_only`` and, in a Flower without one, ``--read_only``."""
    for name, what in (
        ("stabilize_read_only", "show workflows, and refuse to do anything to them"),
        ("read_only", "enable read only mode"),
    ):
        if name not in options:
            define(name, type=bool, default=False, help=what)


class GuardedHandler(BaseHandler):
    """What pages and data have in common.  Every method that answers is ``@tornado.web.authenticated``."""

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("Referrer-Policy", "same-origin")
        self.set_header("Cache-Control", "no-store")

    def check_xsrf_cookie(self) -> None:
        """Refuse a request without the token in any case: Flower asks for one only with OAuth.

        Raises:
            HTTPError: 403.
        """
        super().check_xsrf_cookie()
        tornado.web.RequestHandler.check_xsrf_cookie(self)

    def why_not_act(self) -> str:
        """Why this Flower does nothing to workflows; empty if it does."""
        chosen = self.application.options
        if chosen.read_only or chosen.stabilize_read_only:
            return "Read only mode is enabled"
        if not (chosen.basic_auth or chosen.auth) and not self.unauthenticated_api:
            return (
                "This Flower lets everybody in: start it with --basic_auth or --auth to control workflows "
                "(or set FLOWER_UNAUTHENTICATED_API=true where only you can reach it)"
            )
        return ""

    @property
    def actor(self) -> str:
        """On whose behalf: the address of an OAuth user, the name given to basic authentication."""
        user: Any = self.current_user
        if isinstance(user, str | bytes):
            return user.decode() if isinstance(user, bytes) else user
        kind, _, credentials = self.request.headers.get("Authorization", "").partition(" ")
        if self.application.options.basic_auth and kind == "Basic":
            return b64decode(credentials).decode().partition(":")[0] or NOBODY
        return NOBODY
