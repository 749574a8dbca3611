"""How Celery ends workers and their pools: what the worker's process is told of it, see ``worker/ending.py``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from typing import Any

from billiard import common, current_process
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import SIG_SOFT_TIMEOUT
from celery import current_task, signals

from stabilize_celery.delivery.dispatcher import Engine
from stabilize_celery.worker.ending import ENDING, describe_limit
from stabilize_celery.worker.pool_leases import PoolLeases, PoolSlot, PoolSlots

logger = logging.getLogger(__name__)
#: Seconds that a stopped body in a thread of the worker has to come back, before the process ends with it.
_GRACE = 1.0
#: Seconds by which a pool process may take a time limit for later than the main process does.
_EARLY = 0.2
_EX_FAILURE = 1
#: Of the worker that this process is, or belongs to: its hard and its soft time limit.
_limits: list[float | None] = [None, None]
#: Of this worker: the one there is.
_slots: list[PoolSlots] = []


def _in_pool_process() -> bool:
    return bool(current_process()._name != "MainProcess")


def enter_pool_process() -> None:
    """This process is one of a pool: it ends when it gets a signal."""
    if not _in_pool_process():
        return

    def leaving() -> None:
        # What billiard's own handler would set: the job was not finished, and nothing else is to be started.
        common._should_have_exited[0] = True

    ENDING.guard((signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP), SIG_SOFT_TIMEOUT, leaving)


def _told(name: str) -> bool:
    """Whether the worker whose main process this is was told to stop (``should_stop``, ``should_terminate``)."""
    state = sys.modules.get("celery.worker.state")
    told = None if state is None else getattr(state, name)
    # An exit code, which may be 0.
    return told is not None and told is not False


def _has_left() -> bool:
    return bool(common._should_have_exited[0])


def is_cold() -> bool:
    """Whether the worker was told to end without waiting for its tasks."""
    return _told("should_terminate")


def is_stopping() -> bool:
    """Whether the worker whose main process this is takes no more tasks."""
    return _told("should_stop") or is_cold()


ENDING.signs += [_has_left, is_cold]
ENDING.stopping.append(is_stopping)


@signals.worker_init.connect
def _on_worker_init(sender: Any = None, **_: Any) -> None:
    """The pool has not been started: its processes inherit what is made here."""
    _limits[:] = [getattr(sender, "time_limit", None), getattr(sender, "soft_time_limit", None)]
    _slots[:] = [PoolSlots()]


def pool_slot() -> PoolSlot | None:
    """Where this process of a pool shows what it runs; ``None`` if it is none, or was not forked."""
    index = getattr(current_process(), "index", None)
    return _slots[0].slot(index) if _slots and index is not None and _in_pool_process() else None


def pool_leases(engine: Engine) -> PoolLeases:
    """What keeps the leases of this worker's pool processes where they cannot."""
    return PoolLeases(_slots[0], lambda: engine.dispatcher.worker)


def _limit(which: int) -> float | None:
    """The hard (0) or soft (1) time limit of the Celery task that runs."""
    task = current_task._get_current_object() if current_task else None
    asked: Any = task and task.request.timelimit
    own: Any = task and (task.time_limit, task.soft_time_limit)
    candidates = (found[which] for found in (asked, own, _limits) if found)
    return next((float(each) for each in candidates if each is not None), None)


def _exceeded(error: BaseException) -> str | None:
    if isinstance(error, SoftTimeLimitExceeded):
        return describe_limit(1, _limit(1))
    hard = _limit(0) if ENDING.signalled and isinstance(error, SystemExit) else None
    if hard and time.monotonic() - ENDING.held_at >= hard - _EARLY:
        return describe_limit(0, hard)
    return None


ENDING.limits.append(_exceeded)


# ---------------------------------------------------------------------- a worker whose main process runs the tasks


class BodyStop:
    """Ends the bodies that run in threads of the worker itself, when it is told not to wait for them.

    Python cannot end a thread.  Bodies are told to stop; those that do not come back are handed back, and the process
    ends at once, so that they do not go on beside their repetition.
    """

    def __init__(self, engine: Engine, worker: Any) -> None:
        self._engine = engine
        self._done = threading.Event()
        self._lock = threading.Lock()
        stop = worker.pool.stop

        def stop_pool() -> None:
            self.stop_if_cold()
            stop()

        # A cold shutdown stops the pool from within its signal handler, before any bootstep hears of it.
        worker.pool.stop = stop_pool
        signals.worker_shutting_down.connect(self._on_shutting_down)

    def _on_shutting_down(self, how: str = "", **_: Any) -> None:
        if how == "Cold":
            self._start()

    def stop_if_cold(self) -> None:
        """To be called before anything waits for the tasks."""
        if is_cold():
            self._start()

    def _start(self) -> None:
        if self._lock.acquire(blocking=False):
            threading.Thread(target=self._run, name="stabilize-stop", daemon=True).start()

    def _run(self) -> None:
        dispatcher = self._engine.dispatcher
        stuck = dispatcher.keeper.stop(min(_GRACE, self._engine.settings.task_kill_grace))
        if not stuck:
            return
        for lease in stuck:
            try:
                dispatcher.hand_back(lease.message_id, lease.token)
            except Exception:
                logger.warning("message %s waits for the end of its lease", lease.message_id, exc_info=True)
        logger.warning("%d tasks do not stop: the worker ends without them", len(stuck))
        logging.shutdown()
        os._exit(_EX_FAILURE)
