"""The addresses: pages for people, the data they fetch, and the same data for programs under ``/api``."""

from __future__ import annotations

from typing import Any

from tornado.routing import URLSpec
from tornado.web import url

from stabilize_celery.contrib.flower import HERE, data
from stabilize_celery.contrib.flower.api import (
    FLAG,
    ID,
    OBJECT,
    STATUS,
    TEXT,
    ApiHandler,
    Request,
    Route,
    Schema,
    limit,
)
from stabilize_celery.contrib.flower.openapi import Accepted, LetterAccepted, describe
from stabilize_celery.contrib.flower.views import StaticFiles, WaitingView, WorkflowsView, WorkflowView
from stabilize_celery.persistence import reports

_SEARCH: Schema = {"type": "string", "description": "part of a name, beginning or end of an id"}
_FILTER = {"application": TEXT, "name": TEXT, "status": STATUS, "search": _SEARCH}


def _control(path: str, method: str, summary: str, *required: str, **optional: Schema) -> Route:
    """A control verb: calls the method of that name of the workflow's run."""
    body = {**dict.fromkeys(required, TEXT), **optional}

    def call(request: Request) -> Any:
        workflow_id, given = request.ids["workflow_id"], dict(request.body)
        # Stages are named by id here, and by ref_id there.
        places = [given.pop(name) for name in required]
        if "stage_id" in required:
            places[0] = reports.ref_id_of(request.engine.store, workflow_id, places[0])
        getattr(request.engine.get(workflow_id), method)(*places, user=request.user, **given)
        return {"accepted": path, "workflow_id": workflow_id}

    return Route("POST", "/{workflow_id}/" + path, summary, Accepted, call, body=body, required=required)


def _letter(path: str, method: str, summary: str) -> Route:
    def call(request: Request) -> Any:
        letter_id = request.ids["letter_id"]
        done = getattr(request.engine, method)(letter_id, user=request.user)
        return {"accepted": path, "letter_id": letter_id, "done": done}

    return Route("POST", "/dead-letters/{letter_id}/" + path, summary, LetterAccepted, call)


API: list[Route] = [
    Route(
        "GET",
        "",
        "Workflows, newest first",
        data.WorkflowPage,
        data.read_workflows,
        query={**_FILTER, "before": ID, "limit": limit(50, 500)},
    ),
    Route("GET", "/counts", "How many there are in each status", data.Counts, data.read_counts, _FILTER),
    Route(
        "GET",
        "/waiting",
        "Configurations with a limit",
        data.Configurations,
        data.read_waiting,
        query={"limit": limit(100, 1000)},
    ),
    Route(
        "GET",
        "/dead-letters",
        "Messages that were given up",
        data.DeadLetterPage,
        data.read_dead_letters,
        query={"before": ID, "limit": limit(50, 500)},
    ),
    _letter(
        "retry",
        "retry_dead_letter",
        "Try a message that was given up again; its workflow is revived if it had failed because of it.",
    ),
    _letter("drop", "drop_dead_letter", "Forget a message that was given up; its workflow stays as it is."),
    Route(
        "GET",
        "/{workflow_id}",
        "One workflow with its stages and edges; `since` takes the `mark` of an earlier answer and asks for what has "
        "changed",
        data.Graph | data.Unchanged,
        data.read_graph,
        query={"since": TEXT},
    ),
    Route(
        "GET",
        "/{workflow_id}/history",
        "Every transition, in order",
        data.HistoryPage,
        data.read_history,
        query={"stage": ID, "after": ID, "limit": limit(500, 5000)},
    ),
    Route(
        "GET",
        "/{workflow_id}/stages/{stage_id}",
        "One stage: its context, what it sees and where that comes from, outputs, errors",
        data.StageDetail,
        data.read_stage,
    ),
    _control("cancel", "cancel", "Cancel everything that has not ended.", reason=TEXT, force=FLAG),
    _control("pause", "pause", "Start nothing more until it is resumed."),
    _control("resume", "resume", "Go on after a pause."),
    _control(
        "restart",
        "restart_stage",
        "Run a stage that has ended again, and everything downstream of it.",
        "stage_id",
    ),
    _control(
        "skip",
        "skip_stage",
        "End a stage as SKIPPED; what comes after it goes on.",
        "stage_id",
        reason=TEXT,
    ),
    _control(
        "cancel-stage",
        "cancel_stage",
        "Cancel one stage; its branch ends with it.",
        "stage_id",
        reason=TEXT,
    ),
    _control(
        "signal",
        "signal",
        "Wake the task of a stage that waits for a signal; kept if it does not wait yet.",
        "stage_id",
        "name",
        data=OBJECT,
    ),
    _control("approve", "approve", "Let an approval stage succeed.", "stage_id", data=OBJECT),
    _control("reject", "reject", "Let an approval stage fail.", "stage_id", data=OBJECT),
]


class DescriptionHandler(ApiHandler):
    """Answers with the OpenAPI description of :data:`API`."""

    async def _answer(self, *_nothing: Any) -> None:
        self.write_json(describe(API, self.reverse_url("workflows").removesuffix("/workflows")))


_DESCRIPTION = Route("GET", "/openapi.json", "This description", dict[str, Any], lambda _request: {})


def _data_routes(prefix: str, **options: Any) -> list[URLSpec]:
    return [url(prefix + route.pattern, ApiHandler, {"route": route, **options}) for route in API]


_FOR_PROGRAMS = {"route": _DESCRIPTION, "for_programs": True}
ROUTES: list[URLSpec] = [
    url(r"/workflows", WorkflowsView, name="workflows"),
    url(r"/workflows/waiting", WaitingView, name="workflows_waiting"),
    url(r"/workflows/static/(.+)", StaticFiles, {"path": str(HERE / "static")}, name="workflows_static"),
    *_data_routes("/workflows/data"),
    url(r"/workflows/([0-9A-Z]{26})", WorkflowView, name="workflow"),
    url(r"/api/workflows/openapi\.json", DescriptionHandler, _FOR_PROGRAMS),
    *_data_routes("/api/workflows", for_programs=True),
]
