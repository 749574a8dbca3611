"""What a unit of work sends: handled in this transaction, by this process after it, or through the broker."""

from __future__ import annotations

from collections import deque
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, select, update

from stabilize_celery.messages import (
    CompleteStage,
    Message,
    RunTask,
    SkipStage,
    StageLevel,
    TaskLevel,
    WorkflowLevel,
)
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence import tables
from stabilize_celery.persistence.outbox import WAITS_IN, Outgoing, last_failure, new_row, outgoing
from stabilize_celery.persistence.unit.loads import Loads
from stabilize_celery.settings import Settings

#: Messages that make no sense any more once their stage has ended or begun anew.
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
        """Tell whoever works for these stages; returns the last fencing token of each task that was under way."""
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
