"""The pages: their frame, in Flower's layout.  What they show they fetch as data."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

import tornado.web

from stabilize_celery.contrib.flower import HERE
from stabilize_celery.contrib.flower.access import GuardedHandler
from stabilize_celery.models.status import WorkflowStatus


class PageHandler(GuardedHandler):
    """Renders one template."""

    def show(self, template: str, **values: Any) -> None:
        """The page, with what its scripts need to know in attributes of its main part."""
        self.render(
            template,
            data_url=self.reverse_url("workflows") + "/data",
            pages_url=self.reverse_url("workflows"),
            asset=lambda name: self.reverse_url("workflows_static", name) + "?v=" + _VERSION,
            why_not_act=self.why_not_act(),
            statuses=[status.name for status in WorkflowStatus],
            **values,
        )


class WorkflowsView(PageHandler):
    """The list."""

    @tornado.web.authenticated
    async def get(self) -> None:
        """The page."""
        self.show("stabilize_workflows.html")


class WaitingView(PageHandler):
    """What waits for a slot, and what was given up."""

    @tornado.web.authenticated
    async def get(self) -> None:
        """The page."""
        self.show("stabilize_waiting.html")


class WorkflowView(PageHandler):
    """One workflow."""

    @tornado.web.authenticated
    async def get(self, workflow_id: str) -> None:
        """The page."""
        self.show("stabilize_workflow.html", workflow_id=workflow_id)


class StaticFiles(tornado.web.StaticFileHandler):
    """Scripts and styles; the same for everybody, with nothing of anybody in them."""

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
