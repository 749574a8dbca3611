"""The addresses of the page: pages for people, the data they fetch, and the same data for programs under ``/api``."""

from __future__ import annotations

from typing import Any

from tornado.routing import URLSpec
from tornado.web import url

from stabilize_celery.contrib.flower import HERE
from stabilize_celery.contrib.flower.actions import ACTIONS, LETTER_ACTIONS, ActionHandler, LetterHandler
from stabilize_celery.contrib.flower.data import (
    CountsHandler,
    DeadLettersHandler,
    HistoryHandler,
    ListHandler,
    StageHandler,
    WaitingHandler,
    WorkflowHandler,
)
from stabilize_celery.contrib.flower.openapi import DescriptionHandler
from stabilize_celery.contrib.flower.views import StaticFiles, WaitingView, WorkflowsView, WorkflowView

ID = r"([0-9A-Z]{26})"

#: What stands behind ``/api/workflows`` for programs and behind ``/workflows/data`` for the page.
_DATA: tuple[tuple[str, type], ...] = (
    ("", ListHandler),
    ("/counts", CountsHandler),
    ("/waiting", WaitingHandler),
    ("/dead-letters", DeadLettersHandler),
    (f"/dead-letters/{ID}/({'|'.join(LETTER_ACTIONS)})", LetterHandler),
    ("/" + ID, WorkflowHandler),
    (f"/{ID}/history", HistoryHandler),
    (f"/{ID}/stages/{ID}", StageHandler),
    (f"/{ID}/({'|'.join(ACTIONS)})", ActionHandler),
)


def _data_routes(prefix: str, **options: Any) -> list[URLSpec]:
    return [url(prefix + path, handler, options) for path, handler in _DATA]


ROUTES: list[URLSpec] = [
    url(r"/workflows", WorkflowsView, name="workflows"),
    url(r"/workflows/waiting", WaitingView, name="workflows_waiting"),
    url(r"/workflows/static/(.+)", StaticFiles, {"path": str(HERE / "static")}, name="workflows_static"),
    *_data_routes("/workflows/data"),
    url(f"/workflows/{ID}", WorkflowView, name="workflow"),
    url(r"/api/workflows/openapi\.json", DescriptionHandler, {"for_programs": True}),
    *_data_routes("/api/workflows", for_programs=True),
]
