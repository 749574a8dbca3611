"""StartWaitingWorkflows: give free slots of a configuration to executions that wait for one."""

from __future__ import annotations

from stabilize_celery.handlers.base import Handler
from stabilize_celery.handlers.transitions import transition
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CancelWorkflow, ResumeWorkflow, StartWaitingWorkflows, StartWorkflow
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.workflow import Workflow

#: Without a limit everybody who waits is let in, this many in one transaction.
_BATCH = 500


class StartWaitingWorkflowsHandler(Handler[StartWaitingWorkflows]):
    """The oldest first; or, when the configuration does not keep waiting executions, the newest, and the others go."""

    message_type = StartWaitingWorkflows

    def handle(self, message: StartWaitingWorkflows, unit: Unit) -> None:
        config_id = message.pipeline_config_id
        slots = unit.slots(config_id)
        free = _BATCH if slots.limit is None else slots.limit - slots.taken
        if free <= 0:
            return
        if slots.keep_waiting:
            chosen = unit.waiting(config_id, min(free, _BATCH))
        else:
            waiting = unit.waiting(config_id, _BATCH)
            # With more than that waiting, the newest are not among them.
            chosen = waiting[-free:] if len(waiting) < _BATCH else []
            for workflow in waiting[: len(waiting) - len(chosen)]:
                _send_away(unit, workflow)
            if len(waiting) == _BATCH:
                unit.send(message)
        for workflow in chosen:
            _let_in(unit, workflow)
        if len(chosen) == _BATCH:
            unit.send(message)


_PURGED = "a newer execution of its configuration was started in its place (keepWaitingPipelines is off)"


def _send_away(unit: Unit, workflow: Workflow) -> None:
    """It may have started before it was paused or restarted: canceling it is work of its own."""
    unit.change(workflow, is_canceled=True)
    unit.send(CancelWorkflow(workflow_id=workflow.id, user="system", reason=_PURGED))


def _let_in(unit: Unit, workflow: Workflow) -> None:
    unit.hold_slot(workflow, True)
    if workflow.start_time is None:
        transition(unit, workflow, S.NOT_STARTED, "has a slot")
        unit.send(StartWorkflow(workflow_id=workflow.id, pipeline_config_id=workflow.pipeline_config_id))
    else:
        # It had been started before: resumed or restarted while no slot was free.
        unit.send(
            ResumeWorkflow(
                workflow_id=workflow.id, pipeline_config_id=workflow.pipeline_config_id, admitted=True
            )
        )
