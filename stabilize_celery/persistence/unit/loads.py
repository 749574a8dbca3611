"""What a unit of work knows: workflows and stages, loaded and locked once, one object each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import ParentTask, Workflow
from stabilize_celery.persistence import nested, queries, rows
from stabilize_celery.persistence.prepared import Rows
from stabilize_celery.persistence.statements import row_of, rows_of
from stabilize_celery.persistence.unit.writes import Writes
from stabilize_celery.persistence.views import read_inherited


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
                self.connection, nested.read_inner, {"workflow_id": workflow_id}
            )
        return [row["id"] for row in self._inner[workflow_id] if row["parent"]["stage_id"] == stage.id]

    def waiting_task(self, workflow: Workflow) -> ParentTask | None:
        row = row_of(self.connection, nested.lock_parent, {"workflow_id": workflow.id})
        return None if row is None or row["parent"] is None else ParentTask(**row["parent"])

    def outer_is_paused(self, workflow: Workflow) -> bool:
        assert workflow.parent is not None
        outer = row_of(self.connection, nested.read_outer, {"workflow_id": workflow.parent.workflow_id})
        return outer is not None and outer["status"] is WorkflowStatus.PAUSED

    def is_wanted(self, workflow: Workflow) -> bool:
        parent = workflow.parent
        if parent is None:
            return True
        outer = row_of(self.connection, nested.lock_outer_stage, {"stage_id": parent.stage_id})
        if outer is None or outer["generation"] != parent.generation:
            return False
        status: WorkflowStatus = outer["status"]
        return not status.is_complete

    # ------------------------------------------------------------------ stages

    def adopt(self, stage: Rows, following: Rows | None = None) -> None:
        """Take over what was read ahead, see :func:`stabilize_celery.persistence.read_ahead.ahead_of`."""
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
