"""One thread per process that keeps its leases alive, hears of cancellations, and watches the clock.

A task's code runs in whatever thread the pool gives it.  Beside it this thread renews the lease; a task that runs over
its time is settled from here, at its time, and what its code returns later is refused by the fencing token.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from stabilize_celery.observe.logs import discreet_logger
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.tasks.run import TaskRun

logger = discreet_logger(__name__)
#: Seconds in which a worker that is being ended stops taking messages, and says why it ended a process.
HAND_BACK_DELAY = 1.0
#: How long the thread sleeps when this process has run no task since it last looked.
_IDLE = 60.0


@dataclass
class Lease:
    """A task that this process is running."""

    message_id: str
    token: int
    run: TaskRun
    #: By ``time.monotonic``.
    deadline: float
    on_deadline: Callable[[], None]
    #: Seconds that were given to it.
    limit: float = math.inf
    expired: bool = False
    #: Its process is being ended: the attempt is handed back, whatever its code returns.
    stopped: bool = False
    #: ``ask`` or ``kill`` when its work is not wanted any more, ``lost`` when another process has it.
    verdict: str | None = None
    #: When the process is to be ended if the task has not come back by then.
    kill_at: float | None = None
    done: threading.Event = field(default_factory=threading.Event)

    def limit_to(self, seconds: float) -> None:
        """From now on it has that long."""
        self.limit = seconds
        self.deadline = time.monotonic() + seconds


class Slot(Protocol):
    """Shows the main process of a pool what this process runs, see ``pool_leases.py``."""

    def fill(self, message_id: str, token: int, deadline: float) -> None: ...
    def limit(self, message_id: str, deadline: float) -> None: ...
    def beat(self) -> None: ...
    def clear(self, message_id: str) -> None: ...


class LeaseKeeper:
    """Keeps the leases of one process.

    Args:
        store: where the leases are.
        lease: their length in seconds.
        heartbeat: how often they are renewed.
        kill_grace: how long a task that was told to stop may go on before ``end_process`` is called.
        end_process: ends this pool process; ``None`` where that would take innocent tasks along.
    """

    def __init__(
        self,
        store: WorkflowStore,
        lease: float,
        heartbeat: float,
        kill_grace: float,
        end_process: Callable[[], None] | None = None,
    ) -> None:
        self._lease = lease
        self._heartbeat = min(heartbeat, lease / 3)
        self._kill_grace = kill_grace
        self.end_process = end_process
        #: Renews leases, given as message id -> fencing token, by so many seconds; see the store's ``heartbeat``.
        self.renew: Callable[[dict[str, int], float], dict[str, str | None]] = store.heartbeat
        #: Where the main process of the pool sees what this one runs.
        self.slot: Slot | None = None
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._leases: dict[str, Lease] = {}
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wakes_at = 0.0
        self._kept = 0

    @contextmanager
    def keep(self, lease: Lease) -> Iterator[Lease]:
        """Keep a lease alive while the block runs."""
        with self._condition:
            self._leases[lease.message_id] = lease
            self._kept += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="stabilize-leases", daemon=True)
                self._thread.start()
            elif min(lease.deadline, time.monotonic() + self._heartbeat) < self._wakes_at:
                self._condition.notify()
        if self.slot is not None:
            self.slot.fill(lease.message_id, lease.token, lease.deadline)
        try:
            yield lease
        finally:
            lease.done.set()
            if self.slot is not None:
                self.slot.clear(lease.message_id)
            with self._condition:
                self._leases.pop(lease.message_id, None)

    def limit(self, lease: Lease, seconds: float) -> None:
        """Give a lease that is kept that long from now."""
        with self._condition:
            lease.limit_to(seconds)
            if self.slot is not None:
                self.slot.limit(lease.message_id, lease.deadline)
            if lease.deadline < self._wakes_at:
                self._condition.notify()

    def stop(self, grace: float) -> list[Lease]:
        """Tell all tasks to stop because the process is being ended; returns those that have not within ``grace``."""
        with self._condition:
            leases = list(self._leases.values())
        for lease in leases:
            lease.stopped = True
            lease.run.interrupt()
        end = time.monotonic() + grace
        return [x for x in leases if not x.done.wait(max(0.0, end - time.monotonic())) and not x.expired]

    def _work(self) -> None:
        next_beat = time.monotonic() + self._heartbeat
        kept = -1
        while True:
            with self._condition:
                # Between short tasks it sleeps on: to be woken by each costs more than they do.
                idle = not self._leases and self._kept == kept
                kept = self._kept
                moments = [time.monotonic() + _IDLE if idle else next_beat]
                moments += [x.deadline for x in self._leases.values() if not x.expired]
                moments += [x.kill_at for x in self._leases.values() if x.kill_at is not None]
                self._wakes_at = min(moments)
                self._condition.wait(max(0.0, self._wakes_at - time.monotonic()))
                leases = list(self._leases.values())
            now = time.monotonic()
            for lease in leases:
                self._watch(lease, now)
            if not idle and now >= next_beat:
                self._beat(leases)
            if idle or now >= next_beat:
                next_beat = time.monotonic() + self._heartbeat

    def _watch(self, lease: Lease, now: float) -> None:
        if not lease.expired and now >= lease.deadline:
            lease.expired = True
            # In a thread of its own: on_timeout is user code.
            threading.Thread(target=lease.on_deadline, name="stabilize-timeout", daemon=True).start()
            self._end_if_stuck(lease, now)
        if lease.kill_at is not None and now >= lease.kill_at and not lease.done.is_set():
            lease.kill_at = None
            if self.end_process is not None:
                logger.warning("task %s does not stop; ending its process", lease.run.task_id)
                self.end_process()

    def _end_if_stuck(self, lease: Lease, now: float) -> None:
        if self.end_process is not None and lease.kill_at is None:
            lease.kill_at = now + self._kill_grace

    def _beat(self, leases: list[Lease]) -> None:
        held = {x.message_id: x.token for x in leases if not x.done.is_set()}
        if not held:
            return
        if self.slot is not None:
            self.slot.beat()
        try:
            wanted = self.renew(held, self._lease)
        except Exception:
            # The database may be away for a while; the lease tells in the end who owns the task.
            logger.warning("leases could not be renewed", exc_info=True)
            return
        for lease in leases:
            if lease.done.is_set() or lease.message_id not in held:
                continue
            verdict = wanted.get(lease.message_id, "lost")
            if verdict is None:
                continue
            lease.verdict = verdict
            if not lease.run.cancelled.is_set():
                logger.info("task %s is told to stop (%s)", lease.run.task_id, verdict)
                lease.run.interrupt()
            if verdict == "kill":
                self._end_if_stuck(lease, time.monotonic())
