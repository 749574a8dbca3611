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
from typing import Literal

from stabilize_celery.errors import TaskTimeoutError
from stabilize_celery.observe.logs import discreet_logger
from stabilize_celery.persistence.database import is_unavailable
from stabilize_celery.worker.limits import failure
from stabilize_celery.worker.task_worker import TaskWorker

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
        """The process has started this; of several at once the first counts."""
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
        self._forsaken: dict[int, Held] = {}

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
        now, silent = time.monotonic(), []
        for index, held in self._slots.held():
            state = _state(held.pid)
            if state == "ended":
                self._forsake(index, held)
            elif state == "runs" and now - held.beaten > overdue:
                if now >= min(held.deadline, self._kill_at.get((held.pid, held.token), math.inf)):
                    self._end(index, held)
                else:
                    silent.append(held)
        known = {(held.pid, held.token) for held in silent}
        self._kill_at = {key: at for key, at in self._kill_at.items() if key in known}
        if silent:
            worker = self._worker()
            wanted = worker.store.heartbeat({x.message_id: x.token for x in silent}, worker.settings.lease)
            for held in silent:
                if wanted.get(held.message_id) == "kill":
                    self._kill_at.setdefault((held.pid, held.token), now + worker.settings.task_kill_grace)

    def _forsake(self, index: int, held: Held) -> None:
        """Its process is gone: nothing is to be waited for."""
        if self._forsaken.get(index) != held:
            self._worker().hand_back(held.message_id, held.token, counted=True)
            self._forsaken[index] = held

    def _end(self, index: int, held: Held) -> None:
        if self._slots.read(index) != held:
            return
        logger.warning("message %s does not stop; ending its process %d", held.message_id, held.pid)
        with suppress(ProcessLookupError):
            os.kill(held.pid, signal.SIGKILL)
        if time.monotonic() >= held.deadline:
            error = TaskTimeoutError("Task timed out while it held the interpreter: its process was ended")
            self._worker().settle_for(held.message_id, held.owner, lambda _row: failure(error, unmapped=True))


def _state(pid: int) -> Literal["runs", "stopped", "ended"]:
    """Of a child of this process."""
    if not hasattr(os, "waitid"):
        return "runs"
    try:
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WSTOPPED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return "ended"
    if found is None:
        return "runs"
    return "stopped" if found.si_code == os.CLD_STOPPED else "ended"
