"""What the page and programs read, and the forms of the answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from stabilize_celery.contrib.flower.api import Refused, Request
from stabilize_celery.models.json import (
    Derived,
    Form,
    Hidden,
    Id,
    Object,
    StageHead,
    Status,
    TaskData,
    Time,
    Transition,
    WorkflowData,
    WorkflowHead,
)
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence import reports
from stabilize_celery.persistence.reports import Filter


def _described(error: Any) -> dict[str, Any] | None:
    """A stored error as one object: what it says, its type, its causes, its traceback."""
    details = error.get("details", error) if isinstance(error, Mapping) else None
    if not isinstance(details, Mapping):
        return None
    keys = {"error": "error", "type": "type", "causes": "errors", "traceback": "traceback"}
    return {key: details.get(stored) for key, stored in keys.items()}


StoredError = Annotated[Hidden[Object | None], BeforeValidator(_described)]
StageName = Annotated[str, Field(validation_alias="called")]


class WorkflowPage(Form):
    """Workflows, newest first, and the ``before`` of the next page."""

    workflows: list[WorkflowHead]
    next: str | None


class Counts(Form):
    """How many workflows there are in each status; ``more`` names the statuses with more than that."""

    counts: dict[str, int]
    more: list[Status]
    applications: list[str]


class Configuration(Form):
    """A configuration with a limit: slots taken, executions that wait."""

    pipeline_config_id: str
    max_concurrent: int | None
    keep_waiting: bool
    taken: int
    waiting: int
    oldest_waiting: str | None = Field(validation_alias="oldest")


class Configurations(Form):
    """Configurations with a limit."""

    configurations: list[Configuration]


class DeadLetter(Form):
    """A message that was given up."""

    id: Id
    type: str
    label: Hidden[str]
    workflow_id: str | None
    stage_id: str | None
    attempts: int
    died_at: Time
    error: StoredError


class DeadLetterPage(Form):
    """Dead letters, newest first, and the ``before`` of the next page."""

    dead_letters: list[DeadLetter]
    next: str | None


class Stage(StageHead):
    """A stage as it is drawn."""

    name: StageName
    error: Annotated[Hidden[str | None], AfterValidator(lambda text: text and text[:300])]


class Jump(Form):
    """A jump, from and to which ref_id."""

    from_: str | None = Field(None, validation_alias="from_stage", serialization_alias="from")
    to: str | None = Field(None, validation_alias="to_stage")
    at: str | None = Field(None, validation_alias="time")


class Graph(Form):
    """A workflow with its stages and edges; ``mark`` is the ``since`` of the next question."""

    mark: str
    changed: Literal[True]
    workflow: WorkflowData
    stages: list[Stage]
    edges: list[tuple[Id, Id]]
    synthetic_ids: list[Id]
    jumps: list[Jump]


class Unchanged(Form):
    """The answer where nothing has changed since the mark."""

    mark: str
    changed: Literal[False]


class Origin(Form):
    """Where a value comes from: the stage's own context, its parent's, an output, or outputs that were combined."""

    kind: Literal["own", "parent", "output", "combined"]
    stage_id: Id
    stage: str | None


class Task(TaskData):
    """A task of a stage."""

    last_error: StoredError


class StageError(Form):
    """An error of a stage (``where`` is ``stage``) or of the task of that name."""

    where: str
    error: Hidden[Any]
    type: Any
    causes: Hidden[Any]
    traceback: Hidden[Any]


class WaitingMessage(Form):
    """A message about a stage that waits, or is being handled."""

    type: str
    due_at: Time
    attempts: int
    lease_owner: str | None
    queue: str
    last_error: StoredError


class Signal(Form):
    """A signal that is kept for a stage."""

    name: str
    data: Hidden[Any]
    user: str | None
    at: Time


class StageDetail(Stage):
    """A stage with its context, what it sees and from whom, outputs, errors, and what it waits for."""

    own_context: Hidden[Object]
    sees: Hidden[Object]
    origins: dict[str, Origin]
    problem: Hidden[str | None]
    outputs: Hidden[Object]
    tasks: list[Task]
    errors: list[StageError]
    waits_for: list[WaitingMessage]
    signals: list[Signal]


class HistoryPage(Form):
    """Transitions, in order, and the ``after`` of the next page."""

    history: list[Transition]
    next: str | None


class Accepted(Form):
    """The answer to a control: its handler will carry it out."""

    accepted: str
    workflow_id: Id


class LetterAccepted(Form):
    """The answer to an action on a dead letter."""

    accepted: str
    letter_id: Id
    done: str | None


def _page(key: str, found: list[Any], limit: int) -> dict[str, Any]:
    """A page of at most ``limit`` entries, of which one more was looked for."""
    last = found[limit - 1] if len(found) > limit else None
    return {key: found[:limit], "next": last and (last["id"] if isinstance(last, Mapping) else last.id)}


def _filter(query: Mapping[str, Any]) -> Filter:
    status = query["status"] and WorkflowStatus[query["status"]]
    return Filter(query["application"], query["name"], status, query["search"])


def read_workflows(request: Request) -> Any:
    """A page of workflows."""
    query = request.query
    found = reports.page_of_workflows(
        request.engine.store, _filter(query), query["before"], query["limit"] + 1
    )
    return _page("workflows", found, query["limit"])


def read_counts(request: Request) -> Any:
    """The number of workflows per status."""
    store = request.engine.store
    counts = reports.count_by_status(store, _filter(request.query))
    return {
        "counts": {status.name: min(n, reports.MOST_COUNTED) for status, n in counts.items()},
        "more": [status for status, n in counts.items() if n > reports.MOST_COUNTED],
        "applications": reports.known_applications(store),
    }


def read_waiting(request: Request) -> Any:
    """Configurations with a limit."""
    found = reports.waiting_configurations(request.engine.store, request.query["limit"])
    return {"configurations": found}


def read_dead_letters(request: Request) -> Any:
    """A page of dead letters."""
    before, limit = request.query["before"], request.query["limit"]
    return _page("dead_letters", request.engine.dead_letters(before=before, limit=limit + 1), limit)


def read_graph(request: Request) -> Any:
    """A workflow with its stages, or what has changed in it."""
    store, since = request.engine.store, request.query["since"]
    workflow_id = request.ids["workflow_id"]
    if since is None:
        found: reports.Graph | None = reports.graph_of(store, workflow_id)
    else:
        try:
            found = reports.changes_since(store, workflow_id, since)
        except ValueError:
            raise Refused(
                HTTPStatus.BAD_REQUEST, f"since must be the mark of an earlier answer, not {since[:50]!r}"
            ) from None
    if found is None:
        return {"mark": since, "changed": False}
    jumps = found.workflow.context.get("_jump_history")
    made = jumps if isinstance(jumps, list) else []
    return Derived(found, changed=True, jumps=[each for each in made if isinstance(each, dict)])


def read_history(request: Request) -> Any:
    """A page of the history."""
    store, query, workflow_id = request.engine.store, request.query, request.ids["workflow_id"]
    reports.check_exists(store, workflow_id)
    found = reports.page_of_history(
        store, workflow_id, stage_id=query["stage"], after=query["after"], limit=query["limit"] + 1
    )
    return _page("history", found, query["limit"])


def read_stage(request: Request) -> Any:
    """One stage with everything about it."""
    found = reports.detail_of_stage(request.engine.store, request.ids["workflow_id"], request.ids["stage_id"])
    names = {stage_id: other.called for stage_id, other in found.others.items()}
    return Derived(
        found.stage,
        sees=found.sees,
        origins={key: Derived(each, stage=names.get(each.stage_id)) for key, each in found.origins.items()},
        problem=found.problem or None,
        errors=list(_errors(found.stage)),
        waits_for=found.messages,
        signals=found.signals,
    )


def _errors(stage: StageExecution) -> Iterable[dict[str, Any]]:
    own = stage.own_context
    stored = _described(own.get("exception"))
    if stage.status.is_failure and stored is None and own.get("error"):
        stored = _described({"error": str(own["error"])})
    if stage.status.is_failure and stored is not None:
        yield {"where": "stage", **stored}
    for task in stage.tasks:
        described = _described(task.last_error)
        if described is not None and described != stored:
            yield {"where": task.name, **described}
