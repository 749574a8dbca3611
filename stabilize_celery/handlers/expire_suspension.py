"""Time limits: a suspended task got no signal in time, or a stage took longer than it may, and fails."""

from __future__ import annotations

from stabilize_celery.errors import TaskTimeoutError, describe_error
from stabilize_celery.handlers.base import Handler, find_stage, find_task, stage_ids
from stabilize_celery.handlers.transitions import (
    TIMED_OUT,
    abandon_work,
    active_tasks,
    cancel_stage,
    descendants,
    finish_task,
    log_failure,
    send_hooks,
    transition,
    update_context,
    wake,
)
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CompleteStage, CompleteTask, ExpireStage, ExpireSuspension
from stabilize_celery.models.stage import DEADLINE_KEY, Phase, StageExecution
from stabilize_celery.models.status import WorkflowStatus as S

#: Seconds until a stage is looked at again whose task is at work beyond its time.
_LOOK_AGAIN = 1.0


class ExpireSuspensionHandler(Handler[ExpireSuspension]):
    """Only the suspension the timer was set for."""

    message_type = ExpireSuspension

    def handle(self, message: ExpireSuspension, unit: Unit) -> None:
        found = find_task(message, unit)
        if found is None:
            return
        stage, task = found
        if task.status is not S.SUSPENDED or task.suspensions != message.suspension:
            return
        if stage.execution.status is S.PAUSED:
            # Its time stands still; resumed, the workflow sends another.
            return
        error = f"task {task.name} waited for a signal longer than it may"
        log_failure(stage, error)
        update_context(unit, stage, {"error": error})
        task.task_exception_details = {"details": {"error": error, "transient": False}}
        wake(unit, stage, task, "no signal in time")
        unit.send(
            CompleteTask(
                **stage_ids(stage),
                task_id=task.id,
                status=stage.failure_status(),
                failed_as=S.TERMINAL,
                reason=error,
            )
        )


class ExpireStageHandler(Handler[ExpireStage]):
    """What is at work for the stage is canceled, its on-failure stages run, and its failure policy applies."""

    message_type = ExpireStage

    def handle(self, message: ExpireStage, unit: Unit) -> None:
        stage = find_stage(message, unit)
        if stage is None or stage.status.is_complete or Phase.ON_FAILURE.value in stage.planned:
            return
        if stage.execution.status.is_complete or stage.execution.status is S.PAUSED or stage.deadline is None:
            return
        left = (stage.deadline - unit.now).total_seconds()
        if left > 0 or unit.is_at_work(stage):
            # The worker of its task keeps the time, and calls on_timeout.
            unit.send(message, delay=max(left, _LOOK_AGAIN))
            return
        unit.whole(stage.execution.id)
        error = TaskTimeoutError(f"stage {stage.called} exceeded its stageTimeoutMs")
        log_failure(stage, str(error))
        self._cancel_work(unit, stage, str(error))
        described = describe_error(error, transient=False)
        timed_out = {TIMED_OUT: True, "error": str(error), "exception": described}
        update_context(unit, stage, timed_out, drop=(DEADLINE_KEY,))
        unit.send(CompleteStage(**stage_ids(stage)))

    def _cancel_work(self, unit: Unit, stage: StageExecution, reason: str) -> None:
        for each in descendants(stage):
            if not each.status.is_complete:
                cancel_stage(unit, each, reason, "system", force=True)
        active = active_tasks(stage)
        abandon_work(unit, stage, reason, "system", force=True)
        for task in stage.tasks:
            if not task.status.is_complete:
                finish_task(unit, stage, task, S.CANCELED, reason)
        if stage.status is not S.RUNNING:
            transition(unit, stage, S.RUNNING, reason)
        unit.change(stage, open_children=0)
        send_hooks(unit, stage, "on_cancel", active)
