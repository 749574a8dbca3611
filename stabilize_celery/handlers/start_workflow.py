"""StartWorkflow: begin an execution, or let it wait for a slot of its configuration."""

from __future__ import annotations

from stabilize_celery.handlers.base import Handler, find_workflow
from stabilize_celery.handlers.branches import resume_progress, start_all
from stabilize_celery.handlers.slots import admit
from stabilize_celery.handlers.transitions import end_workflow, transition
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CancelWorkflow, StartWorkflow
from stabilize_celery.models.status import WorkflowStatus as S


class StartWorkflowHandler(Handler[StartWorkflow]):
    """Start the stages that require nothing."""

    message_type = StartWorkflow

    def handle(self, message: StartWorkflow, unit: Unit) -> None:
        slots = unit.slots(message.pipeline_config_id) if message.pipeline_config_id else None
        workflow = find_workflow(message, unit)
        if workflow is None:
            return
        if workflow.status is not S.NOT_STARTED:
            return
        if workflow.is_canceled:
            end_workflow(unit, workflow, S.CANCELED, workflow.cancellation_reason or "")
            return
        if not unit.is_wanted(workflow):
            end_workflow(unit, workflow, S.CANCELED, "the stage that started it has ended", "system")
            return
        if workflow.start_time_expiry is not None and workflow.start_time_expiry <= unit.now:
            unit.send(
                CancelWorkflow(workflow_id=workflow.id, user="system", reason="its start time has expired")
            )
            return
        if slots is not None and not unit.holds_slot(workflow) and not admit(unit, workflow, slots):
            return
        transition(unit, workflow, S.RUNNING, start_time=unit.now)
        stages = unit.initial_stages(workflow)
        if any(stage.status is not S.NOT_STARTED for stage in stages):
            # Some were canceled or skipped before the workflow started.
            resume_progress(unit, unit.whole(workflow.id) or workflow)
            return
        unit.change(workflow, live_branches=len(stages))
        start_all(unit, stages)
