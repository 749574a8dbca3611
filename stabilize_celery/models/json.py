"""The JSON form of workflows, stages, tasks and history: one for Flower, the HTTP API and ``--json``.

Each class declares the keys of one form and where their values come from; the schemas of the HTTP API are generated from
the same classes.  Keys are added, never renamed: programs read them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from enum import Enum
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    AliasPath,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from stabilize_celery.errors import described_text
from stabilize_celery.models.stage import Phase, StageExecution, SyntheticStageOwner
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import Workflow

T = TypeVar("T")
ID_PATTERN = "^[0-9A-Z]{26}$"
STATUSES = [status.name for status in WorkflowStatus]


def to_json(
    form: Any, source: Any, now: datetime | None = None, hide: Callable[[Any], Any] = lambda value: value
) -> Any:
    """The JSON form of a workflow, a stage, a row, or of a mapping of these.

    Args:
        form: a class of this module, or one made of them.
        source: what has the values: an object with attributes, or a mapping.
        now: the clock of the database, for times that go on.
        hide: hides secrets in contexts, outputs and texts.
    """
    adapter = _adapter(form)
    made = adapter.validate_python(source, from_attributes=True, context={"now": now, "hide": hide})
    return adapter.dump_python(made, by_alias=True)


@cache
def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(form)


def _time_text(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _name(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else value


def _hidden(value: Any, info: ValidationInfo) -> Any:
    return info.context["hide"](value) if info.context else value


Id = Annotated[str, WithJsonSchema({"type": "string", "pattern": ID_PATTERN})]
#: ISO 8601 with its timezone.
Time = Annotated[str, BeforeValidator(_time_text), WithJsonSchema({"type": "string", "format": "date-time"})]
Status = Annotated[str, BeforeValidator(_name), WithJsonSchema({"type": "string", "enum": STATUSES})]
#: A value that may hold secrets.
Hidden = Annotated[T, AfterValidator(_hidden)]
Object = dict[str, Any]


class Derived:
    """An object with further attributes, for a form that needs more than the object has."""

    def __init__(self, source: Any, **more: Any) -> None:
        already = vars(source) if isinstance(source, Derived) else {"_source": source}
        self.__dict__.update(already | more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)


class Form(BaseModel):
    """A JSON object."""

    model_config = ConfigDict(from_attributes=True, use_enum_values=True, defer_build=True)


class Timed(Form):
    """Something that takes time; ``elapsed_seconds`` of what goes on are those until now."""

    start_time: Time | None
    end_time: Time | None
    elapsed_seconds: float | None

    @model_validator(mode="before")
    @classmethod
    def _measure(cls, source: Any, info: ValidationInfo) -> Any:
        start, end = source.start_time, source.end_time or (info.context or {}).get("now")
        known = start is not None and end is not None
        seconds = round(max(0.0, (end - start).total_seconds()), 6) if known else None
        return Derived(source, elapsed_seconds=seconds)


class WorkflowHead(Timed):
    """A workflow as a line of a list."""

    id: Id
    application: str
    name: str
    status: Status
    complete: bool = Field(validation_alias=AliasPath("status", "is_complete"))
    created_at: Time | None
    now: Time | None
    pipeline_config_id: str | None
    dedup_key: str | None
    canceled_by: Hidden[str | None]
    cancellation_reason: Hidden[str | None]
    is_canceled: bool
    paused_by: str | None
    started_by: Hidden[str | None] = Field(validation_alias=AliasPath("trigger", "user"))
    parent_workflow_id: str | None

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, workflow: Workflow, info: ValidationInfo) -> Any:
        paused, parent = workflow.paused, workflow.parent
        return Derived(
            workflow,
            now=(info.context or {}).get("now"),
            paused_by=paused.paused_by if paused is not None and paused.is_paused else None,
            parent_workflow_id=None if parent is None else parent.workflow_id,
        )


def _trigger_object(trigger: Any) -> Any:
    return trigger.to_dict()


class WorkflowData(WorkflowHead):
    """A workflow with what it was started with."""

    context: Hidden[Object]
    trigger: Annotated[Hidden[Object], BeforeValidator(_trigger_object)]


class TaskData(Timed):
    """A task of a stage; ``last_error`` is the stored form of the error."""

    id: Id
    name: str
    type: str = Field(validation_alias="implementing_class")
    status: Status
    attempts: int
    last_error: Hidden[Object | None]


class StageHead(Timed):
    """A stage without its data; ``attempts`` are those of the task that took the most."""

    id: Id
    ref_id: str
    name: str
    type: str
    status: Status
    complete: bool = Field(validation_alias=AliasPath("status", "is_complete"))
    parent_id: str | None = Field(validation_alias="parent_stage_id")
    phase: Phase | None
    generation: int
    attempts: int
    error: Hidden[str | None]

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, stage: StageExecution) -> Any:
        most = max((task.attempts for task in stage.tasks), default=0)
        return Derived(stage, attempts=most, phase=phase_of(stage), error=error_of(stage) or None)


class StageData(StageHead):
    """A stage with its outputs and tasks."""

    requires: Annotated[list[str], BeforeValidator(sorted)] = Field(
        validation_alias="requisite_stage_ref_ids"
    )
    outputs: Hidden[Object]
    tasks: list[TaskData]


class WorkflowWithStages(WorkflowData):
    """A workflow with its stages and tasks."""

    stages: list[StageData]


class Transition(Form):
    """One line of the history."""

    id: Id
    at: Time
    event: str
    stage_id: str | None
    task_id: str | None
    generation: int
    from_: Status | None = Field(validation_alias="from_status", serialization_alias="from")
    to: Status | None = Field(validation_alias="to_status")
    reason: Hidden[str | None]
    actor: Hidden[str | None]
    worker: str | None
    details: Hidden[Object | None]


def named_history(entries: Iterable[Mapping[str, Any]], workflow: Workflow) -> list[dict[str, Any]]:
    """The history in its JSON form, with the stages and tasks it is about by name (``stage``, ``task``)."""
    stages: dict[str, StageExecution] = {stage.id: stage for stage in workflow.stages}
    tasks: dict[str, TaskExecution] = {task.id: task for stage in workflow.stages for task in stage.tasks}
    found = []
    for entry in entries:
        stage, task = stages.get(entry["stage_id"]), tasks.get(entry["task_id"])
        names = {"stage": stage and stage.called, "task": task and task.name}
        found.append({**to_json(Transition, entry), **names})
    return found


def phase_of(stage: StageExecution) -> Phase | None:
    """When a synthetic stage runs, also where only its owner says so."""
    if not stage.is_synthetic or stage.phase is not None:
        return stage.phase
    before = stage.synthetic_stage_owner is SyntheticStageOwner.STAGE_BEFORE
    return Phase.BEFORE if before else Phase.AFTER


def error_of(stage: StageExecution) -> str:
    """The error of a stage that failed, or of the last attempt of one that is being retried; else empty."""
    failed, own = stage.status.is_failure, stage.own_context
    if failed and (text := described_text(own.get("exception")) or str(own.get("error") or "")):
        return text
    for task in stage.tasks:
        at_work = not stage.status.is_complete and not task.status.is_complete
        if task.last_error and (failed or at_work):
            return described_text(task.last_error)
    return ""
