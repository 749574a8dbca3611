"""RestartStage: a stage that has ended runs again, and everything downstream of it."""

from __future__ import annotations

from stabilize_celery.dag.topology import downstream_closure
from stabilize_celery.handlers.base import Handler, find_stage, refused
from stabilize_celery.handlers.branches import resume_progress
from stabilize_celery.handlers.lifecycle import remove_children, reset_stage, revive_workflow, transition
from stabilize_celery.handlers.slots import admit
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import RestartStage
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S


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
        requires = {s.ref_id: s.requisite_stage_ref_ids for s in workflow.top_level_stages()}
        region = downstream_closure(requires, stage.ref_id) | {stage.ref_id}
        for each in workflow.top_level_stages():
            if each.ref_id in region and (each.status is not S.NOT_STARTED or each.generation):
                remove_children(unit, each, reason, actor)
                reset_stage(unit, each, reason, actor)
        unit.change(
            stage,
            context={
                **stage.context,
                "restartDetails": {"restartedBy": message.user, "restartTime": unit.now.isoformat()},
            },
        )
        if workflow.status.is_complete:
            revive_workflow(unit, workflow, reason, actor)
            if slots is not None and not admit(unit, workflow, slots):
                resume_progress(unit, workflow)
                return
            transition(unit, workflow, S.RUNNING, reason, actor=actor)
        # Another stage that failed at the same time would end it before the restarted one has run.
        resume_progress(unit, workflow, old_failures_count=False)
