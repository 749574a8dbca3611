"""The addresses: pages for people, the data they fetch, and the same data for programs under ``/api``."""

from __future__ import annotations

from inspect import signature
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
    describe,
    limit,
)
from stabilize_celery.contrib.flower.views import StaticFiles, WaitingView, WorkflowsView, WorkflowView
from stabilize_celery.persistence import reports
from stabilize_celery.run import VERBS

_SEARCH: Schema = {"type": "string", "description": "part of a name, beginning or end of an id"}
#: Parameter of a verb's method -> the schema of its value in a body.
_BODY = {"ref_id": TEXT, "name": TEXT, "data": OBJECT, "persistent": FLAG, "force": FLAG, "reason": TEXT}
_FILTER = {"application": TEXT, "name": TEXT, "status": STATUS, "search": _SEARCH}


def _control(verb: str) -> Route:
    """A verb of the workflow's run; the body has what its method takes, and names the stage by its id."""
    method, summary = VERBS[verb]
    takes = {name: given for name, given in signature(method).parameters.items() if name in _BODY}
    keys = {name: "stage_id" if name == "ref_id" else name for name in takes}

    def call(request: Request) -> Any:
        workflow_id = request.ids["workflow_id"]
        given = {name: request.body[key] for name, key in keys.items() if key in request.body}
        if "ref_id" in given:
            given["ref_id"] = reports.ref_id_of(request.engine.store, workflow_id, given["ref_id"])
        method(request.engine.get(workflow_id), user=request.user, **given)
        return {"accepted": verb, "workflow_id": workflow_id}

    return Route(
        "POST",
        "/{workflow_id}/" + verb,
        summary,
        data.Accepted,
        call,
        body={key: _BODY[name] for name, key in keys.items()},
        required=tuple(keys[name] for name, given in takes.items() if given.default is given.empty),
    )


def _letter(path: str, method: str, summary: str) -> Route:
    def call(request: Request) -> Any:
        letter_id = request.ids["letter_id"]
        done = getattr(request.engine, method)(letter_id, user=request.user)
        return {"accepted": path, "letter_id": letter_id, "done": done}

    return Route("POST", "/dead-letters/{letter_id}/" + path, summary, data.LetterAccepted, call)


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
    *map(_control, VERBS),
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
