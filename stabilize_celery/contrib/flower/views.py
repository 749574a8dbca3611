"""The pages, in Flower's layout: their frame, who may see them and act, our templates beside Flower's.

What pages show they fetch as data.
"""

from __future__ import annotations

import posixpath
from base64 import b64decode
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import tornado.web
from flower.views import BaseHandler
from tornado.options import define, options
from tornado.template import BaseLoader, Template

from stabilize_celery.contrib.flower import HERE
from stabilize_celery.models.json import STATUSES

#: Nothing of other sites; Bootstrap and Cytoscape set styles of elements.
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
#: The name of a user who gave none.
UNNAMED = "flower"


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

    @property
    def has_authentication(self) -> bool:
        """Whether this Flower asks who its visitors are."""
        return bool(self.application.options.basic_auth or self.application.options.auth)

    def why_not_act(self) -> str:
        """Why this Flower does nothing to workflows; empty if it does."""
        chosen = self.application.options
        if chosen.read_only or chosen.stabilize_read_only:
            return "Read only mode is enabled"
        if not self.has_authentication and not self.unauthenticated_api:
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
            return b64decode(credentials).decode().partition(":")[0] or UNNAMED
        return UNNAMED


class PageHandler(GuardedHandler):
    """Renders one template."""

    template = ""

    @tornado.web.authenticated
    async def get(self, workflow_id: str = "") -> None:
        """The page, with what its scripts need to know in attributes of its main part."""
        self.render(
            self.template,
            data_url=self.reverse_url("workflows") + "/data",
            pages_url=self.reverse_url("workflows"),
            asset=lambda name: self.reverse_url("workflows_static", name) + "?v=" + _VERSION,
            why_not_act=self.why_not_act(),
            statuses=STATUSES,
            workflow_id=workflow_id,
        )


class WorkflowsView(PageHandler):
    """The list."""

    template = "stabilize_workflows.html"


class WaitingView(PageHandler):
    """What waits for a slot, and what was given up."""

    template = "stabilize_waiting.html"


class WorkflowView(PageHandler):
    """One workflow."""

    template = "stabilize_workflow.html"


class StaticFiles(tornado.web.StaticFileHandler):
    """Scripts and styles; the same for every visitor."""

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")


def _version() -> str:
    """Changes with every file, so that no browser keeps an old one."""
    digest = sha256()
    for path in sorted(Path(HERE / "static").rglob("*")):
        if path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


_VERSION = _version()

_TAB = """
        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'workflows' %} active{% end %}"
            href="{{ reverse_url('workflows') }}"
            {% if active_tab == 'workflows' %}aria-current="page"{% end %}>Workflows</a>
        </li>
"""


class FlowerLoader(BaseLoader):
    """Loads a template from the first folder that has it.

    Args:
        folders: ours first, then Flower's.
    """

    def __init__(self, folders: Sequence[Path], **options: Any) -> None:
        super().__init__(**options)
        self._folders = [folder.resolve() for folder in folders]

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        if parent_path and not name.startswith("/"):
            return posixpath.normpath(posixpath.join(posixpath.dirname(parent_path), name))
        return name

    def _create_template(self, name: str) -> Template:
        for folder in self._folders:
            path = folder / name
            if path.is_file():
                text = path.read_text(encoding="utf-8")
                return Template(with_tab(text) if name == "navbar.html" else text, name=name, loader=self)
        raise FileNotFoundError(f"there is no template {name} in {', '.join(map(str, self._folders))}")


def with_tab(navigation: str) -> str:
    """Flower's navigation with our tab at the end of its first list.

    A navigation without a list, of some later Flower, stays as it is: the page is still there under its address.
    """
    before, end, after = navigation.partition("</ul>")
    return before + _TAB + "      " + end + after if end else navigation
