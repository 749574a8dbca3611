"""The other half of a task that was handed over: the process that does its work starts it, keeps its lease, and reports."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from stabilize_celery.errors import describe_error, named_text
from stabilize_celery.messages import RunTask
from stabilize_celery.observe.logs import discreet_logger
from stabilize_celery.persistence.rows import message_of
from stabilize_celery.tasks.outcome import Outcome, Verdict
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import TaskRun
from stabilize_celery.worker.attempt import RunningAttempt
from stabilize_celery.worker.ending import ENDING
from stabilize_celery.worker.leases import Lease
from stabilize_celery.worker.limits import stage_time_left
from stabilize_celery.worker.task_worker import OWN_RETRIES, TaskWorker, handed_back, own_retries

logger = discreet_logger(__name__)
#: Between looks at a message whose last attempt is about to be reported.
_PAUSE = 0.02


def begin(
    worker: TaskWorker, message_id: str, on_stop: Callable[[bool], None], patience: float = 0.0
) -> BegunTask | None:
    """Begin the work of a message; ``None`` if it is not wanted: done, canceled, or another process holds it.

    Args:
        worker: of this process.
        message_id: the row to be taken over.
        on_stop: called, from another thread, when the work is to stop; with true if it has to.
        patience: how many seconds to wait for the current holder.
    """
    end = time.monotonic() + patience
    while (claimed := worker.store.begin(message_id, worker.owner, worker.settings.lease)) is None:
        if time.monotonic() >= end or worker.store.message(message_id) is None:
            return None
        time.sleep(_PAUSE)
    message = message_of(claimed.row)
    assert isinstance(message, RunTask)
    begun = BegunTask(worker, message, claimed)
    return begun if begun.start(on_stop) else None


class BegunTask(RunningAttempt):
    """A task whose work this process does, though not in :mod:`~stabilize_celery.worker.attempt`."""

    def start(self, on_stop: Callable[[bool], None]) -> bool:
        """Keep the lease from now on; false if the work is not wanted after all."""
        outcome = Outcome(Verdict.DROP, reason="canceled") if self._row["cancel"] else self._refused()
        if outcome is None:
            try:
                outcome = self._too_late()
            except Exception as error:
                outcome = self._raised(error)
        if outcome is not None:
            self._finish(outcome)
            return False
        stage = self.stage
        run = TaskRun(
            stage.execution.id,
            stage.id,
            self._message.task_id,
            stage.generation,
            self._number,
            int(self._row["claims"]),
        )
        left = stage_time_left(stage, self._worker.store.now())
        deadline = math.inf if left is None else time.monotonic() + left.total_seconds()
        self._by_stage = left is not None
        self.lease = Lease(self._row["id"], run.fencing_token, run, deadline, self._end)
        self._kept = ExitStack()
        self._kept.enter_context(self._worker.keeper.keep(self.lease))
        self._kept.enter_context(run.on_interrupt(lambda: self._stop(on_stop)))
        self._ended = self._kept.enter_context(self._inside(run, stage, self._task))
        return True

    def _stop(self, on_stop: Callable[[bool], None]) -> None:
        # What is handed back is started again, so nothing is said against it.
        if not self.lease.stopped:
            on_stop(self.lease.verdict == "kill" or self.lease.expired)

    @property
    def number(self) -> int:
        """1 for the first attempt."""
        return self._number

    def is_end(self, error: BaseException) -> bool:
        """Whether it did not end by itself, but because the process does."""
        return self.lease.stopped or (ENDING.is_end(error) and ENDING.limit_exceeded(error) is None)

    def finish(self, call: Callable[[], TaskResult]) -> None:
        """It ended; ``call`` gives its result or raises its error."""
        outcome = self._redacted(self._outcome(call))
        self._close(None if self.lease.expired else outcome)
        if not self.lease.expired:
            self._finish(outcome)

    def hand_back(
        self, queue: str, delay: float, error: BaseException, own: int | None, **details: Any
    ) -> None:
        """It will be started again from its queue; ``own`` is how often the queue system has repeated it by itself."""
        described = describe_error(error, transient=True)
        repeated = own_retries(self._stage, self._message.task_id) if own is None else own
        described["details"][OWN_RETRIES] = repeated
        reason = named_text(error)
        details = {**details, "own_retries": repeated}
        outcome = self._redacted(handed_back(queue, delay, self._settings, described, reason, **details))
        self._close(outcome)
        self._finish(outcome)

    def let_go(self) -> None:
        """The process is being ended, which is no attempt: another process starts it again soon."""
        self._close(Outcome(Verdict.HANDED_BACK))
        self._worker.hand_back(self._row["id"], self._row["claims"])

    def _close(self, outcome: Outcome | None) -> None:
        if self._ended is not None:
            self._ended(outcome)
        self._kept.close()

    def _end(self) -> None:
        self._finish(self._outcome(lambda: self._timed_out("exceeded its stage's stageTimeoutMs")))
        self.lease.run.interrupt()
