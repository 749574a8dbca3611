"""CompleteWorkflow: see whether a workflow has ended, and how."""

from __future__ import annotations

from stabilize_celery.dag.outcome import workflow_outcome
from stabilize_celery.handlers.base import Handler, find_workflow
from stabilize_celery.handlers.transitions import CANCELED_BY, cancel_stage, end_workflow, update_context
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CompleteWorkflow
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.workflow import Workflow


class CompleteWorkflowHandler(Handler[CompleteWorkflow]):
    """When no branch is left it ends; a TERMINAL stage ends it at once, and cancels what is still active."""

    message_type = CompleteWorkflow

    def handle(self, message: CompleteWorkflow, unit: Unit) -> None:
        workflow = find_workflow(message, unit)
        if workflow is None or workflow.status is not S.RUNNING:
            # A paused one is looked at again when it is resumed.
            return
        if not message.halted and not workflow.has_halted:
            if workflow.live_branches == 0:
                end_workflow(unit, workflow, S.SUCCEEDED)
            return
        if not message.halted:
            # Its stages are looked at, whose turn to be locked is before the workflow's: no other message may be at work.
            if workflow.live_branches == 0:
                unit.send(CompleteWorkflow(workflow_id=workflow.id, halted=True))
            return
        whole = unit.whole(workflow.id)
        assert whole is not None
        statuses = {stage.status for stage in whole.top_level_stages()}
        ended = workflow.live_branches == 0
        if any(stage.ends_workflow for stage in whole.top_level_stages()):
            self._fail(unit, whole)
        elif ended and S.TERMINAL in statuses:
            end_workflow(unit, whole, S.TERMINAL, _failed(whole))
        elif ended:
            end_workflow(unit, whole, workflow_outcome(statuses, fail_at_end=_fails_at_end(whole)))

    def _fail(self, unit: Unit, workflow: Workflow) -> None:
        failed = [s.ref_id for s in workflow.top_level_stages() if s.ends_workflow]
        reason = f"stage {failed[0]} failed"
        for stage in workflow.stages:
            if not stage.status.is_complete and stage.status is not S.NOT_STARTED:
                if not stage.is_synthetic:
                    # For a restart of what failed, which lets them run again.
                    update_context(unit, stage, {CANCELED_BY: failed})
                cancel_stage(unit, stage, reason, "system")
        unit.change(workflow, has_halted=True)
        end_workflow(unit, workflow, S.TERMINAL, reason)


def _failed(workflow: Workflow) -> str:
    failed = next(stage for stage in workflow.top_level_stages() if stage.status is S.TERMINAL)
    return f"stage {failed.ref_id} failed"


def _fails_at_end(workflow: Workflow) -> bool:
    return any(
        stage.status is S.STOPPED and stage.own_context.get("completeOtherBranchesThenFail")
        for stage in workflow.top_level_stages()
    )
