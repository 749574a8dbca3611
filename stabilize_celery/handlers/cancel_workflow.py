"""CancelWorkflow: everything that has not ended is canceled."""

from __future__ import annotations

from stabilize_celery.handlers.base import Handler, refused
from stabilize_celery.handlers.transitions import cancel_stage, end_workflow
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CancelWorkflow, InvalidWorkflowId
from stabilize_celery.models.status import WorkflowStatus as S


class CancelWorkflowHandler(Handler[CancelWorkflow]):
    """Stages that have ended keep their status; running tasks are told to stop."""

    message_type = CancelWorkflow

    def handle(self, message: CancelWorkflow, unit: Unit) -> None:
        workflow = unit.whole(message.workflow_id)
        if workflow is None:
            unit.send(InvalidWorkflowId(workflow_id=message.workflow_id, detail=message.type))
            return
        if workflow.status.is_complete:
            refused(message, unit, f"the workflow is {workflow.status}")
            return
        unit.change(
            workflow,
            is_canceled=True,
            canceled_by=message.user or None,
            cancellation_reason=message.reason or None,
        )
        if workflow.start_time is not None:
            reason = message.reason or "the workflow was canceled"
            for stage in workflow.stages:
                if not stage.status.is_complete:
                    cancel_stage(unit, stage, reason, message.user or None, force=message.force)
        end_workflow(unit, workflow, S.CANCELED, message.reason, actor=message.user or None)
        for child in unit.sub_workflows(workflow):
            unit.send(
                CancelWorkflow(
                    workflow_id=child,
                    user=message.user,
                    reason=f"workflow {workflow.name} was canceled",
                    force=message.force,
                )
            )
