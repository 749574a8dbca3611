"""What an empty broker is to be told again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import and_, or_, select

from stabilize_celery.persistence import message_queries
from stabilize_celery.persistence.outbox import WAITS_IN
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import messages


def take_waiting(
    store: WorkflowStore,
    due_by: datetime,
    after: str,
    limit: int,
    next_send: Callable[[dict[str, Any]], float],
) -> list[dict[str, Any]]:
    """Messages that somebody could handle now, whenever they were sent last; each is marked as sent.

    Not those that a worker is at.  Work that was handed to a Celery queue is among them unless that task asked to be
    repeated later: then it waits for its time.

    Args:
        store: where.
        due_by: due at that time.
        after: with ids above this one.
        limit: at most so many.
        next_send: from a row to the delay in seconds until its next sending.
    """
    now = store.now()
    handed_over = and_(messages.c.lease_owner.startswith(WAITS_IN), messages.c.attempts == 0)
    free = or_(messages.c.lease_owner.is_(None), messages.c.send_at <= now, handed_over)
    chosen = (
        select(messages)
        .where(messages.c.due_at <= due_by, messages.c.id > after, free)
        .order_by(messages.c.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    with store.database.begin() as connection:
        taken = [dict(row) for row in connection.execute(chosen).mappings()]
        if taken:
            marks = [{"_id": row["id"], "next": now + timedelta(seconds=next_send(row))} for row in taken]
            connection.execute(message_queries.mark_sent, marks)
    return taken
