"""PauseWorkflow: task bodies that run finish; the next ones are parked until the workflow is resumed."""

from __future__ import annotations

from stabilize_celery.handlers.base import Handler, find_workflow, refused
from stabilize_celery.handlers.transitions import give_back_slot, transition
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import PauseWorkflow, ResumeWorkflow
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.workflow import PausedDetails, Workflow

#: How the history begins to tell that a workflow was not paused by itself.
PAUSED_WITH = "paused with the workflow"


def is_stale(message: PauseWorkflow | ResumeWorkflow, workflow: Workflow, unit: Unit) -> bool:
    """Whether a later control has overtaken this one; says so in the history."""
    pauses = isinstance(message, PauseWorkflow)
    if message.mark is not None:
        stale = message.mark != workflow.pause_mark
    elif workflow.parent is not None:
        # Messages to an inner workflow may be lost, sent again and overtaken: the last one finds how it is by now.
        stale = unit.outer_is_paused(workflow) is not pauses
    else:
        stale = False
    if stale:
        refused(message, unit, "another pause or resume came first")
    return stale


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
        if is_stale(message, workflow, unit):
            return
        with_outer = message.mark is None and workflow.parent is not None
        before = workflow.paused.paused_ms if workflow.paused is not None else 0
        transition(
            unit,
            workflow,
            S.PAUSED,
            f"{PAUSED_WITH} around it" if with_outer else "paused",
            actor=message.user or None,
            paused=PausedDetails(paused_by=message.user, pause_time=unit.now, paused_ms=before),
        )
        give_back_slot(unit, workflow)
        for child in unit.sub_workflows(workflow):
            unit.send(PauseWorkflow(workflow_id=child, user=message.user))
