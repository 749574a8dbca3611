"""A worker that is lost while it runs a task: killed, out of memory, cut off."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from copy import copy

from stabilize_celery.crash_points import ProcessDiedError
from stabilize_celery.delivery.inline import EmbeddedProcessor
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.registry import TaskRegistry
from stabilize_celery.tasks.result import TaskResult

#: More messages than any test of a workflow needs.
MOST_MESSAGES = 20_000


class WorkerDiedError(ProcessDiedError):
    """The process died."""


class LostWorker:
    """Lets workers die at a task type; see :meth:`StabilizeForTests.lose_worker`."""

    def __init__(self, registry: TaskRegistry, name: str, *, before: bool, times: int) -> None:
        self.name = name
        #: How often a worker has died of it so far.
        self.times = 0
        self._registry = registry
        self._before = before
        self._left = times
        self._real = registry.resolve(name)
        source = registry.source(name)
        assert source is not None
        self._source = source
        deadly = copy(self._real)
        deadly.execute = self._execute  # type: ignore[method-assign]
        self._deadly: Task = deadly
        registry.register(name, deadly, replace=True)

    def __repr__(self) -> str:
        return f"<LostWorker at {self.name}, {self.times} of {self.times + self._left}>"

    def _execute(self, stage: StageExecution) -> TaskResult:
        if not self._before:
            self._real.execute(stage)
        self._left -= 1
        self.times += 1
        if not self._left and self._registry.source(self.name) is self._deadly:
            self._registry.register(self.name, self._source, replace=True)
        raise WorkerDiedError


class MortalProcessor(EmbeddedProcessor):
    """The processor of a test: it survives its workers, and notices what goes on for ever."""

    _handled = 0

    def step(self) -> bool:
        self._count()
        try:
            return super().step()
        except WorkerDiedError:
            return True

    def begin(self) -> None:
        """Count messages from here on."""
        self._handled = 0

    def drain(self, timeout: float | None = None, until: Callable[[], bool] | None = None) -> int:
        self.begin()
        return super().drain(timeout, until)

    def _start(self, found: tuple[str, str]) -> None:
        self._count()
        with suppress(WorkerDiedError):
            super()._start(found)

    def _count(self) -> None:
        self._handled += 1
        if self._handled > MOST_MESSAGES:
            raise AssertionError(
                f"{MOST_MESSAGES} messages were handled and there are more: does a task poll, retry or jump for ever?"
                " advance(seconds) handles only what is due until then"
            )
