"""The unit of work: one transaction on one workflow, from the message taken to the messages sent.

It implements :class:`stabilize_celery.handlers.unit.Unit`.  Entities are loaded once and kept (``unit/loads.py``), messages
are sorted by who handles them (``unit/sends.py``), and changes are collected and written together (``unit/writes.py``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, insert, or_, select, update

from stabilize_celery.messages import Message
from stabilize_celery.models.ids import is_id, new_id
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.observe import Observer
from stabilize_celery.persistence import queries, rows, tables
from stabilize_celery.persistence.closure import lock_behind
from stabilize_celery.persistence.slots import LockedSlots, lock_slots
from stabilize_celery.persistence.snapshots import snapshot_of
from stabilize_celery.persistence.statements import row_of
from stabilize_celery.persistence.unit.sends import Sends
from stabilize_celery.settings import Settings
from stabilize_celery.stages.builder import StageDefinitionBuilderFactory
from stabilize_celery.tasks.outcome import Attempt
from stabilize_celery.tasks.registry import TaskRegistry


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
