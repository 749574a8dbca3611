"""The unit of work: one transaction on one workflow, from the message taken to the messages sent.

It implements :class:`stabilize_celery.handlers.unit.Unit`.  Entities are loaded once and kept (``unit/loads.py``), messages
are sorted by who handles them (``unit/sends.py``), and changes are collected and written together (``unit/writes.py``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, or_, select, update

from stabilize_celery.messages import (
    CompleteStage,
    Message,
    RunTask,
    SkipStage,
    StageLevel,
    TaskLevel,
    WorkflowLevel,
)
from stabilize_celery.models.ids import is_id, new_id
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.observe import Observer
from stabilize_celery.persistence import queries, rows, tables
from stabilize_celery.persistence.loading import Loads, snapshot_of
from stabilize_celery.persistence.pipeline import row_of
from stabilize_celery.persistence.queries import lock_behind
from stabilize_celery.persistence.rows import WAITS_IN, Outgoing, last_failure, new_row, outgoing
from stabilize_celery.persistence.slots import LockedSlots, lock_slots
from stabilize_celery.settings import Settings
from stabilize_celery.stages.builder import StageDefinitionBuilderFactory
from stabilize_celery.tasks.outcome import Attempt
from stabilize_celery.tasks.registry import TaskRegistry

#: Messages that make no sense any more once their stage has ended or a newer generation started.
_TIMERS = ("ExpireSuspension", "ExpireStage")
_TASK_MESSAGES = ("RunTask", *_TIMERS)


class Sends(Loads):
    """Sending, putting back, and calling back."""

    def __init__(
        self,
        connection: Connection,
        now: datetime,
        worker: str,
        observed: bool,
        settings: Settings,
        row: dict[str, Any] | None,
        inline: bool | None,
    ) -> None:
        super().__init__(connection, now, worker, observed)
        self.settings = settings
        self.redact_keys = settings.redact_keys
        self.inline = settings.inline if inline is None else inline
        # A stage that starts takes two follow-ons, and there are some besides.
        self.batch = max(1, settings.inline_batch * 2 // 5) if self.inline else None
        #: Follow-ons to be handled in this transaction.
        self.follow_ons: deque[Message] = deque()
        #: To be published after the commit.
        self.outgoing: list[Outgoing] = []
        #: To be handled by this process right after the commit, in a transaction of their own.
        self.local: list[str] = []
        #: When the first of the messages falls due that wait for their time.
        self.next_due: datetime | None = None
        self._row = row
        self._exclusive = bool(row and row["exclusive"])
        self._workflow_id: str | None = row["workflow_id"] if row else None
        self._in_place = 0

    def send(self, message: Message, *, delay: float = 0.0) -> None:
        if delay <= 0 and self._handled_in_place(message):
            self._in_place += 1
            self.follow_ons.append(message)
            return
        row = new_row(message, self.settings, self.now, label=self._label(message), delay=delay)
        if isinstance(message, RunTask):
            row |= self._attempts_so_far(message)
        self._new_messages.append(row)
        if delay > 0:
            self._announce(row, delay)
        elif self.inline and not message.runs_user_code and self._in_place < self.settings.inline_batch:
            self._in_place += 1
            self.local.append(row["id"])
        else:
            self.outgoing.append(outgoing(row))

    def _handled_in_place(self, message: Message) -> bool:
        """Whether a follow-on belongs into this transaction (architecture, "In-place continuation")."""
        if not self.inline or message.runs_user_code or message.stands_alone:
            return False
        if self._in_place >= self.settings.inline_batch:
            return False
        if not isinstance(message, WorkflowLevel) or message.workflow_id != self._workflow_id:
            return False
        if message.exclusive and not self._exclusive:
            return False
        # After a fan-out, completing a stage would lock stages out of their order.
        return not (self._wide and not self._exclusive and isinstance(message, CompleteStage | SkipStage))

    def _attempts_so_far(self, message: RunTask) -> dict[str, Any]:
        """A task that was parked, suspended or reset goes on counting where it was."""
        stage = self._stages.get(message.stage_id)
        task = stage.task_by_id(message.task_id) if stage is not None else None
        if task is None:
            return {}
        return {"attempts": task.attempts, "last_error": task.last_error, "claims": task.claims}

    def _announce(self, row: dict[str, Any], delay: float) -> None:
        if delay <= 0:
            self.outgoing.append(outgoing(row))
        elif self.next_due is None or row["due_at"] < self.next_due:
            self.next_due = row["due_at"]

    def _label(self, message: Message) -> str:
        if not isinstance(message, StageLevel):
            workflow = self._workflows.get(getattr(message, "workflow_id", ""))
            return workflow.name if workflow is not None else ""
        stage = self._stages.get(message.stage_id)
        if stage is None:
            return ""
        label = f"{stage.execution.name} / {stage.called}"
        if isinstance(message, TaskLevel) and len(stage.tasks) > 1:
            task = stage.task_by_id(message.task_id)
            label += f" / {task.name}" if task is not None else ""
        return label

    def requeue(
        self,
        *,
        delay: float,
        counted: bool,
        error: dict[str, Any] | None = None,
        waits_in: str | None = None,
    ) -> None:
        assert self._row is not None
        due = self.now + timedelta(seconds=delay)
        row = {
            **{column.name: self._row[column.name] for column in tables.messages.c},
            "due_at": due if waits_in is None else self.now,
            "send_at": due,
            "sends": 0 if waits_in is None else self._row["sends"],
            "lease_owner": None if waits_in is None else WAITS_IN + waits_in,
            "attempts": self._row["attempts"] - (0 if counted else 1),
            # What this attempt still has to say comes too late.
            "claims": self._row["claims"] + 1,
            "last_error": error or (last_failure(self._row) if waits_in is None else self._row["last_error"]),
        }
        self._new_messages.append(row)
        if waits_in is None:
            self._announce(row, delay)

    def stop_running(self, stage: StageExecution, *, force: bool) -> None:
        if stage.status is not WorkflowStatus.NOT_STARTED:
            claims = self._stop([stage.id], force=force)
            for task in stage.tasks:
                task.claims = max(task.claims, claims.get(task.id, 0))
            self.change(stage, tasks=stage.tasks)

    def is_at_work(self, stage: StageExecution) -> bool:
        messages = tables.messages
        leased = select(messages.c.id).where(
            messages.c.workflow_id == stage.execution.id,
            messages.c.stage_id == stage.id,
            # The result of a task that has ended may be on its way to the stage.
            messages.c.type.in_(("CompleteTask", "CompleteStage"))
            | (
                (messages.c.type == "RunTask")
                & messages.c.lease_owner.is_not(None)
                & ~messages.c.lease_owner.startswith(WAITS_IN)
                & (messages.c.send_at > self.now)
            ),
        )
        return self.connection.execute(leased).first() is not None

    def drop_timers(self, workflow: Workflow, stage: StageExecution | None = None) -> None:
        self._new_messages = [
            row
            for row in self._new_messages
            if row["type"] not in _TIMERS
            or row["workflow_id"] != workflow.id
            or (stage is not None and row["stage_id"] != stage.id)
        ]
        messages = tables.messages
        timers = select(messages.c.id).where(
            messages.c.workflow_id == workflow.id, messages.c.type.in_(_TIMERS)
        )
        if stage is not None:
            timers = timers.where(messages.c.stage_id == stage.id)
        # One that is being handled waits for this transaction, and has no effect then.
        passed_by = timers.with_for_update(skip_locked=True)
        self.connection.execute(delete(messages).where(messages.c.id.in_(passed_by)))

    def _stop(self, stage_ids: list[str], *, force: bool) -> dict[str, int]:
        """Cancel the leases of these stages; returns the last fencing token of each task that was under way."""
        self._new_messages = [
            row
            for row in self._new_messages
            if row["type"] not in _TASK_MESSAGES or row["stage_id"] not in stage_ids
        ]
        messages = tables.messages
        ours = (messages.c.workflow_id == self._workflow_id) & messages.c.stage_id.in_(stage_ids)
        leased = messages.c.lease_owner.is_not(None) & ~messages.c.lease_owner.startswith(WAITS_IN)
        told = (messages.c.task_id, messages.c.claims)
        # In this order: what is claimed while the first waits for its lock is told by the second.
        waiting = delete(messages).where(ours, messages.c.type.in_(_TASK_MESSAGES), ~leased)
        running = (
            update(messages)
            .where(ours, messages.c.type == "RunTask", leased)
            .values(cancel="kill" if force else "ask")
        )
        claims: dict[str, int] = {}
        for statement in (waiting, running):
            for task_id, token in self.connection.execute(statement.returning(*told)):
                claims[task_id] = max(token, claims.get(task_id, 0))
        return claims


@dataclass(frozen=True)
class Surroundings:
    """What a unit of work is given by the engine it runs in."""

    settings: Settings
    registry: TaskRegistry
    builders: StageDefinitionBuilderFactory
    #: Who writes: host and process, for the history.
    worker: str = ""
    #: Who is told the transitions after the commit.
    observers: Sequence[Observer] = ()


class UnitOfWork(Sends):
    """See the module's docstring and the protocol for what each method means."""

    def __init__(
        self,
        connection: Connection,
        now: datetime,
        surroundings: Surroundings,
        *,
        row: dict[str, Any] | None = None,
        message: Message | None = None,
        inline: bool | None = None,
        attempt: Attempt | None = None,
    ) -> None:
        super().__init__(
            connection,
            now,
            surroundings.worker,
            bool(surroundings.observers),
            surroundings.settings,
            row,
            inline,
        )
        self.registry = surroundings.registry
        self.builders = surroundings.builders
        self.attempt = attempt
        self._message = message

    @property
    def message(self) -> Message:
        """The message that was taken."""
        assert self._message is not None
        return self._message

    def behind(self, stage: StageExecution) -> list[StageExecution]:
        self._flush_stages()
        found, ways = lock_behind(self.connection, stage.execution.id, stage.id)
        self._wide = self._wide or len(found) > 1
        waiting = [self._adopt(row, stage.execution) for row in found]
        for upstream_id, downstream_id in ways:
            self._stages[downstream_id].requisite_stage_ref_ids.add(self._stages[upstream_id].ref_id)
        return waiting

    # ------------------------------------------------------------------ synthetic stages

    def taken_refs(self, workflow: Workflow, refs: set[str]) -> set[str]:
        # Fresh identifiers need no look: a collision is a user's own choice of name.
        chosen = {ref for ref in refs if not is_id(ref)}
        if not chosen:
            return set()
        self._flush_stages()
        stages = tables.stages
        found: set[str] = set()
        for some in queries.chunks(sorted(chosen)):
            taken = select(stages.c.ref_id).where(
                stages.c.workflow_id == workflow.id, stages.c.ref_id.in_(some)
            )
            found |= set(self.connection.execute(taken).scalars())
        return found

    def insert_children(self, parent: StageExecution, stages: Iterable[StageExecution]) -> None:
        by_ref: dict[str, StageExecution] = {}
        for stage in stages:
            row = rows.stage_row(stage, parent.execution.id, self._next_position(parent))
            self._new_stages.append(row)
            self._stages[stage.id] = self._by_ref[stage.ref_id] = by_ref[stage.ref_id] = stage
            parent.execution.stages.append(stage)
            for ref in stage.requisite_stage_ref_ids:
                self._new_edges.append(
                    {
                        "upstream_id": by_ref[ref].id,
                        "downstream_id": stage.id,
                        "workflow_id": parent.execution.id,
                    }
                )

    def _next_position(self, parent: StageExecution) -> int:
        # Synthetic stages are listed in the order they were planned, after the stages of the workflow itself.
        return 1_000_000 + len(self._new_stages)

    def keep_for_hooks(self, stage: StageExecution) -> None:
        messages = tables.messages
        waiting = select(messages.c.id, messages.c.payload).where(
            messages.c.workflow_id == stage.execution.id,
            messages.c.stage_id == stage.id,
            messages.c.type == "RunHook",
        )
        stored = self.connection.execute(waiting).all()
        unsent = [
            row for row in self._new_messages if (row["type"], row["stage_id"]) == ("RunHook", stage.id)
        ]
        if not stored and not unsent:
            return
        kept = snapshot_of(stage, self.sees(stage))
        for row in unsent:
            row["payload"] = {"stage": kept, **{k: v for k, v in row["payload"].items() if v != {}}}
        for found in stored:
            payload = {"stage": kept, **{k: v for k, v in found.payload.items() if v != {}}}
            self.connection.execute(update(messages).where(messages.c.id == found.id).values(payload=payload))

    def delete_children(self, stages: Iterable[StageExecution]) -> None:
        self._flush_stages()
        doomed = [stage.id for stage in stages]
        while doomed:
            for stage_id in doomed:
                if stage_id in self._stages:
                    self.keep_for_hooks(self._stages[stage_id])
            for stage_id in doomed:
                stage = self._stages.pop(stage_id, None)
                self._by_ref.pop(stage.ref_id if stage is not None else "", None)
                self._stage_changes.pop(stage_id, None)
                if stage is not None and stage in stage.execution.stages:
                    stage.execution.stages.remove(stage)
            self._stop(doomed, force=False)
            nested = select(tables.stages.c.id).where(tables.stages.c.parent_stage_id.in_(doomed))
            following = list(self.connection.execute(nested).scalars())
            edges, signals = tables.edges, tables.signals
            self.connection.execute(
                delete(edges).where(or_(edges.c.upstream_id.in_(doomed), edges.c.downstream_id.in_(doomed)))
            )
            self.connection.execute(delete(signals).where(signals.c.stage_id.in_(doomed)))
            self.connection.execute(delete(tables.stages).where(tables.stages.c.id.in_(doomed)))
            doomed = following

    # ------------------------------------------------------------------ branches

    def add_branches(self, workflow: Workflow, count: int) -> None:
        if workflow.id in self._locked_workflows:
            self.change(workflow, live_branches=workflow.live_branches + count)
            return
        self._branches[workflow.id] = self._branches.get(workflow.id, 0) + count

    def release_branches(self, workflow: Workflow, count: int) -> int:
        ended = count - self._branches.pop(workflow.id, 0)
        if workflow.id in self._locked_workflows:
            self.change(workflow, live_branches=workflow.live_branches - ended)
            return workflow.live_branches
        if ended == workflow.live_branches == 1:
            # The header was read without a lock, but within the gate and while the branch that ends here counted: if
            # it was the only one then, no other could start since.  Two or more may have become others meanwhile.
            self._locked_workflows.add(workflow.id)
            self.change(workflow, live_branches=0)
            return 0
        # The row of a workflow with many stages is wanted by all of them: everything else is written before.
        self._flush_stages()
        row = row_of(self.connection, queries.release_branches, {"workflow_id": workflow.id, "ended": ended})
        assert row is not None
        workflow.live_branches, workflow.has_halted = row["live_branches"], row["has_halted"]
        if workflow.live_branches == 0:
            # Nothing else is going on: what was loaded of it with the stage is still true.
            self._locked_workflows.add(workflow.id)
        return workflow.live_branches

    # ------------------------------------------------------------------ signals and slots

    def keep_signal(self, stage: StageExecution, name: str, data: dict[str, Any], user: str) -> None:
        self.connection.execute(
            insert(tables.signals),
            {
                "id": new_id(),
                "workflow_id": stage.execution.id,
                "stage_id": stage.id,
                "name": name,
                "data": data,
                "user": user,
                # Signals are taken in the order they were sent, whichever was handled first.
                "at": self._row["created_at"] if self._row is not None else self.now,
            },
        )

    def next_signal(self, stage: StageExecution) -> tuple[str, dict[str, Any], str] | None:
        signals = tables.signals
        oldest = (
            select(signals)
            .where(signals.c.stage_id == stage.id)
            .order_by(signals.c.at, signals.c.id)
            .limit(1)
        )
        row = self.connection.execute(oldest).one_or_none()
        if row is None:
            return None
        self.connection.execute(delete(signals).where(signals.c.id == row.id))
        return row.name, row.data, row.user

    def drop_signals(self, stage: StageExecution) -> None:
        self.connection.execute(delete(tables.signals).where(tables.signals.c.stage_id == stage.id))

    def slots(self, config_id: str) -> LockedSlots:
        return lock_slots(self.connection, config_id)

    def hold_slot(self, workflow: Workflow, held: bool) -> None:
        self._slot_changes[workflow.id] = self._slot_holders[workflow.id] = held

    def holds_slot(self, workflow: Workflow) -> bool:
        return self._slot_holders[workflow.id]
