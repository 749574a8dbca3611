"""What the page and programs read: each answers with JSON from the database, asked for off the event loop."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, NoReturn

import tornado.web
from tornado.ioloop import IOLoop

from stabilize_celery.contrib.flower import shapes
from stabilize_celery.contrib.flower.access import GuardedHandler
from stabilize_celery.delivery.install import engine_of
from stabilize_celery.engine import Stabilize
from stabilize_celery.errors import (
    ConfigurationError,
    DeadLetterError,
    InvalidWorkflowError,
    StabilizeError,
    StageNotFoundError,
    StoreError,
    WorkflowNotFoundError,
    WorkflowStateError,
)
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence import reports
from stabilize_celery.persistence.reports import Filter
from stabilize_celery.redaction import redact

logger = logging.getLogger(__name__)

#: What an error of the engine means to the asker; the first that fits counts.
_MEANINGS: tuple[tuple[type[StabilizeError], HTTPStatus], ...] = (
    (WorkflowNotFoundError, HTTPStatus.NOT_FOUND),
    (StageNotFoundError, HTTPStatus.NOT_FOUND),
    (WorkflowStateError, HTTPStatus.CONFLICT),
    (DeadLetterError, HTTPStatus.CONFLICT),
    (InvalidWorkflowError, HTTPStatus.BAD_REQUEST),
    (StoreError, HTTPStatus.SERVICE_UNAVAILABLE),
    (ConfigurationError, HTTPStatus.SERVICE_UNAVAILABLE),
    (StabilizeError, HTTPStatus.INTERNAL_SERVER_ERROR),
)


class Refused(tornado.web.HTTPError):
    """A request that is answered with an error.

    Args:
        status: of the answer.
        message: for whoever asked.
    """

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(status, "%s", message)
        self.message = message


class DataHandler(GuardedHandler):
    """Answers with JSON, errors too: ``{"error": "..."}``.

    Args:
        for_programs: under ``/api``, which Flower closes unless it has authentication or is told otherwise.
    """

    def initialize(self, for_programs: bool = False) -> None:
        """What the route says."""
        self.for_programs = for_programs

    def prepare(self) -> None:
        """Flower's rule for its own interface.

        Raises:
            HTTPError: 401.
        """
        chosen = self.application.options
        closed = not (chosen.basic_auth or chosen.auth) and not self.unauthenticated_api
        if self.for_programs and closed:
            self.refuse(
                HTTPStatus.UNAUTHORIZED,
                "Flower has no authentication: start it with --basic_auth or --auth, or set "
                "FLOWER_UNAUTHENTICATED_API=true where only you can reach it",
            )

    @property
    def engine(self) -> Stabilize:
        """The engine of the app Flower was started with.

        Raises:
            ConfigurationError: it has none.
        """
        return engine_of(self.capp)

    @tornado.web.authenticated
    async def get(self, *parts: str) -> None:
        """Read."""
        await self.answer(lambda: self.read(*parts))

    def read(self, *parts: Any, **_nothing: Any) -> Any:
        """The JSON to answer with; called in a thread of its own."""
        self.refuse(HTTPStatus.METHOD_NOT_ALLOWED, "this address can only be posted to")

    async def answer(self, work: Callable[[], Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        """Do the work in a thread, and write what comes of it."""
        try:
            found = await IOLoop.current().run_in_executor(None, work)
        except StabilizeError as error:
            meaning = next(status for kind, status in _MEANINGS if isinstance(error, kind))
            self.refuse(meaning, str(error), cause=error)
        self.set_status(status)
        self._write_json(found)

    def refuse(self, status: HTTPStatus, message: str, cause: Exception | None = None) -> NoReturn:
        """Answer with an error.

        Raises:
            HTTPError: always.
        """
        raise Refused(status, message) from cause

    def write_error(self, status_code: int, **known: Any) -> None:
        """Say what is wrong, as JSON."""
        error = known.get("exc_info", (None, None))[1]
        message = error.message if isinstance(error, Refused) else getattr(error, "log_message", None)
        if status_code == HTTPStatus.UNAUTHORIZED and self.application.options.basic_auth:
            self.set_header("WWW-Authenticate", 'Basic realm="flower"')
        self._write_json({"error": message or HTTPStatus(status_code).phrase})
        self.finish()

    def _write_json(self, value: Any) -> None:
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.write(json.dumps(value, separators=(",", ":")))

    # ------------------------------------------------------------------ reading what was asked

    def asked(self, name: str) -> str | None:
        """A parameter of the address; an empty one counts as none."""
        return self.get_query_argument(name, None) or None

    def asked_number(self, name: str, default: int, most: int) -> int:
        """A positive number of the address.

        Raises:
            HTTPError: 400.
        """
        text = self.asked(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit()) or not 1 <= int(text[:9]) <= most or len(text) > 9:
            self.refuse(
                HTTPStatus.BAD_REQUEST, f"{name} must be a number from 1 to {most}, not {text[:50]!r}"
            )
        return int(text)

    def asked_filter(self) -> Filter:
        """Which workflows are wanted.

        Raises:
            HTTPError: 400.
        """
        status = self.asked("status")
        if status is not None and status not in WorkflowStatus.__members__:
            self.refuse(
                HTTPStatus.BAD_REQUEST,
                f"there is no status {status[:50]!r}; there are {', '.join(WorkflowStatus.__members__)}",
            )
        return Filter(
            self.asked("application"),
            self.asked("name"),
            None if status is None else WorkflowStatus[status],
            self.asked("search"),
        )

    def shown(self, value: Any) -> Any:
        """A value without what is secret."""
        return redact(value, self.engine.settings.redact_keys)


class ListHandler(DataHandler):
    """Workflows, newest first, a page at a time."""

    def read(self) -> Any:
        limit = self.asked_number("limit", 50, 500)
        found = reports.page_of_workflows(
            self.engine.store, self.asked_filter(), self.asked("before"), limit + 1
        )
        now = self.engine.store.now()
        shown = [self.shown(shapes.head(workflow, now)) for workflow in found[:limit]]
        return {"workflows": shown, "next": shown[-1]["id"] if len(found) > limit else None}


class CountsHandler(DataHandler):
    """How many workflows there are in each status."""

    def read(self) -> Any:
        counts = reports.count_by_status(self.engine.store, self.asked_filter())
        return {
            "counts": {status.name: min(n, reports.MOST_COUNTED) for status, n in counts.items()},
            "more": [status.name for status, n in counts.items() if n > reports.MOST_COUNTED],
            "applications": reports.known_applications(self.engine.store),
        }


class WorkflowHandler(DataHandler):
    """One workflow with its graph; ``since`` asks for what has changed only."""

    def read(self, workflow_id: str) -> Any:
        store, since = self.engine.store, self.asked("since")
        if since is None:
            found: reports.Graph | None = reports.graph_of(store, workflow_id)
        else:
            try:
                found = reports.changes_since(store, workflow_id, since)
            except ValueError:
                self.refuse(
                    HTTPStatus.BAD_REQUEST, f"since must be the mark of an earlier answer, not {since[:50]!r}"
                )
        if found is None:
            return {"mark": since, "changed": False}
        head = shapes.whole_head(found.workflow, store.now())
        return {
            "mark": found.mark,
            "changed": True,
            "workflow": self.shown(head),
            "stages": [shapes.node(each, self.shown) for each in found.stages],
            "edges": found.edges,
            "synthetic_ids": found.synthetic_ids,
            "jumps": shapes.jumps(found.workflow),
        }


class StageHandler(DataHandler):
    """One stage with its context, what it sees and from whom, outputs, errors."""

    def read(self, workflow_id: str, stage_id: str) -> Any:
        found = reports.detail_of_stage(self.engine.store, workflow_id, stage_id)
        return shapes.stage_detail(found, self.shown)


class HistoryHandler(DataHandler):
    """Every transition, in order, a page at a time."""

    def read(self, workflow_id: str) -> Any:
        store = self.engine.store
        reports.check_exists(store, workflow_id)
        limit = self.asked_number("limit", 500, 5000)
        found = reports.page_of_history(
            store, workflow_id, stage_id=self.asked("stage"), after=self.asked("after"), limit=limit + 1
        )
        shown = [self.shown(shapes.transition(entry)) for entry in found[:limit]]
        return {"history": shown, "next": shown[-1]["id"] if len(found) > limit else None}


class WaitingHandler(DataHandler):
    """Configurations with a limit: how many slots are taken, how many executions wait."""

    def read(self) -> Any:
        found = reports.waiting_configurations(self.engine.store, self.asked_number("limit", 100, 1000))
        return {"configurations": [shapes.configuration(row) for row in found]}


class DeadLettersHandler(DataHandler):
    """Messages that were given up, newest first, a page at a time."""

    def read(self) -> Any:
        limit = self.asked_number("limit", 50, 500)
        found = self.engine.dead_letters(before=self.asked("before"), limit=limit + 1)
        shown = [self.shown(shapes.dead_letter(row)) for row in found[:limit]]
        return {"dead_letters": shown, "next": shown[-1]["id"] if len(found) > limit else None}
