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
from stabilize_celery.run import VERBS, Verb

_SEARCH: Schema = {"type": "string", "description": "part of a name, beginning or end of an id"}
_FILTER = {"application": TEXT, "name": TEXT, "status": STATUS, "search": _SEARCH}


#: What verbs need and take, in a body.
_GIVEN = {"name": TEXT, "data": OBJECT, "reason": TEXT, "force": FLAG, "persistent": FLAG}


def _control(verb: Verb) -> Route:
    needs = (*(("stage_id",) if verb.of_stage else ()), *verb.needs)
    body = {"stage_id": TEXT} if verb.of_stage else {}
    body |= {name: _GIVEN[name] for name in (*verb.needs, *verb.takes)}

    def call(request: Request) -> Any:
        workflow_id, given = request.ids["workflow_id"], dict(request.body)
        stage: tuple[str, ...] = ()
        if verb.of_stage:
            # Stages are named by id here, and by ref_id there.
            stage = (reports.ref_id_of(request.engine.store, workflow_id, given.pop("stage_id")),)
        verb.do(request.engine.get(workflow_id), *stage, user=request.user, **given)
        return {"accepted": verb.name, "workflow_id": workflow_id}

    path, summary = "/{workflow_id}/" + verb.name, verb.help.replace("\n\n", " ")
    return Route("POST", path, summary, Accepted, call, body=body, required=needs)


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
