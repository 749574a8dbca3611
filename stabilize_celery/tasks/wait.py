"""A task that waits: for some time, or until some moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pydantic import field_validator, model_validator

from stabilize_celery.clock import MAX_SECONDS
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.settings import Seconds
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.options import TaskOptions, read_options
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import current_run

#: Clocks of different machines are not closer than that: no second wait for it.
_CLOSE_ENOUGH = timedelta(milliseconds=1)


class WaitOptions(TaskOptions):
    """Own context of a wait stage: one of ``waitTime`` or ``seconds``, and ``until``."""

    waitTime: Seconds | None = None
    seconds: Seconds | None = None
    #: ISO 8601; without an offset it is UTC.
    until: datetime | None = None

    @field_validator("until")
    @classmethod
    def _aware(cls, until: datetime | None) -> datetime | None:
        return until.replace(tzinfo=UTC) if until is not None and until.utcoffset() is None else until

    @model_validator(mode="after")
    def _one(self) -> WaitOptions:
        given = [name for name in ("waitTime", "seconds", "until") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a wait takes one of waitTime, seconds, until; it has {', '.join(given) or 'none'}"
            )
        return self


class WaitTask(Task):
    """Waits without holding anything: between its two calls there is only a row that falls due.

    It waits from the start of the task, through restarts of workers, broker and database, and through pauses of the
    workflow.  Output: ``waitedSeconds``.
    """

    aliases = ("WaitTask",)

    def execute(self, stage: StageExecution) -> TaskResult:
        options = read_options(WaitOptions, stage)
        run = current_run()
        assert run is not None, "a wait makes sense only inside a workflow"
        task = stage.task_by_id(run.task_id)
        started = (task.start_time if task is not None else None) or run.now()
        end = options.until or started + timedelta(seconds=options.seconds or options.waitTime or 0.0)
        left = end - run.now()
        if left > _CLOSE_ENOUGH:
            return TaskResult.running(retry_after=min(left.total_seconds(), MAX_SECONDS))
        waited = max(0.0, (end - started).total_seconds())
        return TaskResult.success(outputs={"waitedSeconds": waited})
