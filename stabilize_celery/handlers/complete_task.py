"""CompleteTask: a task has ended; the next one follows, or the end of the stage."""

from __future__ import annotations

from stabilize_celery.handlers.base import Handler, find_task, stage_ids
from stabilize_celery.handlers.transitions import finish_task
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CompleteStage, CompleteTask, StartTask
from stabilize_celery.models.status import WorkflowStatus as S


class CompleteTaskHandler(Handler[CompleteTask]):
    """After a success, a skip, or a failure the task itself says can be ignored, the stage goes on."""

    message_type = CompleteTask

    def handle(self, message: CompleteTask, unit: Unit) -> None:
        found = find_task(message, unit)
        if found is None:
            return
        stage, task = found
        if task.status is not S.RUNNING:
            return
        finish_task(unit, stage, task, message.status, message.reason, failed_as=message.failed_as)
        if message.status is S.REDIRECT:
            return
        following = stage.next_task(task)
        goes_on = message.status.is_continuable and message.failed_as is None
        if goes_on and following is not None:
            unit.send(StartTask(**stage_ids(stage), task_id=following.id))
            return
        for left in stage.tasks:
            if left.status is S.NOT_STARTED:
                finish_task(unit, stage, left, S.SKIPPED, f"task {task.name} ended {message.status}")
        unit.send(CompleteStage(**stage_ids(stage)))
