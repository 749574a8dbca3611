"""ExpireSuspension: a suspended task got no signal in time and fails."""

from __future__ import annotations

from stabilize_celery.handlers.base import Handler, find_task, stage_ids
from stabilize_celery.handlers.lifecycle import update_context, wake
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CompleteTask, ExpireSuspension
from stabilize_celery.models.status import WorkflowStatus as S


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
        error = f"task {task.name} waited for a signal longer than it may"
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
