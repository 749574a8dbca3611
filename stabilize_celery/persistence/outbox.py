"""Rows of the messages table: the outbox, the guard against duplicates, the timer, the retry counter and the lease."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from stabilize_celery.settings import Settings

#: Before the name of the queue where the work of a handed-over message waits: its ``lease_owner`` until it is begun.
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
    """The queue where the work of a handed-over message waits; ``None`` if it is not handed over, or begun."""
    owner = row["lease_owner"]
    return owner.removeprefix(WAITS_IN) if owner is not None and owner.startswith(WAITS_IN) else None
