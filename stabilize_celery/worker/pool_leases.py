"""Leases of pool processes, kept by the worker's main process where a process cannot: its body holds the interpreter.

Each pool process writes what it runs into a slot of memory that it shares with the main process, which costs no
statement.  The main process renews the lease of one whose own thread has not come to it, up to the body's time limit,
and then ends the process.  A process that is stopped (SIGSTOP) is left to lose its lease: nothing says that it goes on.
"""

from __future__ import annotations

import math
import mmap
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from stabilize_celery.errors import TaskTimeoutError
from stabilize_celery.observe.logs import discreet_logger
from stabilize_celery.persistence.database import is_unavailable
from stabilize_celery.worker.execution import TaskWorker
from stabilize_celery.worker.handover import settle_for
from stabilize_celery.worker.judge import failure

logger = discreet_logger(__name__)
#: As many processes as any pool has; those beyond keep their leases by themselves alone.
_SLOTS = 1024
_SLOT = struct.Struct("=qqdd64s")
_BEATEN = struct.Struct("=d")
#: Where the times stand in a slot.
_DEADLINE_AT, _BEATEN_AT = 16, 24


@dataclass(frozen=True)
class Held:
    """What a pool process runs; times are by ``time.monotonic``, which the processes of a machine share."""

    pid: int
    token: int
    deadline: float
    beaten: float
    message_id: str

    @property
    def owner(self) -> str:
        """As it stands in the message's row."""
        return f"{socket.gethostname()}:{self.pid}"


class PoolSlots:
    """The shared memory: a byte per slot that says whether it is in use, then the slots.

    To be made before the pool's processes are forked, which inherit it.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SLOTS * (1 + _SLOT.size))

    def slot(self, index: int) -> PoolSlot | None:
        """The slot of the pool process with that number."""
        return PoolSlot(self._memory, index) if 0 <= index < _SLOTS else None

    def held(self) -> list[tuple[int, Held]]:
        """What is in use, with its number."""
        found = []
        for index, used in enumerate(self._memory[:_SLOTS]):
            held = self.read(index) if used else None
            if held is not None:
                found.append((index, held))
        return found

    def read(self, index: int) -> Held | None:
        """One slot; ``None`` if it is not in use, or being written."""
        at = _SLOTS + index * _SLOT.size
        first = self._memory[at : at + _SLOT.size]
        if not self._memory[index] or first != self._memory[at : at + _SLOT.size]:
            return None
        pid, token, deadline, beaten, name = _SLOT.unpack(first)
        return Held(pid, token, deadline, beaten, name.rstrip(b"\0").decode())


class PoolSlot:
    """One slot, as its process uses it."""

    def __init__(self, memory: mmap.mmap, index: int) -> None:
        self._memory, self._index = memory, index
        self._at = _SLOTS + index * _SLOT.size
        self._message_id = ""

    def fill(self, message_id: str, token: int, deadline: float) -> None:
        """The process has begun this; of several at once the first counts."""
        if self._message_id:
            return
        name = message_id.encode()
        _SLOT.pack_into(self._memory, self._at, os.getpid(), token, deadline, time.monotonic(), name)
        self._message_id = message_id
        self._memory[self._index] = 1

    def limit(self, message_id: str, deadline: float) -> None:
        """It has until then."""
        if message_id == self._message_id:
            _BEATEN.pack_into(self._memory, self._at + _DEADLINE_AT, deadline)

    def beat(self) -> None:
        """The process's own thread keeps the lease."""
        _BEATEN.pack_into(self._memory, self._at + _BEATEN_AT, time.monotonic())

    def clear(self, message_id: str) -> None:
        """It has ended."""
        if message_id == self._message_id:
            self._memory[self._index] = 0
            self._message_id = ""


class PoolLeases:
    """The thread of the main process that looks after the slots.

    Args:
        slots: of its pool.
        worker: in this process, for its store and settings.
    """

    def __init__(self, slots: PoolSlots, worker: Callable[[], TaskWorker]) -> None:
        self._slots = slots
        self._worker = worker
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="stabilize-pool-leases", daemon=True)
        #: When a process whose work is canceled by force is to be ended, by process and token.
        self._kill_at: dict[tuple[int, int], float] = {}

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, once the pool has."""
        self._stopping.set()

    def _run(self) -> None:
        settings = self._worker().settings
        pause = min(settings.heartbeat, settings.lease / 3)
        while not self._stopping.wait(pause):
            try:
                self.turn(1.5 * pause)
            except Exception as error:
                if not is_unavailable(error):
                    logger.exception("leases of pool processes could not be looked after")

    def turn(self, overdue: float) -> None:
        """Look once; a process that has not renewed its lease for ``overdue`` seconds cannot."""
        now = time.monotonic()
        silent = [(i, x) for i, x in self._slots.held() if now - x.beaten > overdue and _runs(x.pid)]
        ended = [
            (i, x) for i, x in silent if now >= min(x.deadline, self._kill_at.get((x.pid, x.token), math.inf))
        ]
        for index, held in ended:
            self._end(index, held)
        left = [x for each in silent if each not in ended for x in each[1:]]
        self._kill_at = {
            key: at for key, at in self._kill_at.items() if key in {(x.pid, x.token) for x in left}
        }
        if left:
            worker = self._worker()
            wanted = worker.store.heartbeat({x.message_id: x.token for x in left}, worker.settings.lease)
            for held in left:
                if wanted.get(held.message_id) == "kill":
                    self._kill_at.setdefault((held.pid, held.token), now + worker.settings.task_kill_grace)

    def _end(self, index: int, held: Held) -> None:
        if self._slots.read(index) != held:
            return
        logger.warning("message %s does not stop; ending its process %d", held.message_id, held.pid)
        with suppress(ProcessLookupError):
            os.kill(held.pid, signal.SIGKILL)
        if time.monotonic() >= held.deadline:
            error = TaskTimeoutError("Task timed out while it held the interpreter: its process was ended")
            settle_for(
                self._worker(), held.message_id, held.owner, lambda _row: failure(error, unmapped=True)
            )


def _runs(pid: int) -> bool:
    """Whether a child of this process is alive and not stopped."""
    if not hasattr(os, "waitid"):
        return True
    try:
        options = os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, pid, options) is None
    except ChildProcessError:
        return False
