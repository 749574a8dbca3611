"""What metrics are made of: bounded reads over indexes, however many workflows there are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, literal_column, select
from ulid import ULID

from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence.rows import WAITS_IN
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import dead_letters, history, messages, stages, workflows

#: What is counted is counted so far and no further: more than that says enough.
MOST = 10_000
#: Messages are looked at from the oldest on, so many of them.
_MESSAGES = 100_000
_PAGE = 5_000
_RANDOM_BITS = 80


@dataclass(frozen=True)
class Happened:
    """A row of the history, with the type of its stage and how long what ended had lasted."""

    id: str
    event: str
    status: WorkflowStatus | None
    #: Type of the stage; empty for a workflow, or where the stage is gone.
    stage_type: str
    application: str
    name: str
    #: Seconds, if it is an end and the beginning is known.
    duration: float | None


def id_before(moment: datetime) -> str:
    """An identifier that sorts before all that are made from that moment on."""
    return str(ULID.from_int(int(moment.timestamp() * 1000) << _RANDOM_BITS))


def happened_since(store: WorkflowStore, after: str) -> Iterator[Happened]:
    """The history behind an identifier, in the order of identifiers."""
    statement = (
        select(
            history.c.id,
            history.c.event,
            history.c.to_status,
            history.c.at,
            history.c.stage_id,
            history.c.task_id,
            stages.c.type.label("stage_type"),
            stages.c.start_time.label("stage_start"),
            workflows.c.application,
            workflows.c.name,
            workflows.c.start_time.label("workflow_start"),
        )
        .join_from(history, workflows, workflows.c.id == history.c.workflow_id)
        .outerjoin(stages, stages.c.id == history.c.stage_id)
        .order_by(history.c.id)
        .limit(_PAGE)
    )
    while True:
        with store.database.autocommit() as connection:
            page = connection.execute(statement.where(history.c.id > after)).all()
        for row in page:
            yield _happened(row)
        if len(page) < _PAGE:
            return
        after = page[-1].id


def _happened(row: Any) -> Happened:
    began = {"stage": row.stage_start, "workflow": row.workflow_start}.get(row.event)
    duration = None
    if began is not None and row.to_status is not None and row.to_status.is_complete:
        # A stage that was reset since has begun anew.
        lasted = (row.at - began).total_seconds()
        duration = lasted if lasted >= 0 else None
    return Happened(
        row.id, row.event, row.to_status, row.stage_type or "", row.application, row.name, duration
    )


def live_workflows(store: WorkflowStore) -> dict[WorkflowStatus, int]:
    """How many workflows are in each status that is no end; at most :data:`MOST` of each."""
    statuses = [status for status in WorkflowStatus if not status.is_complete]
    counted = {}
    with store.database.autocommit() as connection:
        for status in statuses:
            some = select(workflows.c.id).where(workflows.c.status == status).limit(MOST).subquery()
            counted[status] = int(connection.execute(select(func.count()).select_from(some)).scalar_one())
    return counted


@dataclass(frozen=True)
class Queue:
    """Messages that are due and that nobody handles yet."""

    name: str
    waiting: int
    #: Seconds since the oldest fell due.
    oldest: float


def queues(store: WorkflowStore) -> list[Queue]:
    """Every queue something waits in."""
    now = store.now()
    oldest_first = (
        select(messages.c.queue, messages.c.due_at, messages.c.lease_owner)
        .order_by(messages.c.id)
        .limit(_MESSAGES)
        .subquery()
    )
    statement = (
        select(oldest_first.c.queue, func.count(), func.min(oldest_first.c.due_at))
        .where(oldest_first.c.due_at <= now, oldest_first.c.lease_owner.is_(None))
        .group_by(oldest_first.c.queue)
    )
    with store.database.autocommit() as connection:
        return [
            Queue(name, count, max(0.0, (now - first).total_seconds()))
            for name, count, first in connection.execute(statement)
        ]


def relay_lag(store: WorkflowStore) -> float:
    """Seconds since the first message should have been sent that was not."""
    now = store.now()
    due = store.next_due()
    return 0.0 if due is None else max(0.0, (now - due).total_seconds())


def expired_leases(store: WorkflowStore) -> int:
    """Tasks whose worker has not been heard of for too long, and that nobody has taken over yet."""
    some = (
        select(literal_column("1"))
        .where(
            messages.c.send_at < store.now(),
            messages.c.lease_owner.is_not(None),
            ~messages.c.lease_owner.startswith(WAITS_IN),
        )
        .limit(MOST)
        .subquery()
    )
    with store.database.autocommit() as connection:
        return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def count_dead_letters(store: WorkflowStore) -> int:
    """How many messages were given up and are still kept; at most :data:`MOST`."""
    some = select(dead_letters.c.id).limit(MOST).subquery()
    with store.database.autocommit() as connection:
        return int(connection.execute(select(func.count()).select_from(some)).scalar_one())
