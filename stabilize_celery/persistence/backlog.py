"""Messages that wait in the broker: how many there should be, and leaving them alone for a while."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import ColumnElement, func, literal_column, select, text, update

from stabilize_celery.persistence.base import BaseStore
from stabilize_celery.persistence.outbox import WAITS_IN
from stabilize_celery.persistence.tables import messages

#: The condition of the index ix_stabilize_messages_sent, word for word.
_SENT = text("sends > 0 AND lease_owner IS NULL")
#: Most rows put off in one statement: they are locked while it runs.
_BATCH = 10_000


def count_sent(store: BaseStore, queue: str, most: int) -> int:
    """How many messages were sent to a queue and not begun, counted up to ``most``."""
    some = select(literal_column("1")).where(messages.c.queue == queue, _SENT).limit(most).subquery()
    with store.database.autocommit() as connection:
        return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def put_off(store: BaseStore, queue: str, delay: float, *, handed_over: bool = False) -> int:
    """Let nobody look at the overdue messages of a queue for ``delay`` seconds.

    Args:
        store: where they are.
        queue: its name.
        delay: in seconds.
        handed_over: those whose work waits in the queue, rather than themselves.

    Returns:
        How many were put off: the oldest ones, as many as one statement may lock.
    """
    now = store.now()
    ours: tuple[ColumnElement[bool] | object, ...] = (messages.c.queue == queue, _SENT)
    if handed_over:
        ours = (messages.c.lease_owner == WAITS_IN + queue,)
    overdue = (
        select(messages.c.id)
        .where(*ours, messages.c.send_at <= now)  # type: ignore[arg-type]
        .order_by(messages.c.send_at)
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
    )
    later = update(messages).where(messages.c.id.in_(overdue)).values(send_at=now + timedelta(seconds=delay))
    with store.database.begin() as connection:
        return connection.execute(later).rowcount
