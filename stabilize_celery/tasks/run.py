"""What a running task can know about its own run: attempt, fencing token, whether it should stop."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime

from stabilize_celery.clock import Clock

logger = logging.getLogger(__name__)


class HandBackError(BaseException):
    """This attempt is handed back: what it did was ended together with its worker.  It does not count."""


@dataclass
class TaskRun:
    """One attempt at a task, seen from inside.

    Attributes:
        attempt: 1 for the first attempt; polling again is not another attempt.
        fencing_token: grows with every claim of this task; give it to systems that can refuse an old one.
        cancelled: set as soon as the task is canceled, times out, or its worker loses the lease.
    """

    workflow_id: str
    stage_id: str
    task_id: str
    generation: int = 0
    attempt: int = 1
    fencing_token: int = 1
    cancelled: threading.Event = field(default_factory=threading.Event)
    clock: Clock = field(default_factory=Clock, repr=False)
    #: Bytes of JSON that the outputs of its stage may have.
    output_limit: int | None = None
    #: Whether this process turns out to be ending within so many seconds.
    is_ending: Callable[[float], bool] = field(default=lambda _seconds: False, repr=False)
    _callbacks: list[Callable[[], None]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt at this task in this pass of the workflow, and different for any other."""
        return f"{self.task_id}:{self.generation}"

    def now(self) -> datetime:
        """The engine's time, timezone-aware: that of the database, or of a test's :class:`FakeClock`."""
        return self.clock.now()

    def interrupt(self) -> None:
        """Stop the task; called by the engine, from another thread."""
        with self._lock:
            self.cancelled.set()
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                # The thread that calls it keeps the leases of all tasks of this process.
                logger.warning("a callback of task %s failed", self.task_id, exc_info=True)

    @contextmanager
    def on_interrupt(self, callback: Callable[[], None]) -> Iterator[None]:
        """Call ``callback`` (from another thread) if the task is stopped while the block runs."""
        with self._lock:
            late = self.cancelled.is_set()
            if not late:
                self._callbacks.append(callback)
        if late:
            callback()
        try:
            yield
        finally:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)


_current: ContextVar[TaskRun | None] = ContextVar("stabilize_task_run", default=None)


def current_run() -> TaskRun | None:
    """The run this code belongs to, or ``None`` outside a task."""
    return _current.get()


@contextmanager
def running(run: TaskRun) -> Iterator[TaskRun]:
    """Make ``run`` the current one while the block runs."""
    token = _current.set(run)
    try:
        yield run
    finally:
        _current.reset(token)
