"""PauseWorkflow: task bodies that run finish; the next ones are parked until the workflow is resumed."""

from __future__ import annotations

from stabilize_celery.handlers.base import Handler, find_workflow, refused
from stabilize_celery.handlers.lifecycle import give_back_slot, transition
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import PauseWorkflow
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.trigger import PausedDetails


class PauseWorkflowHandler(Handler[PauseWorkflow]):
    """A paused execution holds no slot of its configuration; its sub-workflows pause with it."""

    message_type = PauseWorkflow

    def handle(self, message: PauseWorkflow, unit: Unit) -> None:
        workflow = find_workflow(message, unit)
        if workflow is None:
            return
        if workflow.status.is_complete or workflow.status is S.PAUSED:
            refused(message, unit, f"the workflow is {workflow.status}")
            return
        before = workflow.paused.paused_ms if workflow.paused is not None else 0
        transition(
            unit,
            workflow,
            S.PAUSED,
            "paused",
            actor=message.user or None,
            paused=PausedDetails(paused_by=message.user, pause_time=unit.now, paused_ms=before),
        )
        give_back_slot(unit, workflow)
        for child in unit.sub_workflows(workflow):
            unit.send(PauseWorkflow(workflow_id=child, user=message.user))
