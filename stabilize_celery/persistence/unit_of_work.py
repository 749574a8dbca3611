"""The unit of work: one transaction on one workflow, from the message taken to the messages sent.

It implements :class:`stabilize_celery.handlers.unit.Unit`.  Entities are loaded once and kept; changes are collected
and written together in :meth:`UnitOfWork.flush`.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Table, delete, insert, or_, select, update

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
from stabilize_celery.observe import Observer, Transition, transition_of
from stabilize_celery.persistence import queries, rows, tables
from stabilize_celery.persistence.outbox import WAITS_IN, Outgoing, new_row, outgoing
from stabilize_celery.persistence.slots import LockedSlots, lock_slots
from stabilize_celery.persistence.snapshots import snapshot_of
from stabilize_celery.persistence.views import read_inherited
from stabilize_celery.settings import Settings
from stabilize_celery.stages.builder import StageDefinitionBuilderFactory
from stabilize_celery.tasks.outcome import Attempt
from stabilize_celery.tasks.registry import TaskRegistry

#: Orders what one process writes in the same moment; times order the rest.
_steps = itertools.count()
_LARGEST_STEP = 2**31

#: Messages that make no sense any more once their stage has ended or begun anew.
_TASK_MESSAGES = ("RunTask", "ExpireSuspension")


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


class UnitOfWork:
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
        self.connection = connection
        self.now = now
        self.settings = surroundings.settings
        self.registry = surroundings.registry
        self.builders = surroundings.builders
        self.worker = surroundings.worker
        self.attempt = attempt
        self.inline = self.settings.inline if inline is None else inline
        # A stage that starts takes two follow-ons, and there are some besides.
        self.batch = max(1, self.settings.inline_batch * 2 // 5) if self.inline else None
        #: Follow-ons to be handled in this transaction.
        self.follow_ons: deque[Message] = deque()
        #: To be published after the commit.
        self.outgoing: list[Outgoing] = []
        #: To be handled by this process right after the commit, in a transaction of their own.
        self.local: list[str] = []
        #: When the first of the messages falls due that wait for their time.
        self.next_due: datetime | None = None
        #: For observers, if there are any.
        self.transitions: list[Transition] = []
        self._observed = bool(surroundings.observers)

        self._row = row
        self._message = message
        self._exclusive = bool(row and row["exclusive"])
        self._workflow_id: str | None = row["workflow_id"] if row else None
        self._in_place = 0
        self._wide = False
        self._workflows: dict[str, Workflow] = {}
        self._locked_workflows: set[str] = set()
        self._with_context: set[str] = set()
        self._stages: dict[str, StageExecution] = {}
        self._by_ref: dict[str, StageExecution] = {}
        self._upstreams: dict[str, list[StageExecution]] = {}
        self._stage_changes: dict[str, set[str]] = {}
        self._workflow_changes: dict[str, set[str]] = {}
        self._slot_changes: dict[str, bool] = {}
        self._slot_holders: dict[str, bool] = {}
        self._branches: dict[str, int] = {}
        self._new_stages: list[dict[str, Any]] = []
        self._new_edges: list[dict[str, Any]] = []
        self._new_messages: list[dict[str, Any]] = []
        self._history: list[dict[str, Any]] = []

    @property
    def message(self) -> Message:
        """The message that was taken."""
        assert self._message is not None
        return self._message

    # ------------------------------------------------------------------ loading

    def workflow(self, workflow_id: str) -> Workflow | None:
        if workflow_id not in self._locked_workflows:
            self._flush_workflows()
            row = self.connection.execute(queries.lock_workflow, {"workflow_id": workflow_id}).one_or_none()
            if row is None:
                return None
            self._adopt_locked(dict(row._mapping))
        return self._workflows[workflow_id]

    def _adopt_locked(self, mapping: Any) -> Workflow:
        self._locked_workflows.add(mapping["id"])
        self._slot_holders[mapping["id"]] = mapping["holds_slot"]
        return self._adopt_workflow(rows.workflow_from_row(mapping))

    def _adopt_workflow(self, fresh: Workflow) -> Workflow:
        """Keep one object per workflow: stages already loaded point to it."""
        known = self._workflows.get(fresh.id)
        if known is None:
            self._workflows[fresh.id] = fresh
            return fresh
        stages_of_known = known.stages
        known.__dict__.update(fresh.__dict__)
        known.stages = stages_of_known
        return known

    def whole(self, workflow_id: str) -> Workflow | None:
        self.flush()
        found = self.connection.execute(queries.lock_all_stages, {"workflow_id": workflow_id}).all()
        workflow = self.workflow(workflow_id)
        if workflow is None:
            return None
        workflow.stages = [self._adopt(row._mapping, workflow) for row in found]
        refs = {stage.id: stage for stage in workflow.stages}
        for edge in self.connection.execute(queries.read_edges, {"workflow_id": workflow_id}):
            upstream, downstream = refs.get(edge.upstream_id), refs.get(edge.downstream_id)
            if upstream is not None and downstream is not None:
                downstream.requisite_stage_ref_ids.add(upstream.ref_id)
        return workflow

    def stage(self, stage_id: str) -> StageExecution | None:
        if stage_id not in self._stages:
            row = self.connection.execute(queries.lock_stage, {"stage_id": stage_id}).one_or_none()
            if row is None:
                return None
            mapping = row._mapping
            workflow = self._workflows.get(mapping["workflow_id"])
            if workflow is None:
                workflow = self._adopt_workflow(rows.workflow_from_row(queries.header_of(mapping)))
            self._adopt(mapping, workflow)
        return self._stages[stage_id]

    def _adopt(self, mapping: Any, workflow: Workflow) -> StageExecution:
        known = self._stages.get(mapping["id"])
        if known is None:
            known = self._stages[mapping["id"]] = rows.stage_from_row(mapping)
            known.execution = workflow
            self._by_ref[known.ref_id] = known
        return known

    def stages(self, workflow_id: str, stage_ids: list[str]) -> list[StageExecution]:
        header = self.connection.execute(queries.read_workflow, {"workflow_id": workflow_id}).one_or_none()
        if header is None:
            return []
        workflow = self._adopt_workflow(rows.workflow_from_row(dict(header._mapping)))
        self._with_context.add(workflow_id)
        parameters = {"workflow_id": workflow_id, "stage_ids": stage_ids}
        found = self.connection.execute(queries.lock_stages, parameters).all()
        self._wide = True
        stages = [self._adopt(row._mapping, workflow) for row in found]
        self._upstreams |= {stage.id: [] for stage in stages}
        for row in self.connection.execute(queries.read_sources_of_many, {"stage_ids": stage_ids}):
            light = dict(row._mapping)
            self._upstreams[light.pop("downstream_id")].append(self._light(light))
        return stages

    def initial_stages(self, workflow: Workflow) -> list[StageExecution]:
        found = self.connection.execute(queries.lock_initial_stages, {"workflow_id": workflow.id}).all()
        self._wide = self._wide or len(found) > 1
        return [self._adopt(row._mapping, workflow) for row in found]

    def downstream(self, stage: StageExecution) -> list[StageExecution]:
        if self._new_edges:
            # Planned and ended in the same transaction.
            self._flush_stages()
        found = self.connection.execute(queries.lock_downstream, {"stage_id": stage.id}).all()
        self._wide = self._wide or len(found) > 1
        following = [self._adopt(row._mapping, stage.execution) for row in found]
        for each in following:
            each.requisite_stage_ref_ids.add(stage.ref_id)
        return following

    def upstreams(self, stage: StageExecution) -> list[StageExecution]:
        if stage.id in self._upstreams:
            return self._upstreams[stage.id]
        known = [self._by_ref[ref] for ref in stage.requisite_stage_ref_ids if ref in self._by_ref]
        if known and len(known) == stage.upstream_count:
            return known
        self._flush_stages()
        found = self.connection.execute(queries.read_upstream_sources, {"stage_id": stage.id})
        return [self._light(row._mapping) for row in found]

    def children(self, stage: StageExecution) -> list[StageExecution]:
        self._flush_stages()
        found = self.connection.execute(queries.read_children, {"stage_id": stage.id})
        return [self._light(row._mapping) for row in found]

    def _light(self, mapping: Any) -> StageExecution:
        known = self._stages.get(mapping["id"])
        return known if known is not None else StageExecution(**mapping)

    def sees(self, stage: StageExecution) -> dict[str, Any]:
        self._load_context(stage.execution)
        parents = []
        step = stage
        while step.parent_stage_id is not None:
            parent = self.stage(step.parent_stage_id)
            if parent is None:
                break
            parents.append(parent)
            step = parent
        return read_inherited(self.connection, stage, parents, self._stages)

    def _load_context(self, workflow: Workflow) -> None:
        """Builders and conditions may look at what the workflow was started with; nothing else needs it."""
        if workflow.id in self._locked_workflows or workflow.id in self._with_context:
            return
        self._with_context.add(workflow.id)
        row = self.connection.execute(queries.read_workflow, {"workflow_id": workflow.id}).one()
        full = rows.workflow_from_row(dict(row._mapping))
        workflow.context, workflow.trigger = full.context, full.trigger

    def stage_names(self, stage: StageExecution) -> dict[str, Any]:
        self._flush_stages()
        found = self.connection.execute(queries.read_upstream_sources, {"stage_id": stage.id}).all()
        outputs = {
            row.id: row.outputs
            for row in self.connection.execute(queries.read_upstream_outputs, {"stage_id": stage.id})
        }
        return {row.ref_id: outputs[row.id] for row in found}

    def statuses(self, workflow: Workflow) -> dict[WorkflowStatus, int]:
        self.flush()
        found = self.connection.execute(queries.count_statuses, {"workflow_id": workflow.id})
        return {row.status: row.n for row in found}

    def sub_workflows(self, workflow: Workflow) -> list[str]:
        found = self.connection.execute(queries.read_sub_workflows, {"workflow_id": workflow.id})
        return list(found.scalars())

    # ------------------------------------------------------------------ changing

    def change(self, entity: Workflow | StageExecution, **values: Any) -> None:
        for name, value in values.items():
            setattr(entity, name, value)
        changes = self._stage_changes if isinstance(entity, StageExecution) else self._workflow_changes
        changes.setdefault(entity.id, set()).update(values)

    def taken_refs(self, workflow: Workflow, refs: set[str]) -> set[str]:
        # Fresh identifiers need no look: a collision is a user's own choice of name.
        chosen = {ref for ref in refs if not is_id(ref)}
        if not chosen:
            return set()
        self._flush_stages()
        stages = tables.stages
        found = select(stages.c.ref_id).where(
            stages.c.workflow_id == workflow.id, stages.c.ref_id.in_(chosen)
        )
        return set(self.connection.execute(found).scalars())

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
            messages.c.stage_id == stage.id, messages.c.type == "RunHook"
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
        # The row of a workflow with many stages is wanted by all of them: everything else is written before.
        self._flush_stages()
        row = self.connection.execute(
            queries.release_branches, {"workflow_id": workflow.id, "ended": ended}
        ).one()
        workflow.live_branches, workflow.has_halted = row.live_branches, row.has_halted
        if row.live_branches == 0:
            # Nothing else is going on: what was loaded of it with the stage is still true.
            self._locked_workflows.add(workflow.id)
        return int(row.live_branches)

    def record(
        self,
        event: str,
        workflow_id: str,
        *,
        stage: StageExecution | None = None,
        task_id: str | None = None,
        old: WorkflowStatus | None = None,
        new: WorkflowStatus | None = None,
        reason: str = "",
        actor: str | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        row = {
            "id": new_id(),
            "workflow_id": workflow_id,
            "stage_id": None if stage is None else stage.id,
            "task_id": task_id,
            "generation": 0 if stage is None else stage.generation,
            "step": next(_steps) % _LARGEST_STEP,
            "event": event,
            "from_status": old,
            "to_status": new,
            "reason": reason or None,
            "actor": actor,
            "worker": self.worker,
            "details": details,
            "at": self.now,
        }
        self._history.append(row)
        if self._observed:
            workflow = self._workflows.get(workflow_id) or (None if stage is None else stage.execution)
            self.transitions.append(transition_of(row, workflow, stage))

    # ------------------------------------------------------------------ messages

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

    def _attempts_so_far(self, message: RunTask) -> dict[str, Any]:
        """A task that was parked or suspended goes on counting where it was."""
        stage = self._stages.get(message.stage_id)
        task = stage.task_by_id(message.task_id) if stage is not None else None
        return {} if task is None else {"attempts": task.attempts, "last_error": task.last_error}

    def _announce(self, row: dict[str, Any], delay: float) -> None:
        if delay <= 0:
            self.outgoing.append(outgoing(row))
        elif self.next_due is None or row["due_at"] < self.next_due:
            self.next_due = row["due_at"]

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

    def _label(self, message: Message) -> str:
        if not isinstance(message, StageLevel):
            workflow = self._workflows.get(getattr(message, "workflow_id", ""))
            return workflow.name if workflow is not None else ""
        stage = self._stages.get(message.stage_id)
        if stage is None:
            return ""
        label = f"{stage.execution.name} / {stage.name if stage.is_synthetic else stage.ref_id}"
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
            "last_error": error or self._row["last_error"],
        }
        self._new_messages.append(row)
        if waits_in is None:
            self._announce(row, delay)

    def stop_running(self, stage: StageExecution, *, force: bool) -> None:
        if stage.status is not WorkflowStatus.NOT_STARTED:
            self._stop([stage.id], force=force)

    def _stop(self, stage_ids: list[str], *, force: bool) -> None:
        self._new_messages = [
            row
            for row in self._new_messages
            if row["type"] not in _TASK_MESSAGES or row["stage_id"] not in stage_ids
        ]
        messages = tables.messages
        ours = messages.c.stage_id.in_(stage_ids)
        leased = messages.c.lease_owner.is_not(None) & ~messages.c.lease_owner.startswith(WAITS_IN)
        self.connection.execute(
            update(messages)
            .where(ours, messages.c.type == "RunTask", leased)
            .values(cancel="kill" if force else "ask")
        )
        self.connection.execute(delete(messages).where(ours, messages.c.type.in_(_TASK_MESSAGES), ~leased))

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

    def waiting(self, config_id: str, most: int) -> list[Workflow]:
        self.flush()
        found = self.connection.execute(queries.lock_waiting, {"config_id": config_id, "most": most}).all()
        return [self._adopt_locked(dict(row._mapping)) for row in found]

    def hold_slot(self, workflow: Workflow, held: bool) -> None:
        self._slot_changes[workflow.id] = self._slot_holders[workflow.id] = held

    def holds_slot(self, workflow: Workflow) -> bool:
        return self._slot_holders[workflow.id]

    # ------------------------------------------------------------------ writing

    def flush(self) -> None:
        """Write everything collected so far."""
        self._flush_stages()
        self._flush_workflows()
        self._insert(tables.messages, self._new_messages)
        self._insert(tables.history, self._history)
        self._new_messages, self._history = [], []

    def _insert(self, table: Table, new: list[dict[str, Any]]) -> None:
        if new:
            self.connection.execute(insert(table), new if len(new) > 1 else new[0])

    def _flush_stages(self) -> None:
        if self._new_stages:
            new = {row["id"]: row for row in self._new_stages}
            for stage_id in new.keys() & self._stage_changes.keys():
                # Changed since it was planned, in this same transaction.
                stage = self._stages[stage_id]
                for name in self._stage_changes.pop(stage_id):
                    new[stage_id][name] = rows.stage_column(stage, name)
            self._insert(tables.stages, list(new.values()))
            self._new_stages = []
        self._insert(tables.edges, self._new_edges)
        self._new_edges = []
        if self._stage_changes:
            columns = frozenset().union(*self._stage_changes.values())
            values = [
                {
                    "_id": stage_id,
                    **{name: rows.stage_column(self._stages[stage_id], name) for name in columns},
                }
                for stage_id in self._stage_changes
            ]
            self.connection.execute(queries.update_stage(columns), values if len(values) > 1 else values[0])
            self._stage_changes = {}

    def _flush_workflows(self) -> None:
        for workflow_id, count in self._branches.items():
            self.connection.execute(queries.add_branches, {"_id": workflow_id, "started": count})
        self._branches = {}
        for workflow_id in self._workflow_changes.keys() | self._slot_changes.keys():
            workflow = self._workflows[workflow_id]
            values = {
                name: rows.workflow_column(workflow, name)
                for name in self._workflow_changes.get(workflow_id, ())
            }
            if workflow_id in self._slot_changes:
                values["holds_slot"] = self._slot_changes[workflow_id]
            statement = queries.update_workflow(frozenset(values))
            self.connection.execute(statement, {"_id": workflow_id, **values})
        self._workflow_changes = {}
        self._slot_changes = {}
