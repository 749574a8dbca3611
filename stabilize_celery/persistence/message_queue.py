"""A queue with a table and a database of its own; a processor moves the messages into its store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Index,
    MetaData,
    Table,
    delete,
    func,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError

from stabilize_celery.clock import Clock
from stabilize_celery.errors import ConfigurationError, QueueError
from stabilize_celery.messages import Message
from stabilize_celery.persistence.database import Database
from stabilize_celery.persistence.outbox import message_of, new_row
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import messages
from stabilize_celery.settings import Settings

_BATCH = 500
_DEFAULTS = Settings.of()


class MessageQueue:
    """Messages waiting to be handled.

    A row is visible from its ``send_at``: its due time or, once it was polled, the end of its lock.  One that
    was polled ``max_attempts`` times without an :meth:`ack` is a dead letter of this queue.

    Args:
        connection_string: the database, as a SQLAlchemy URL.
        table_name: the table; :meth:`_create_table` makes it.
        lock_duration: how long a polled message is hidden, in seconds or as a timedelta.
        max_attempts: how often a message is polled before it is a dead letter.
        clock: where times come from.
    """

    def __init__(
        self,
        connection_string: str,
        table_name: str = "queue_messages",
        lock_duration: float | timedelta = 60.0,
        max_attempts: int = 10,
        *,
        clock: Clock | None = None,
    ) -> None:
        if table_name == messages.name:
            raise ConfigurationError(
                f"{table_name} is the engine's own table; give the queue another table_name"
            )
        self.database = Database(connection_string, clock=clock)
        self.table_name = table_name
        self.lock_duration = _as_timedelta(lock_duration)
        self.max_attempts = max_attempts
        #: The store its messages are about, once a processor or an orchestrator knows it.
        self.store: WorkflowStore | None = None
        self._table = _table_like_messages(table_name)
        self._listeners: list[Callable[[], None]] = []

    def _create_table(self) -> None:
        """Make the table if it does not exist."""
        with self.database.begin() as connection:
            self._table.metadata.create_all(connection)

    def on_push(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever this object was given a message."""
        self._listeners.append(listener)

    def close(self) -> None:
        """Close all connections."""
        self.database.dispose()

    # ------------------------------------------------------------------ messages in and out

    def push(self, message: Message, delay: float | timedelta | None = None, *, label: str = "") -> str:
        """Put in a message, to be handled after ``delay``.

        Returns:
            Its id.
        """
        seconds = _as_timedelta(delay or 0).total_seconds()
        row = new_row(message, _DEFAULTS, self._now(), label=label, delay=seconds)
        with self._begin() as connection:
            connection.execute(insert(self._table), {**row, "send_at": row["due_at"], "sends": 0})
        for listener in self._listeners:
            listener()
        return str(row["id"])

    def poll_one(self) -> Message | None:
        """Take the message that has been due for longest; unless acknowledged it is back after its lock.

        The message carries ``message_id``, by which :meth:`ack` and :meth:`reschedule` know it.
        """
        now = self._now()
        table = self._table
        oldest = (
            select(table)
            .where(table.c.send_at <= now, ~self._is_dead(now))
            .order_by(table.c.send_at, table.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        with self._begin() as connection:
            row = connection.execute(oldest).one_or_none()
            if row is None:
                return None
            connection.execute(
                update(table)
                .where(table.c.id == row.id)
                .values(attempts=table.c.attempts + 1, send_at=now + self.lock_duration, lease_owner="polled")
            )
        message = message_of(dict(row._mapping))
        # Messages are frozen because handlers share them; which delivery this is concerns this object alone.
        object.__setattr__(message, "message_id", row.id)
        return message

    def ack(self, message: Message) -> None:
        """A polled message is done with."""
        with self._begin() as connection:
            connection.execute(delete(self._table).where(self._table.c.id == _id_of(message)))

    def reschedule(self, message: Message, delay: float | timedelta) -> None:
        """Give back a polled message, to be polled again after ``delay``."""
        due = self._now() + _as_timedelta(delay)
        with self._begin() as connection:
            connection.execute(
                update(self._table)
                .where(self._table.c.id == _id_of(message))
                .values(due_at=due, send_at=due, lease_owner=None)
            )

    def size(self) -> int:
        """How many messages wait, those not due yet included."""
        return self._count(~self._is_dead(self._now()))

    def clear(self) -> None:
        """Drop every message that is no dead letter."""
        self._drop(~self._is_dead(self._now()))

    # ------------------------------------------------------------------ dead letters

    def dlq_size(self) -> int:
        """How many dead letters there are."""
        return self._count(self._is_dead(self._now()))

    def list_dlq(self, limit: int = 100) -> list[dict[str, Any]]:
        """The rows of the oldest dead letters."""
        dead = select(self._table).where(self._is_dead(self._now())).order_by(self._table.c.id).limit(limit)
        with self._begin() as connection:
            return [dict(row._mapping) for row in connection.execute(dead)]

    def replay_dlq(self, message_id: str) -> bool:
        """Let a dead letter be polled again; returns whether there was such a one."""
        now = self._now()
        with self._begin() as connection:
            found = connection.execute(
                update(self._table)
                .where(self._table.c.id == message_id, self._is_dead(now))
                .values(attempts=0, send_at=now, lease_owner=None)
            )
        for listener in self._listeners:
            listener()
        return found.rowcount > 0

    def clear_dlq(self) -> int:
        """Drop all dead letters; returns how many."""
        return self._drop(self._is_dead(self._now()))

    # ------------------------------------------------------------------ into the engine

    def move_to(self, store: WorkflowStore) -> int:
        """Move what nobody has polled into the messages table of a store, under the same ids.

        A crash between the two commits leaves a message in both tables; the next move finds it in the store
        and only deletes it here.

        Returns:
            How many were moved.
        """
        moved = 0
        while True:
            with self._both(store) as (ours, theirs):
                batch = self._take(ours)
                self._give(batch, store, theirs)
            moved += len(batch)
            if len(batch) < _BATCH:
                return moved

    def _take(self, connection: Connection) -> list[dict[str, Any]]:
        now, table = self._now(), self._table
        free = table.c.lease_owner.is_(None) | (table.c.send_at <= now)
        ids = connection.execute(
            select(table.c.id)
            .where(free, ~self._is_dead(now))
            .order_by(table.c.send_at, table.c.id)
            .limit(_BATCH)
            .with_for_update(skip_locked=True)
        ).scalars()
        taken = connection.execute(delete(table).where(table.c.id.in_(list(ids))).returning(*table.c)).all()
        return sorted((dict(row._mapping) for row in taken), key=lambda row: row["id"])

    def _give(self, batch: list[dict[str, Any]], store: WorkflowStore, connection: Connection) -> None:
        if not batch:
            return
        ids = [row["id"] for row in batch]
        known = set(connection.execute(select(messages.c.id).where(messages.c.id.in_(ids))).scalars())
        now, theirs = self._now(), store.now()
        new = []
        for row in batch:
            # What is left of the delay counts: the two databases may disagree on the time.
            due = theirs + max(timedelta(), row["due_at"] - now)
            new.append({**row, "due_at": due, "send_at": due, "sends": 0, "lease_owner": None, "attempts": 0})
        if new := [row for row in new if row["id"] not in known]:
            store.insert_messages(new, connection)

    @contextmanager
    def _both(self, store: WorkflowStore) -> Iterator[tuple[Connection, Connection]]:
        """One transaction if both are the same database, else two, of which the store's commits first."""
        if _place_of(self.database) == _place_of(store.database):
            with self._clear_errors(), store.database.begin() as connection:
                yield connection, connection
            return
        with self._begin() as ours, store.database.begin() as theirs:
            yield ours, theirs

    # ------------------------------------------------------------------ small parts

    def _now(self) -> datetime:
        return self.database.clock.now()

    def _is_dead(self, now: datetime) -> ColumnElement[bool]:
        return (self._table.c.attempts >= self.max_attempts) & (self._table.c.send_at <= now)

    def _count(self, condition: ColumnElement[bool]) -> int:
        with self._begin() as connection:
            count = connection.execute(select(func.count()).select_from(self._table).where(condition))
            return int(count.scalar_one())

    def _drop(self, condition: ColumnElement[bool]) -> int:
        with self._begin() as connection:
            return connection.execute(delete(self._table).where(condition)).rowcount

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        with self._clear_errors(), self.database.begin() as connection:
            yield connection

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if inspect(self.database.engine).has_table(self.table_name):
                raise
            raise QueueError(
                f"table {self.table_name} is missing in {self.database.name}: "
                "call queue._create_table() first"
            ) from error


class SqliteQueue(MessageQueue):
    """A queue in SQLite."""


class PostgresQueue(MessageQueue):
    """A queue in PostgreSQL."""


def _table_like_messages(name: str) -> Table:
    table = messages.to_metadata(MetaData(), name=name)
    # Names of indexes and keys are unique per database, and the store may live in the same one.
    table.primary_key.name = None
    table.indexes.clear()
    Index(f"ix_{name}_send_at", table.c.send_at)
    return table


def _place_of(database: Database) -> tuple[object, ...]:
    url = database.url
    if database.is_postgresql:
        return (url.host, url.port, url.database, tuple(sorted(url.query.items())))
    if url.database in (None, "", ":memory:"):
        return (id(database),)
    return (os.path.realpath(str(url.database)),)


def _as_timedelta(value: float | timedelta) -> timedelta:
    return value if isinstance(value, timedelta) else timedelta(seconds=value)


def _id_of(message: Message) -> str:
    message_id: str | None = getattr(message, "message_id", None)
    if message_id is None:
        raise QueueError(f"this {message.type} was not polled from a queue, so it cannot be acknowledged")
    return message_id
