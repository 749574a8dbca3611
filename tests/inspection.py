"""Looking at a whole database at once: what is left in it, who holds slots; and making it empty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select

from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import dead_letters, messages, metadata, slots, workflows


@dataclass(frozen=True)
class SlotUse:
    """How the slots of one configuration are used."""

    config_id: str
    taken: int
    #: ``None`` without a limit.
    limit: int | None


def slot_uses(store: WorkflowStore) -> list[SlotUse]:
    """Every configuration with a limit that is known so far."""
    held = (
        select(func.count())
        .where(workflows.c.pipeline_config_id == slots.c.pipeline_config_id, workflows.c.holds_slot)
        .scalar_subquery()
    )
    with store.database.autocommit() as connection:
        found = connection.execute(select(slots.c.pipeline_config_id, held, slots.c.max_concurrent)).all()
    return [SlotUse(*row) for row in found]


def running_without_slot(store: WorkflowStore) -> list[str]:
    """Names of the executions that run, have a limit, and hold no slot."""
    found = select(workflows.c.name).where(
        workflows.c.status == WorkflowStatus.RUNNING,
        workflows.c.is_limit_concurrent,
        ~workflows.c.holds_slot,
    )
    with store.database.autocommit() as connection:
        return list(connection.execute(found).scalars())


def all_messages(store: WorkflowStore) -> list[dict[str, Any]]:
    """The rows of all messages that are not finished."""
    with store.database.autocommit() as connection:
        return [dict(row._mapping) for row in connection.execute(select(messages).order_by(messages.c.id))]


def all_dead_letters(store: WorkflowStore) -> list[dict[str, Any]]:
    """The rows of all dead letters."""
    with store.database.autocommit() as connection:
        found = connection.execute(select(dead_letters).order_by(dead_letters.c.id))
        return [dict(row._mapping) for row in found]


def empty(store: WorkflowStore) -> None:
    """Delete every row of every table."""
    with store.database.begin() as connection:
        for table in reversed(metadata.sorted_tables):
            connection.execute(delete(table))
