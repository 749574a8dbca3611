"""RestartStage: a stage that has ended runs again, and everything downstream of it."""

from __future__ import annotations

from stabilize_celery.dag.branches import restart_region
from stabilize_celery.handlers.base import Handler, find_stage, refused
from stabilize_celery.handlers.branches import accept_failures, resume_progress
from stabilize_celery.handlers.slots import admit
from stabilize_celery.handlers.transitions import (
    CANCELED_BY,
    SUB_WORKFLOW_KEY,
    remove_children,
    reset_stage,
    revive_workflow,
    transition,
    update_context,
)
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import RestartStage
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.workflow import Workflow


class RestartStageHandler(Handler[RestartStage]):
    """Of a synthetic stage, its parent is restarted.  An execution that had ended needs a slot again."""

    message_type = RestartStage

    def handle(self, message: RestartStage, unit: Unit) -> None:
        slots = unit.slots(message.pipeline_config_id) if message.pipeline_config_id else None
        found = find_stage(message, unit)
        if found is None:
            return
        workflow = unit.whole(message.workflow_id)
        assert workflow is not None
        stage: StageExecution = found
        while (parent := stage.parent()) is not None:
            stage = parent
        if not stage.status.is_complete or workflow.is_canceled:
            state = "the workflow was canceled" if workflow.is_canceled else f"the stage is {stage.status}"
            refused(message, unit, state, stage)
            return
        actor = message.user or None
        reason = f"restart from {stage.ref_id}"
        region = _region(workflow, stage)
        for each in workflow.top_level_stages():
            if each.ref_id in region and (each.status is not S.NOT_STARTED or each.generation):
                remove_children(unit, each, reason, actor)
                reset_stage(unit, each, reason, actor)
        kept = {SUB_WORKFLOW_KEY: message.sub_workflow_id} if message.sub_workflow_id is not None else {}
        details = {"restartedBy": message.user, "restartTime": unit.now.isoformat()}
        update_context(unit, stage, {"restartDetails": details, **kept})
        # What else has failed would end it before the restarted stage has run.
        accept_failures(unit, workflow)
        if workflow.status.is_complete:
            revive_workflow(unit, workflow, reason, actor)
            if slots is not None and not admit(unit, workflow, slots):
                resume_progress(unit, workflow)
                return
            transition(unit, workflow, S.RUNNING, reason, actor=actor)
        resume_progress(unit, workflow)


def _region(workflow: Workflow, stage: StageExecution) -> set[str]:
    stages = workflow.top_level_stages()
    canceled_by = {s.ref_id: s.context.get(CANCELED_BY, ()) for s in stages if s.status is S.CANCELED}
    return restart_region({s.ref_id: s.requisite_stage_ref_ids for s in stages}, stage.ref_id, canceled_by)
