"""Concurrency limits: who may run, who waits, who is sent away.

Slots are given out under the lock of one row per configuration, so they are never over-granted; every way in which an
execution can stop holding its slot sends StartWaitingWorkflows, so no execution polls for one.
"""

from __future__ import annotations

from stabilize_celery.handlers.transitions import transition
from stabilize_celery.handlers.unit import Slots, Unit
from stabilize_celery.messages import StartWaitingWorkflows
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.workflow import Workflow


def admit(unit: Unit, workflow: Workflow, slots: Slots) -> bool:
    """Give a slot to an execution, or let it wait; returns whether it has one.

    The limit of the newest execution of the configuration counts (decision 12).  One that comes while others wait
    queues behind them.
    """
    assert workflow.pipeline_config_id is not None
    slots.observe(workflow)
    free = slots.limit is None or slots.taken < slots.limit
    if free and not unit.waiting(workflow.pipeline_config_id, 1):
        unit.hold_slot(workflow, True)
        return True
    transition(
        unit,
        workflow,
        S.BUFFERED,
        f"waits for a slot of {workflow.pipeline_config_id}: {slots.taken} of {slots.limit} taken",
    )
    if free:
        unit.send(StartWaitingWorkflows(pipeline_config_id=workflow.pipeline_config_id))
    return False
