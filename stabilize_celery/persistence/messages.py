"""Messages: handling one in a transaction, sending what is due, setting aside what keeps failing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, or_, select, update

from stabilize_celery.crash_points import reach
from stabilize_celery.json_values import is_storable
from stabilize_celery.messages import CompleteWorkflow
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence import message_queries, queries
from stabilize_celery.persistence.base import BaseStore
from stabilize_celery.persistence.notify import Bell
from stabilize_celery.persistence.pipeline import answer_of, batch, insert_rows, row_of, rows_of, write
from stabilize_celery.persistence.rows import message_of
from stabilize_celery.persistence.tables import dead_letters, history, messages
from stabilize_celery.persistence.unit_of_work import Surroundings, UnitOfWork
from stabilize_celery.tasks.outcome import Attempt


def ahead_of(attempt: Attempt | None) -> list[tuple[Any, dict[str, Any]]]:
    """Statements with their parameters: the stage, and what follows it if the attempt may end it.

    Rows are locked in the order the handlers would lock them in.
    """
    if attempt is None or attempt.stage_id is None:
        return []
    parameters = {"stage_id": attempt.stage_id}
    wanted: list[tuple[Any, dict[str, Any]]] = [(queries.lock_stage, parameters)]
    if attempt.may_end_stage:
        wanted.append((queries.lock_downstream, parameters))
    return wanted


_LETTER_COLUMNS = ("id", "type", "workflow_id", "stage_id", "task_id", "label", "attempts")


class MessageStore(BaseStore):
    """The part of the store that dispatchers and relays use."""

    # ------------------------------------------------------------------ handling messages

    def insert_messages(self, new: list[dict[str, Any]], connection: Connection | None = None) -> None:
        """Write message rows, in the caller's transaction if there is one."""
        if connection is not None:
            insert_rows(connection, messages, new)
            return
        with self.database.begin() as own:
            insert_rows(own, messages, new)

    @contextmanager
    def take(
        self,
        message_id: str,
        token: int | None,
        surroundings: Surroundings,
        inline: bool | None = None,
        attempt: Attempt | None = None,
    ) -> Iterator[UnitOfWork | None]:
        """Take a message and handle it within the block: one transaction.

        Args:
            message_id: the row.
            token: for the result of a task the fencing token of its lease, which must still be held.
            surroundings: what handlers are given.
            inline: whether follow-ons are handled in place; ``None`` asks the settings.
            attempt: for the result of a task, the attempt.

        Yields:
            The unit of work; ``None`` if the message was handled already, is not due, or the lease is lost.

        Raises:
            UnknownMessageError, InvalidMessageError: the row cannot be read.
        """
        now = self.now()
        if token is None:
            statement = self.queries.take
            parameters: dict[str, Any] = {
                "message_id": message_id,
                "now": now,
                "latest": self.clock.latest(),
            }
        else:
            statement, parameters = self.queries.settle, {"message_id": message_id, "token": token}
        with self.database.begin() as connection:
            with batch(connection):
                asked = [(statement, parameters), *ahead_of(attempt)]
                answers = [answer_of(connection, *each) for each in asked]
            taken, *ahead = [answer.rows() for answer in answers]
            if not taken:
                yield None
                return
            row = taken[0]
            unit = UnitOfWork(
                connection,
                # It may have waited at the gate.
                self.now(),
                surroundings,
                row=row,
                message=message_of(row),
                inline=inline,
                attempt=attempt,
            )
            unit.clock = self.now
            if ahead:
                unit.adopt(*ahead)
            reach("message.taken")
            yield unit
            reach("message.handled")
            with batch(connection, commit=True):
                unit.flush()

    @contextmanager
    def bury(
        self, message_id: str, error: dict[str, Any], surroundings: Surroundings, token: int | None = None
    ) -> Iterator[UnitOfWork | None]:
        """Move a message to the dead letters; what is done within the block goes into the same transaction.

        The transaction has the workflow for itself.  Yields ``None`` if there is no workflow to deal with, or if another
        claim has taken the message, see :meth:`_still_ours`.
        """
        found = self.message(message_id)
        if found is None:
            yield None
            return
        with self.database.begin() as connection:
            if found["workflow_id"] is not None and self.database.is_postgresql:
                connection.execute(self.queries.gate_exclusive, {"workflow_id": found["workflow_id"]})
            taken = connection.execute(
                delete(messages).where(self._still_ours(message_id, token)).returning(*messages.c)
            ).one_or_none()
            if taken is None:
                yield None
                return
            row = dict(taken._mapping)
            kept = {k: v.isoformat() if isinstance(v, datetime) else v for k, v in row.items()}
            letter = {name: row[name] for name in _LETTER_COLUMNS}
            connection.execute(
                insert(dead_letters), {**letter, "row": kept, "error": error, "died_at": self.now()}
            )
            if row["workflow_id"] is None or row["type"] == "RunHook":
                yield None
                return
            subject = CompleteWorkflow(workflow_id=row["workflow_id"])
            yield UnitOfWork(
                connection,
                self.now(),
                surroundings,
                row={**row, "exclusive": True},
                message=subject,
                inline=False,
            )

    # ------------------------------------------------------------------ the relay

    def due(self, limit: int) -> list[dict[str, Any]]:
        """Messages whose time to be sent (again) has come, oldest first; nothing is changed."""
        with self.database.autocommit() as connection:
            found = connection.execute(message_queries.read_due, {"now": self.now(), "most": limit})
            return [dict(row._mapping) for row in found]

    def take_due(self, limit: int, next_send: Any) -> list[dict[str, Any]]:
        """Messages to be sent now; each is marked with when it is to be sent again if it has no effect.

        Args:
            limit: at most that many.
            next_send: from a row to the delay in seconds until its next sending.
        """
        now = self.now()
        with self.database.begin() as connection:
            taken = rows_of(connection, message_queries.lock_due, {"now": now, "most": limit})
            if taken:
                write(
                    connection,
                    message_queries.mark_sent,
                    [
                        {
                            "_id": row["id"],
                            "next": now + timedelta(seconds=next_send(row)),
                        }
                        for row in taken
                    ],
                )
        return taken

    def send_soon(self, message_ids: list[str], delay: float) -> None:
        """Sending failed: try again in ``delay`` seconds, as if it had not been tried."""
        soon = self.now() + timedelta(seconds=delay)
        with self.database.begin() as connection:
            for batch in queries.chunks(message_ids):
                connection.execute(message_queries.send_again, {"ids": batch, "soon": soon})

    def bell(self) -> Bell:
        """What wakes the relays."""
        return Bell(self.database)

    def next_due(self) -> datetime | None:
        """When the relay has something to send next."""
        with self.database.autocommit() as connection:
            row = row_of(connection, message_queries.read_next_due, {})
            assert row is not None
            due: datetime | None = row["send_at"]
            return due

    def count_messages(self) -> int:
        """How many messages are not finished."""
        with self.database.autocommit() as connection:
            return int(connection.execute(select(func.count()).select_from(messages)).scalar_one())

    def message(self, message_id: str) -> dict[str, Any] | None:
        """The row of a message."""
        with self.database.autocommit() as connection:
            row = connection.execute(select(messages).where(messages.c.id == message_id)).one_or_none()
            return None if row is None else dict(row._mapping)

    def _still_ours(self, message_id: str, token: int | None) -> ColumnElement[bool]:
        """A message that no other worker has: its last claim is that of ``token``; without one, no lease of it lasts."""
        free = or_(messages.c.lease_owner.is_(None), messages.c.send_at <= self.now())
        return and_(messages.c.id == message_id, free if token is None else messages.c.claims == token)

    def record_failure(
        self, message_id: str, error: dict[str, Any], delay: float, token: int | None = None
    ) -> int | None:
        """Note that handling a message failed, and put it off.

        Returns:
            How often it has failed; ``None`` if it is gone, or another claim has taken it.
        """
        again = self.now() + timedelta(seconds=delay)
        statement = (
            update(messages)
            .where(self._still_ours(message_id, token))
            .values(
                attempts=messages.c.attempts + 1,
                last_error=error,
                due_at=again,
                send_at=again,
                sends=0,
                lease_owner=None,
            )
            .returning(messages.c.attempts)
        )
        with self.database.begin() as connection:
            result: int | None = connection.execute(statement).scalar_one_or_none()
            return result

    def put_back(self, message_id: str, delay: float, token: int | None = None) -> None:
        """Leave a message that this release cannot read to a newer one; a claim of it does not count as an attempt.

        Args:
            message_id: the row; nothing is done if another claim has taken it.
            delay: seconds until it is sent again.
            token: the fencing token of the claim that is given back, if it was claimed.
        """
        later = self.now() + timedelta(seconds=delay)
        counted = 0 if token is None else 1
        with self.database.begin() as connection:
            connection.execute(
                update(messages)
                .where(self._still_ours(message_id, token))
                .values(send_at=later, lease_owner=None, attempts=messages.c.attempts - counted)
            )


#: Of the stored row, what names the message; the rest starts again.
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
    store: BaseStore,
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
