"""Dead letters: reading them, and putting their messages back."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, select

from stabilize_celery.jsonable import is_storable
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import dead_letters, history, messages

#: Of the stored row, what names the message; the rest begins anew.
_KEPT = (
    "id",
    "type",
    "version",
    "workflow_id",
    "stage_id",
    "task_id",
    "generation",
    "payload",
    "exclusive",
    "queue",
    "label",
)


def find_letters(
    store: WorkflowStore,
    *,
    workflow_id: str | None = None,
    type: str | None = None,
    before: str | None = None,
    limit: int = 100,
) -> list[dict[str, Any]]:
    """Dead letters that match, the latest first; ``before`` is the id of the last one of the page before."""
    if not all(text is None or is_storable(text) for text in (workflow_id, type, before)):
        return []
    statement = select(dead_letters).order_by(dead_letters.c.died_at.desc(), dead_letters.c.id.desc())
    for column, value in ((dead_letters.c.workflow_id, workflow_id), (dead_letters.c.type, type)):
        if value is not None:
            statement = statement.where(column == value)
    if before is not None:
        died = select(dead_letters.c.died_at).where(dead_letters.c.id == before).scalar_subquery()
        statement = statement.where(
            (dead_letters.c.died_at < died)
            | ((dead_letters.c.died_at == died) & (dead_letters.c.id < before))
        )
    with store.database.autocommit() as connection:
        return [dict(row) for row in connection.execute(statement.limit(limit)).mappings()]


def read_letter(connection: Connection, letter_id: str) -> dict[str, Any] | None:
    """A dead letter, locked."""
    row = (
        connection.execute(select(dead_letters).where(dead_letters.c.id == letter_id).with_for_update())
        .mappings()
        .one_or_none()
    )
    return None if row is None else dict(row)


def delete_letter(connection: Connection, letter_id: str) -> bool:
    """Delete a dead letter; returns whether it was there."""
    return connection.execute(delete(dead_letters).where(dead_letters.c.id == letter_id)).rowcount > 0


def put_back(connection: Connection, letter: dict[str, Any], now: datetime, **changes: Any) -> dict[str, Any]:
    """Put a letter's message back, due now, as if it had never been tried; returns its row."""
    fresh = {
        "created_at": now,
        "due_at": now,
        "send_at": now,
        "sends": 0,
        "lease_owner": None,
        "claims": 0,
        "attempts": 0,
        "last_error": None,
        "cancel": None,
    }
    row = {**{name: letter["row"][name] for name in _KEPT}, **fresh, **changes}
    connection.execute(insert(messages), row)
    return row


def read_ended_by(connection: Connection, workflow_id: str, reason: str) -> tuple[bool, set[str]]:
    """What a reason beginning so has ended.

    Returns:
        Whether the workflow's last end was for it, and the ids of the stages that were canceled for it.
    """
    chosen = (history.c.workflow_id == workflow_id) & history.c.reason.startswith(reason, autoescape=True)
    canceled = select(history.c.stage_id).where(
        chosen, history.c.event == "stage", history.c.to_status == WorkflowStatus.CANCELED
    )
    ends = (
        select(history.c.reason)
        .where(history.c.workflow_id == workflow_id, history.c.event == "workflow")
        .order_by(history.c.at.desc(), history.c.step.desc())
        .limit(1)
    )
    last = connection.execute(ends).scalar_one_or_none() or ""
    return last.startswith(reason), set(connection.execute(canceled).scalars())
