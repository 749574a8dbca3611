"""Models to rows and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from stabilize_celery.messages import (
    Message,
    RunHook,
    RunTask,
    StageLevel,
    TaskLevel,
    WorkflowLevel,
    decode,
    payload_of,
)
from stabilize_celery.models.ids import new_id
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import ParentTask, PausedDetails, Trigger, Workflow
from stabilize_celery.persistence import tables
from stabilize_celery.settings import Settings

_DEFAULT_TASK = TaskExecution(id="")
_TASK_FIELDS = tuple(f.name for f in fields(TaskExecution))
_TASK_TIMES = ("start_time", "end_time", "paused_at", "waits_until")
_TASK_STATUSES = ("status", "failed_as")

#: Columns of a stage that hold the attribute of the same name.
STAGE_COLUMNS = tuple(
    column.name for column in tables.stages.c if column.name not in ("workflow_id", "position", "topo")
)
WORKFLOW_COLUMNS = tuple(
    column.name
    for column in tables.workflows.c
    if column.name not in ("trigger", "paused", "parent", "parent_workflow_id", "holds_slot", "created_at")
)


#: Columns of a workflow whose value is made from the attribute.
_CONVERTED = ("trigger", "paused", "parent", "parent_workflow_id")


def task_to_json(task: TaskExecution) -> dict[str, Any]:
    """A task as it is kept inside its stage's row: only what differs from a fresh task."""
    data: dict[str, Any] = {}
    for name in _TASK_FIELDS:
        value = getattr(task, name)
        if value == getattr(_DEFAULT_TASK, name):
            continue
        if isinstance(value, datetime):
            value = value.isoformat()
        elif isinstance(value, WorkflowStatus):
            value = value.name
        data[name] = value
    return data


def task_from_json(data: Mapping[str, Any]) -> TaskExecution:
    """The inverse; keys of a newer version are ignored."""
    values = {key: value for key, value in data.items() if key in _TASK_FIELDS}
    for name in _TASK_TIMES:
        if values.get(name) is not None:
            values[name] = datetime.fromisoformat(values[name])
    for name in _TASK_STATUSES:
        if values.get(name) is not None:
            values[name] = WorkflowStatus[values[name]]
    return TaskExecution(**values)


def stage_column(stage: StageExecution, name: str) -> Any:
    """The value of one column of a stage."""
    if name == "tasks":
        return [task_to_json(task) for task in stage.tasks]
    return getattr(stage, name)


def stage_row(stage: StageExecution, workflow_id: str, position: int) -> dict[str, Any]:
    """A whole row for a new stage."""
    row = {name: getattr(stage, name) for name in STAGE_COLUMNS}
    row["tasks"] = [task_to_json(task) for task in stage.tasks]
    row["workflow_id"] = workflow_id
    row["position"] = position
    row["topo"] = stage.rank[-2] if len(stage.rank) > 1 else 0
    return row


def stage_from_row(row: Mapping[str, Any]) -> StageExecution:
    """A stage without its requisites, which are edges, and without its workflow."""
    values = {name: row[name] for name in STAGE_COLUMNS if name in row}
    values["tasks"] = [task_from_json(task) for task in row["tasks"]] if "tasks" in row else []
    return StageExecution(**values)


def workflow_column(workflow: Workflow, name: str) -> Any:
    """The value of one column of a workflow."""
    if name == "trigger":
        return workflow.trigger.to_dict()
    if name == "paused":
        return None if workflow.paused is None else _paused_to_json(workflow.paused)
    if name == "parent":
        return None if workflow.parent is None else asdict(workflow.parent)
    if name == "parent_workflow_id":
        return None if workflow.parent is None else workflow.parent.workflow_id
    return getattr(workflow, name)


def workflow_row(workflow: Workflow, created_at: datetime) -> dict[str, Any]:
    """A whole row for a new workflow."""
    row = {name: workflow_column(workflow, name) for name in (*WORKFLOW_COLUMNS, *_CONVERTED)}
    row["created_at"] = workflow.created_at = created_at
    row["holds_slot"] = False
    return row


def workflow_from_row(row: Mapping[str, Any]) -> Workflow:
    """A workflow without its stages; columns that were not loaded keep their defaults."""
    values = {name: row[name] for name in (*WORKFLOW_COLUMNS, "created_at") if name in row}
    if "trigger" in row:
        values["trigger"] = Trigger.from_dict(row["trigger"])
    if row.get("paused") is not None:
        values["paused"] = _paused_from_json(row["paused"])
    if row.get("parent") is not None:
        values["parent"] = ParentTask(**row["parent"])
    return Workflow(**values)


def _paused_to_json(paused: PausedDetails) -> dict[str, Any]:
    return {k: v.isoformat() if isinstance(v, datetime) else v for k, v in asdict(paused).items()}


def _paused_from_json(data: Mapping[str, Any]) -> PausedDetails:
    values = dict(data)
    for name in ("pause_time", "resume_time"):
        if values.get(name) is not None:
            values[name] = datetime.fromisoformat(values[name])
    return PausedDetails(**values)


#: Before the name of the queue where the work of a handed-over message waits: its ``lease_owner`` until it is started.
WAITS_IN = "queue="

#: In a row's last error while no worker knows its task: ``since`` when, how many ``times``, and what was there ``before``.
UNKNOWN = "unknown_type"


@dataclass(frozen=True)
class Outgoing:
    """What is published of a message: its row's id, and names for people."""

    id: str
    type: str
    queue: str
    workflow_id: str | None
    label: str
    attempts: int = 0


def new_row(
    message: Message, settings: Settings, now: datetime, *, label: str = "", delay: float = 0.0
) -> dict[str, Any]:
    """A row for a message.

    One that is due now is published by the process that wrote it, right after the commit; the relay looks at it only
    when that has not led to anything for a while.
    """
    due = now + timedelta(seconds=delay)
    at_once = delay <= 0
    queue = settings.queue
    if isinstance(message, RunTask | RunHook):
        queue = settings.queue_for(message.task_type)
    return {
        "id": new_id(),
        "type": message.type,
        "version": message.version,
        "workflow_id": message.workflow_id if isinstance(message, WorkflowLevel) else None,
        "stage_id": message.stage_id if isinstance(message, StageLevel) else None,
        "task_id": message.task_id if isinstance(message, TaskLevel) else None,
        "generation": message.generation if isinstance(message, StageLevel) else 0,
        "payload": payload_of(message),
        "exclusive": message.exclusive,
        "queue": queue,
        "label": label,
        "created_at": now,
        "due_at": due,
        "send_at": due + timedelta(seconds=settings.resend_delay) if at_once else due,
        "sends": 1 if at_once else 0,
        "lease_owner": None,
        "claims": 0,
        "attempts": 0,
        "last_error": None,
        "cancel": None,
    }


def message_of(row: Mapping[str, Any]) -> Message:
    """The message a row holds.

    Raises:
        UnknownMessageError, InvalidMessageError: this release cannot read it.
    """
    envelope = {name: row[name] for name in ("workflow_id", "stage_id", "task_id", "generation")}
    return decode(row["type"], envelope, row["payload"], row["version"])


def outgoing(row: Mapping[str, Any]) -> Outgoing:
    """What is published of a row."""
    return Outgoing(
        row["id"], row["type"], row["queue"], row["workflow_id"], row["label"], row.get("attempts", 0)
    )


def last_failure(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The error of the last attempt, and not that a worker did not know the task."""
    error: dict[str, Any] | None = row["last_error"]
    return error[UNKNOWN]["before"] if error and UNKNOWN in error else error


def waits_in(row: Mapping[str, Any]) -> str | None:
    """The queue where the work of a handed-over message waits; ``None`` if it is not handed over, or was started."""
    owner = row["lease_owner"]
    return owner.removeprefix(WAITS_IN) if owner is not None and owner.startswith(WAITS_IN) else None
