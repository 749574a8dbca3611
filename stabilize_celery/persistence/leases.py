"""Leases: claiming a task for a worker, with what its stage sees, and staying its owner."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, literal_column, or_, select, text, update

from stabilize_celery.context.view import apply_view
from stabilize_celery.errors import StabilizeError, StageError, UnknownReducerError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import message_queries, queries, rows
from stabilize_celery.persistence.base import BaseStore
from stabilize_celery.persistence.loading import read_inherited
from stabilize_celery.persistence.pipeline import row_of
from stabilize_celery.persistence.rows import WAITS_IN
from stabilize_celery.persistence.tables import messages


@dataclass
class Claimed:
    """A message that is this worker's now.

    Attributes:
        row: the message.
        stage: its stage, with what it sees in ``context``; ``None`` if it is gone.
        problem: why what it sees could not be put together; ``context`` is the stage's own then.
    """

    row: dict[str, Any]
    stage: StageExecution | None = None
    problem: StabilizeError | None = None


class LeaseStore(BaseStore):
    """The part of the store that workers use while they run user code."""

    def claim(self, message_id: str, owner: str, lease: float) -> Claimed | None:
        """Claim a task for this worker; nothing if it was handled already, is not due, or another worker holds it."""
        return self._claim(self.queries.claim, message_id, owner, lease)

    def _claim(self, statement: Any, message_id: str, owner: str, lease: float) -> Claimed | None:
        now = self.now()
        parameters = {
            "message_id": message_id,
            "owner": owner,
            "now": now,
            "latest": self.clock.latest(),
            "lease_end": now + timedelta(seconds=lease),
        }
        with self.database.alone() as connection:
            claimed = row_of(connection, statement, parameters)
            if claimed is None:
                return None
            found = Claimed({column.name: claimed[column.name] for column in messages.c})
            if self.database.is_postgresql:
                row = message_queries.claimed_stage(claimed)
            else:
                row = row_of(connection, queries.read_stage_whole, {"stage_id": claimed["stage_id"]})
            if row is not None:
                seen = claimed.get("seen_outputs") or {}
                # One that was planned again since then has none.
                outputs = {stage_id: each for stage_id, each in seen.items() if each is not None}
                self._read_for_running(connection, found, row, outputs)
            return found

    def _read_for_running(
        self,
        connection: Connection,
        found: Claimed,
        row: dict[str, Any],
        outputs: dict[str, dict[str, Any]],
    ) -> None:
        stage, workflow = _stage_and_workflow(row)
        found.stage = stage
        parents: list[StageExecution] = []
        step = stage
        while step.parent_stage_id is not None:
            above = row_of(connection, queries.read_stage_whole, {"stage_id": step.parent_stage_id})
            if above is None:
                break
            step, _ = _stage_and_workflow(above)
            parents.append(step)
        for each in (stage, *parents):
            each.execution = workflow
        workflow.stages = [*reversed(parents), stage]
        try:
            inherited = read_inherited(connection, stage, parents, outputs)
        except (StageError, UnknownReducerError) as error:
            inherited, found.problem = {}, error
        apply_view(stage, inherited)

    def heartbeat(
        self, leases: Mapping[str, int], lease: float, owner: str | None = None
    ) -> dict[str, str | None]:
        """Renew leases, given as message id -> fencing token.

        Args:
            leases: those of one process.
            lease: their length from now on, in seconds.
            owner: the process, which takes back one that has run out if no other has claimed it since.

        Returns:
            For each lease that is still held whether its work is wanted: ``None``, ``"ask"`` or ``"kill"``.
        """
        held: dict[str, str | None] = {}
        end = self.now() + timedelta(seconds=lease)
        with self.database.alone() as connection:
            for message_id, token in leases.items():
                row = row_of(
                    connection,
                    message_queries.renew_lease,
                    {"message_id": message_id, "token": token, "lease_end": end, "owner": owner},
                )
                if row is not None:
                    held[message_id] = row["cancel"]
        return held

    def hand_back(self, message_id: str, token: int, delay: float, *, counted: bool = False) -> bool:
        """End a lease in ``delay`` seconds; returns false if it is not held any more.

        Args:
            message_id: the row.
            token: the fencing token of the lease.
            delay: in seconds; one that ends sooner does so.
            counted: the attempt counts.
        """
        parameters = {
            "message_id": message_id,
            "token": token,
            "lease_end": self.now() + timedelta(seconds=delay),
            "uncounted": 0 if counted else 1,
        }
        with self.database.alone() as connection:
            return row_of(connection, message_queries.hand_back, parameters) is not None


def _stage_and_workflow(row: dict[str, Any]) -> tuple[StageExecution, Workflow]:
    return rows.stage_from_row(row), rows.workflow_from_row(queries.whole_header_of(row))


class HandOverStore(LeaseStore):
    """The part of the store that processes use which begin the work of another one's message."""

    def claim(self, message_id: str, owner: str, lease: float) -> Claimed | None:
        return self._readable(super().claim(message_id, owner, lease))

    def begin(self, message_id: str, owner: str, lease: float) -> Claimed | None:
        """Take over a handed-over task; ``None`` if it is gone, or its holder still lives."""
        return self._readable(self._claim(self.queries.begin, message_id, owner, lease))

    def _readable(self, found: Claimed | None) -> Claimed | None:
        """Let the stage read the outputs of others."""
        if found is not None and found.stage is not None:
            found.stage.outputs_reader = partial(self.outputs_by_ref, found.stage.execution.id)
        return found

    def outputs_by_ref(self, workflow_id: str, ref_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The outputs of those of some stages of a workflow that have ended, by ref_id."""
        found: dict[str, dict[str, Any]] = {}
        with self.database.autocommit() as connection:
            for batch in queries.chunks(sorted(set(ref_ids))):
                parameters = {"workflow_id": workflow_id, "ref_ids": batch}
                rows = connection.execute(queries.read_outputs_by_ref, parameters)
                found.update((row.ref_id, row.outputs) for row in rows)
        return found

    def take_back(self, message_ids: list[str]) -> None:
        """What waited in a queue is not there any more: the next to claim it hands it over again."""
        with self.database.begin() as connection:
            for batch in queries.chunks(message_ids):
                connection.execute(message_queries.take_back, {"ids": batch})


#: The condition of the index ix_stabilize_messages_sent, word for word.
_SENT = text("sends > 0 AND lease_owner IS NULL")
#: Most rows put off in one statement: they are locked while it runs.
_BATCH = 10_000


def count_sent(store: BaseStore, queue: str, most: int) -> int:
    """How many messages were sent to a queue and not started, counted up to ``most``."""
    some = select(literal_column("1")).where(messages.c.queue == queue, _SENT).limit(most).subquery()
    with store.database.autocommit() as connection:
        return int(connection.execute(select(func.count()).select_from(some)).scalar_one())


def put_off(store: BaseStore, queue: str, delay: float, *, handed_over: bool = False) -> int:
    """Postpone republishing the overdue messages of a queue for ``delay`` seconds.

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


def take_waiting(
    store: BaseStore,
    due_by: datetime,
    after: str,
    limit: int,
    next_send: Callable[[dict[str, Any]], float],
) -> list[dict[str, Any]]:
    """Messages that a worker could handle now, whenever they were sent last; each is marked as sent.

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
