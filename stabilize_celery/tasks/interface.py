"""What users subclass to write a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import timedelta
from typing import Any

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.tasks.result import TaskResult


class Task(ABC):
    """A kind of work.  One instance may serve many stages, so keep no state of a run in it.

    ``stage.context`` holds what the stage sees (its own context over its ancestors' outputs); ``stage.own_context``
    just its own part: read options from there, so that an upstream output that happens to have the name of an option
    changes nothing.
    """

    #: Other names it can be registered under.
    aliases: tuple[str, ...] = ()

    @abstractmethod
    def execute(self, stage: StageExecution) -> TaskResult:
        """Do the work.  Raise :class:`~stabilize_celery.errors.TransientError` to be run again."""

    def on_timeout(self, stage: StageExecution) -> TaskResult | None:
        """Called when it ran longer than it may; a result replaces the failure."""
        return None

    def on_cancel(self, stage: StageExecution) -> TaskResult | None:
        """Called once after the stage was canceled while this task was active; context and outputs are kept."""
        return None

    def on_cleanup(self, stage: StageExecution) -> None:
        """Called at least once after the stage ended, however it ended."""

    def get_execution_timeout(self, stage: StageExecution) -> timedelta | None:
        """How long one call of :meth:`execute` may take; ``None`` takes the setting ``stabilize_task_time_limit``."""
        return None


class RetryableTask(Task):
    """A task that polls: it returns :meth:`TaskResult.running` until what it waits for has happened."""

    @abstractmethod
    def get_timeout(self) -> timedelta:
        """How long it may take in all, from its start; paused time does not count."""

    def get_dynamic_timeout(self, stage: StageExecution) -> timedelta:
        """The same for one stage."""
        return self.get_timeout()

    def get_backoff_period(self, stage: StageExecution, duration: timedelta) -> timedelta:
        """How long to wait before the next call, ``duration`` after the start."""
        return timedelta(seconds=1)


class OverridableTimeoutRetryableTask(RetryableTask):
    """A polling task whose total time a stage can set with ``stageTimeoutMs``."""

    def get_dynamic_timeout(self, stage: StageExecution) -> timedelta:
        milliseconds = stage.own_context.get("stageTimeoutMs")
        return timedelta(milliseconds=milliseconds) if milliseconds else self.get_timeout()


class SkippableTask(Task):
    """A task that may decide there is nothing to do."""

    @abstractmethod
    def is_enabled(self, stage: StageExecution) -> bool:
        """Whether to run; false ends the task SKIPPED."""

    @abstractmethod
    def do_execute(self, stage: StageExecution) -> TaskResult:
        """Do the work."""

    def execute(self, stage: StageExecution) -> TaskResult:
        return self.do_execute(stage) if self.is_enabled(stage) else TaskResult.skipped()


class NoOpTask(Task):
    """Does nothing, successfully."""

    aliases = ("noop",)

    def execute(self, stage: StageExecution) -> TaskResult:
        return TaskResult.success()


def as_result(value: Any, where: str) -> TaskResult:
    """What a function returned, as a result.

    Raises:
        TypeError: it is none of TaskResult, dict, None.
    """
    if isinstance(value, TaskResult):
        return value
    if value is None:
        return TaskResult.success()
    if isinstance(value, dict):
        return TaskResult.success(outputs=value)
    raise TypeError(
        f"{where} returned {type(value).__name__}; return a TaskResult, a dict of outputs, or None"
    )
