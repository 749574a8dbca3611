"""StartTask: a task begins."""

from __future__ import annotations

from stabilize_celery.handlers.base import Handler, find_task
from stabilize_celery.handlers.transitions import start_task
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import StartTask
from stabilize_celery.models.status import WorkflowStatus as S


class StartTaskHandler(Handler[StartTask]):
    """Send the task to the workers."""

    message_type = StartTask

    def handle(self, message: StartTask, unit: Unit) -> None:
        found = find_task(message, unit)
        if found is None:
            return
        stage, task = found
        if task.status is S.NOT_STARTED and stage.status is S.RUNNING:
            start_task(unit, stage, task)
