"""Named places where a process may die: what happens if it does is tested there, and nowhere is a guess.

Each is a moment between two effects, at which some of what a step does has happened and some has not.  In production
:func:`reach` does nothing.  Tests of real processes set ``STABILIZE_CRASH_AT`` to a name and
``STABILIZE_CRASH_ONCE`` to a file: the first process that gets there makes the file and is killed by SIGKILL.  The
simulator installs a function of its own with :func:`watching`.

``STABILIZE_CRASH_AT=message.handled:3`` is the third arrival, counted over all processes that share the file.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ProcessDiedError(BaseException):
    """A process died, in a simulation: it goes through the engine, which does nothing about it."""


#: Every crash point, and what is true there.
POINTS: dict[str, str] = {
    "start.written": "a workflow and its first message are written, not committed",
    "start.committed": "the start is committed, nothing was published",
    "message.taken": "a message is taken and locked, its handler has not run",
    "message.handled": "handlers have run, what they changed is not written",
    "message.committed": "the transaction is committed, its follow-ons are not published",
    "message.published": "follow-ons are published, those left for this process are not handled",
    "message.done": "everything is done, the broker's message is not acknowledged",
    "task.claimed": "a task is claimed, its code was not called",
    "task.returned": "a task's code has returned, its result is not settled",
    "relay.taken": "due messages are marked as sent and committed, none is published",
    "relay.sent": "due messages are published",
}

_watcher: Callable[[str], None] | None = None


def reach(point: str) -> None:
    """This process has come to a crash point."""
    if _watcher is not None:
        _watcher(point)


@contextmanager
def watching(watcher: Callable[[str], None]) -> Iterator[None]:
    """Call ``watcher`` with the name of every crash point reached within the block, in any thread.

    A :class:`ProcessDiedError` that it raises goes through the engine like the death of the process.
    """
    global _watcher  # noqa: PLW0603 - one per process, as there is one process to die
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before


def _die_at(point: str, arrival: int, once: str | None) -> Callable[[str], None]:
    def watcher(reached: str) -> None:
        if reached == point and (once is None or _arrive(once) == arrival):
            os.kill(os.getpid(), signal.SIGKILL)

    return watcher


def _arrive(counter: str) -> int:
    """Count one arrival in a file shared by processes; returns which it is."""
    descriptor = os.open(counter, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)
    try:
        os.write(descriptor, b".")
        # Where this process's own byte ended, whatever others have appended since.
        return os.lseek(descriptor, 0, os.SEEK_CUR)
    finally:
        os.close(descriptor)


def _from_environment() -> Callable[[str], None] | None:
    point, _, arrival = os.environ.get("STABILIZE_CRASH_AT", "").partition(":")
    if not point:
        return None
    if point not in POINTS:
        raise ValueError(f"STABILIZE_CRASH_AT={point!r} is no crash point; there are {', '.join(POINTS)}")
    once = os.environ.get("STABILIZE_CRASH_ONCE")
    if arrival and (once is None or not arrival.isdecimal() or int(arrival) < 1):
        raise ValueError(
            f"STABILIZE_CRASH_AT={point}:{arrival}: after the colon stands a number from 1, and "
            "STABILIZE_CRASH_ONCE names the file in which arrivals are counted"
        )
    return _die_at(point, int(arrival or 1), once)


_watcher = _from_environment()
