"""SignalStage: wake a suspended task."""

from __future__ import annotations

from stabilize_celery.handlers.base import Handler, find_stage
from stabilize_celery.handlers.run_task import resume_with_signal
from stabilize_celery.handlers.transitions import SUB_WORKFLOW_ENDED, sub_workflow_repaired
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import SignalStage
from stabilize_celery.models.status import WorkflowStatus as S


class SignalStageHandler(Handler[SignalStage]):
    """One signal resumes one suspension.  No task waits: a persistent signal is kept, a transient one is lost."""

    message_type = SignalStage

    def handle(self, message: SignalStage, unit: Unit) -> None:
        stage = find_stage(message, unit)
        if stage is None:
            return
        suspended = next((task for task in stage.tasks if task.status is S.SUSPENDED), None)
        if stage.status is S.SUSPENDED and suspended is not None:
            resume_with_signal(unit, stage, suspended, message.signal_name, message.signal_data, message.user)
            return
        repaired = message.signal_name == SUB_WORKFLOW_ENDED and stage.status.is_complete
        if repaired and sub_workflow_repaired(unit, stage, message.signal_data):
            return
        ended = stage.status.is_complete or stage.execution.status.is_complete
        if message.persistent and not ended:
            unit.keep_signal(stage, message.signal_name, message.signal_data, message.user)
            outcome = "kept until the stage suspends"
        else:
            outcome = f"lost: the stage is {stage.status}"
        unit.record(
            "signal",
            message.workflow_id,
            stage=stage,
            reason=f"signal {message.signal_name} {outcome}",
            actor=message.user or None,
        )
