"""What a unit of work has changed, collected and written together."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from stabilize_celery.errors import storable_text
from stabilize_celery.models.ids import new_id
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.observe import Transition, transition_of
from stabilize_celery.persistence import queries, rows, tables
from stabilize_celery.persistence.statements import insert_rows, write
from stabilize_celery.redaction import DEFAULT_KEYS, redact, redact_text

#: Orders what one process writes in the same moment; times order the rest.
_steps = itertools.count()
_LARGEST_STEP = 2**31


class Writes:
    """The entities of the transaction, one object each, and what is to be written of them."""

    #: What the history, which is for people, may not tell.
    redact_keys: tuple[str, ...] = DEFAULT_KEYS

    def __init__(self, connection: Connection, now: datetime, worker: str, observed: bool) -> None:
        self.connection = connection
        self.now = now
        self.clock: Callable[[], datetime] = lambda: now
        self.worker = worker
        #: For observers, if there are any.
        self.transitions: list[Transition] = []
        self._observed = observed
        self._workflows: dict[str, Workflow] = {}
        self._stages: dict[str, StageExecution] = {}
        self._by_ref: dict[str, StageExecution] = {}
        self._locked_workflows: set[str] = set()
        self._stage_changes: dict[str, set[str]] = {}
        self._workflow_changes: dict[str, set[str]] = {}
        self._slot_changes: dict[str, bool] = {}
        self._branches: dict[str, int] = {}
        self._new_stages: list[dict[str, Any]] = []
        self._new_edges: list[dict[str, Any]] = []
        self._new_messages: list[dict[str, Any]] = []
        self._history: list[dict[str, Any]] = []

    def change(self, entity: Workflow | StageExecution, **values: Any) -> None:
        for name, value in values.items():
            setattr(entity, name, value)
        changes = self._stage_changes if isinstance(entity, StageExecution) else self._workflow_changes
        changes.setdefault(entity.id, set()).update(values)

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
            "reason": self._shown(reason) or None,
            "actor": self._shown(actor),
            "worker": self.worker,
            "details": redact(details, self.redact_keys) if details else details,
            # Not when the transaction began: it may have waited for one that moved the same stage.
            "at": self.clock(),
        }
        self._history.append(row)
        if self._observed:
            workflow = self._workflows.get(workflow_id) or (None if stage is None else stage.execution)
            self.transitions.append(transition_of(row, workflow, stage))

    def _shown(self, said: str | None) -> str | None:
        return storable_text(redact_text(said, self.redact_keys)) if said else said

    def flush(self) -> None:
        """Write everything collected so far."""
        self._flush_stages()
        self._flush_workflows()
        insert_rows(self.connection, tables.messages, self._new_messages)
        insert_rows(self.connection, tables.history, self._history)
        self._new_messages, self._history = [], []

    def _flush_stages(self) -> None:
        if self._new_stages:
            new = {row["id"]: row for row in self._new_stages}
            for stage_id in new.keys() & self._stage_changes.keys():
                # Changed since it was planned, in this same transaction.
                stage = self._stages[stage_id]
                for name in self._stage_changes.pop(stage_id):
                    new[stage_id][name] = rows.stage_column(stage, name)
            insert_rows(self.connection, tables.stages, list(new.values()))
            self._new_stages = []
        insert_rows(self.connection, tables.edges, self._new_edges)
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
            write(self.connection, queries.update_stage(columns), values)
            self._stage_changes = {}

    def _flush_workflows(self) -> None:
        for workflow_id, count in self._branches.items():
            write(self.connection, queries.add_branches, [{"_id": workflow_id, "started": count}])
            self._workflows[workflow_id].live_branches += count
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
            write(self.connection, statement, [{"_id": workflow_id, **values}])
        self._workflow_changes = {}
        self._slot_changes = {}
