"""What a unit of work knows: workflows and stages, loaded and locked once, one object each."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from stabilize_celery.context.sources import producers
from stabilize_celery.context.view import inherited_values
from stabilize_celery.errors import storable_text
from stabilize_celery.models.ids import new_id
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import ParentTask, Workflow
from stabilize_celery.observe import Transition, transition_of
from stabilize_celery.persistence import queries, rows, tables
from stabilize_celery.persistence.pipeline import Rows, insert_rows, row_of, rows_of, write
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


def read_inherited(
    connection: Connection,
    stage: StageExecution,
    parents: list[StageExecution],
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Everything ``stage`` sees that is not its own; ``known`` are outputs, by stage id, that need not be read."""
    known = known or {}
    needed = producers(stage.sources).union(*(producers(parent.sources) for parent in parents))
    outputs = {stage_id: known[stage_id] for stage_id in needed if stage_id in known}
    outputs |= read_outputs(connection, needed - outputs.keys())
    reduced = {each.id: _reduced(connection, each) for each in (stage, *parents) if each.output_reducers}
    return inherited_values(stage, parents, outputs, reduced)


def read_outputs(connection: Connection, stage_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The outputs of some stages, by id."""
    found: dict[str, dict[str, Any]] = {}
    for batch in queries.chunks(sorted(stage_ids)):
        if len(batch) == 1:
            rows = rows_of(connection, queries.read_one_output, {"stage_id": batch[0]})
            found.update((row["id"], row["outputs"]) for row in rows)
        else:
            many = connection.execute(queries.read_outputs, {"stage_ids": batch})
            found.update((row.id, row.outputs) for row in many)
    return found


def _reduced(connection: Connection, stage: StageExecution) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = defaultdict(list)
    rows = rows_of(connection, queries.read_upstream_outputs, {"stage_id": stage.id})
    for row in sorted(rows, key=lambda row: list(row["rank"])):
        for key in stage.output_reducers:
            if key in row["outputs"]:
                values[key].append(row["outputs"][key])
    return dict(values)


class Loads(Writes):
    """Loading; what is read after a change is written first."""

    def __init__(self, connection: Connection, now: datetime, worker: str, observed: bool) -> None:
        super().__init__(connection, now, worker, observed)
        #: Several stages that follow one are locked: completing a stage now would lock them out of their order.
        self._wide = False
        self._with_context: set[str] = set()
        self._upstreams: dict[str, list[StageExecution]] = {}
        self._inner: dict[str, Rows] = {}
        self._slot_holders: dict[str, bool] = {}
        #: Read and locked already: what follows a stage, by its id.
        self._following: dict[str, Rows] = {}

    # ------------------------------------------------------------------ workflows

    def workflow(self, workflow_id: str) -> Workflow | None:
        if workflow_id not in self._locked_workflows:
            self._flush_workflows()
            row = row_of(self.connection, queries.lock_workflow, {"workflow_id": workflow_id})
            if row is None:
                return None
            self._adopt_locked(row)
        return self._workflows[workflow_id]

    def _adopt_locked(self, row: dict[str, Any]) -> Workflow:
        self._locked_workflows.add(row["id"])
        self._slot_holders[row["id"]] = row["holds_slot"]
        return self._adopt_workflow(rows.workflow_from_row(row))

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
        found = rows_of(self.connection, queries.lock_all_stages, {"workflow_id": workflow_id})
        workflow = self.workflow(workflow_id)
        if workflow is None:
            return None
        workflow.stages = [self._adopt(row, workflow) for row in found]
        refs = {stage.id: stage for stage in workflow.stages}
        for edge in rows_of(self.connection, queries.read_edges, {"workflow_id": workflow_id}):
            upstream, downstream = refs.get(edge["upstream_id"]), refs.get(edge["downstream_id"])
            if upstream is not None and downstream is not None:
                downstream.requisite_stage_ref_ids.add(upstream.ref_id)
        return workflow

    def waiting(self, config_id: str, most: int) -> list[Workflow]:
        self.flush()
        found = rows_of(self.connection, queries.lock_waiting, {"config_id": config_id, "most": most})
        return [self._adopt_locked(row) for row in found]

    def statuses(self, workflow: Workflow) -> dict[WorkflowStatus, int]:
        self.flush()
        found = rows_of(self.connection, queries.count_statuses, {"workflow_id": workflow.id})
        return {row["status"]: row["n"] for row in found}

    def sub_workflows(self, workflow: Workflow) -> list[str]:
        found = rows_of(self.connection, queries.read_sub_workflows, {"workflow_id": workflow.id})
        return [row["id"] for row in found]

    def inner_workflows(self, stage: StageExecution) -> list[str]:
        workflow_id = stage.execution.id
        if workflow_id not in self._inner:
            self._inner[workflow_id] = rows_of(
                self.connection, queries.read_inner, {"workflow_id": workflow_id}
            )
        return [row["id"] for row in self._inner[workflow_id] if row["parent"]["stage_id"] == stage.id]

    def waiting_task(self, workflow: Workflow) -> ParentTask | None:
        row = row_of(self.connection, queries.lock_parent, {"workflow_id": workflow.id})
        return None if row is None or row["parent"] is None else ParentTask(**row["parent"])

    def outer_is_paused(self, workflow: Workflow) -> bool:
        assert workflow.parent is not None
        outer = row_of(self.connection, queries.read_outer, {"workflow_id": workflow.parent.workflow_id})
        return outer is not None and outer["status"] is WorkflowStatus.PAUSED

    def is_wanted(self, workflow: Workflow) -> bool:
        parent = workflow.parent
        if parent is None:
            return True
        outer = row_of(self.connection, queries.lock_outer_stage, {"stage_id": parent.stage_id})
        if outer is None or outer["generation"] != parent.generation:
            return False
        status: WorkflowStatus = outer["status"]
        return not status.is_complete

    # ------------------------------------------------------------------ stages

    def adopt(self, stage: Rows, following: Rows | None = None) -> None:
        """Take over what was read ahead, see :func:`stabilize_celery.persistence.messages.ahead_of`."""
        for row in stage:
            self._adopt_with_header(row)
            if following is not None:
                self._following[row["id"]] = following

    def stage(self, stage_id: str) -> StageExecution | None:
        if stage_id not in self._stages:
            row = row_of(self.connection, queries.lock_stage, {"stage_id": stage_id})
            if row is None:
                return None
            self._adopt_with_header(row)
        return self._stages[stage_id]

    def stage_by_ref(self, workflow: Workflow, ref_id: str) -> StageExecution | None:
        if ref_id in self._by_ref and self._by_ref[ref_id].execution.id == workflow.id:
            return self._by_ref[ref_id]
        self._flush_stages()
        of_ref = {"workflow_id": workflow.id, "ref_id": ref_id}
        row = row_of(self.connection, queries.lock_stage_of_ref, of_ref)
        return None if row is None else self._adopt_with_header(row)

    def _adopt_with_header(self, row: dict[str, Any]) -> StageExecution:
        workflow = self._workflows.get(row["workflow_id"])
        if workflow is None:
            workflow = self._adopt_workflow(rows.workflow_from_row(queries.header_of(row)))
        return self._adopt(row, workflow)

    def _adopt(self, row: Mapping[str, Any], workflow: Workflow) -> StageExecution:
        known = self._stages.get(row["id"])
        if known is None:
            known = self._stages[row["id"]] = rows.stage_from_row(row)
            known.execution = workflow
            self._by_ref[known.ref_id] = known
        return known

    def stages(self, workflow_id: str, stage_ids: list[str]) -> list[StageExecution]:
        header = row_of(self.connection, queries.read_workflow, {"workflow_id": workflow_id})
        if header is None:
            return []
        workflow = self._adopt_workflow(rows.workflow_from_row(header))
        self._with_context.add(workflow_id)
        parameters = {"workflow_id": workflow_id, "stage_ids": stage_ids}
        found = self.connection.execute(queries.lock_stages, parameters).all()
        self._wide = True
        stages = [self._adopt(dict(row._mapping), workflow) for row in found]
        self._upstreams |= {stage.id: [] for stage in stages}
        for row in self.connection.execute(queries.read_sources_of_many, {"stage_ids": stage_ids}):
            light = dict(row._mapping)
            self._upstreams[light.pop("downstream_id")].append(self._light(light))
        return stages

    def initial_stages(self, workflow: Workflow) -> list[StageExecution]:
        found = rows_of(self.connection, queries.lock_initial_stages, {"workflow_id": workflow.id})
        self._wide = self._wide or len(found) > 1
        return [self._adopt(row, workflow) for row in found]

    def downstream(self, stage: StageExecution) -> list[StageExecution]:
        if self._new_edges:
            # Planned and ended in the same transaction.
            self._flush_stages()
            self._following.pop(stage.id, None)
        found = self._following.pop(stage.id, None)
        if found is None:
            found = rows_of(self.connection, queries.lock_downstream, {"stage_id": stage.id})
        self._wide = self._wide or len(found) > 1
        following = [self._adopt(row, stage.execution) for row in found]
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
        found = rows_of(self.connection, queries.read_upstream_sources, {"stage_id": stage.id})
        return [self._light(row) for row in found]

    def children(self, stage: StageExecution) -> list[StageExecution]:
        self._flush_stages()
        found = rows_of(self.connection, queries.read_children, {"stage_id": stage.id})
        return [self._light(row) for row in found]

    def _light(self, row: Mapping[str, Any]) -> StageExecution:
        known = self._stages.get(row["id"])
        return known if known is not None else StageExecution(**row)

    # ------------------------------------------------------------------ what stages see

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
        known = {stage_id: known.outputs for stage_id, known in self._stages.items()}
        return read_inherited(self.connection, stage, parents, known)

    def _load_context(self, workflow: Workflow) -> None:
        """Builders and conditions may look at what the workflow was started with; nothing else needs it."""
        if workflow.id in self._locked_workflows or workflow.id in self._with_context:
            return
        self._with_context.add(workflow.id)
        row = row_of(self.connection, queries.read_workflow, {"workflow_id": workflow.id})
        assert row is not None
        full = rows.workflow_from_row(row)
        workflow.context, workflow.trigger = full.context, full.trigger

    def stage_names(self, stage: StageExecution) -> dict[str, Any]:
        self._flush_stages()
        parameters = {"stage_id": stage.id}
        found = rows_of(self.connection, queries.read_upstream_sources, parameters)
        read = rows_of(self.connection, queries.read_upstream_outputs, parameters)
        outputs = {row["id"]: row["outputs"] for row in read}
        return {row["ref_id"]: outputs[row["id"]] for row in found}


_PLAIN = ("id", "ref_id", "type", "name", "outputs", "generation", "parent_stage_id")


def snapshot_of(stage: StageExecution, inherited: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON form of a stage, with what it sees of others."""
    return {
        **{name: getattr(stage, name) for name in _PLAIN},
        "status": stage.status.name,
        "context": stage.own_context,
        "inherited": dict(inherited),
        "tasks": rows.stage_column(stage, "tasks"),
    }


def stage_of(snapshot: Mapping[str, Any], workflow: Workflow) -> StageExecution:
    """The stage, ready to be shown to a hook that is called after its stage was reset or is gone."""
    stage = StageExecution(
        **{name: snapshot[name] for name in _PLAIN},
        status=WorkflowStatus[snapshot["status"]],
        context={**snapshot["inherited"], **snapshot["context"]},
        tasks=[rows.task_from_json(task) for task in snapshot["tasks"]],
    )
    stage._own_context = snapshot["context"]
    stage.execution = workflow
    workflow.stages = [stage]
    return stage


def lend(stage: StageExecution, retrieve: Callable[[str], Workflow]) -> None:
    """Let user code look from a stage at its whole workflow, which is read when it first does.

    Args:
        stage: with its workflow, in which there are only this stage and its parents.
        retrieve: reads a workflow by its id.
    """
    workflow = stage.execution
    known = {each.id: each for each in workflow.stages}

    def read() -> list[StageExecution]:
        found: list[StageExecution] = []
        for other in retrieve(workflow.id).stages:
            ours = known.pop(other.id, other)
            ours.__dict__["requisite_stage_ref_ids"] = other.requisite_stage_ref_ids
            ours.execution = workflow
            found.append(ours)
        # What was reset since then is gone from the store, but user code was given it.
        return [*found, *known.values()]

    workflow.__class__ = _LentWorkflow
    workflow.__dict__["_read"] = read
    for each in known.values():
        each.__class__ = _LentStage


class _LentWorkflow(Workflow):
    """Its stages are read when they are first asked for."""

    @property
    def stages(self) -> list[StageExecution]:
        read = self.__dict__.pop("_read", None)
        if read is not None:
            try:
                self.__dict__["stages"] = read()
            except BaseException:
                self.__dict__["_read"] = read
                raise
        stages: list[StageExecution] = self.__dict__["stages"]
        return stages

    @stages.setter
    def stages(self, stages: list[StageExecution]) -> None:
        self.__dict__["stages"] = stages


class _LentStage(StageExecution):
    """A stage of such a workflow, whose row does not say what it requires."""

    @property
    def requisite_stage_ref_ids(self) -> set[str]:
        self.execution.stages  # noqa: B018
        required: set[str] = self.__dict__["requisite_stage_ref_ids"]
        return required

    @requisite_stage_ref_ids.setter
    def requisite_stage_ref_ids(self, required: set[str]) -> None:
        self.__dict__["requisite_stage_ref_ids"] = required
