"""Where the engine takes the time from, so that tests can hold it and workers agree on it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

#: The longest delay or timeout: a hundred years; later than that, no date can be trusted to exist.
MAX_SECONDS = 100 * 365.25 * 86400.0
#: By how much the clocks of two machines may differ before one takes what the other has sent for not due yet.
TOLERANCE = timedelta(seconds=0.5)


def check_seconds(value: Any, what: str, *, shortest: float = 0.0) -> None:
    """Refuse a delay or timeout that is not a number of seconds from ``shortest`` to a hundred years.

    Args:
        value: what was given; ``None`` stands for "none" and passes.
        what: its name, for the error.
        shortest: the smallest accepted number.

    Raises:
        TypeError: it is not a number: a timedelta, text, a truth value.
        ValueError: it is not finite, or out of range.
    """
    _check(value, what, "seconds", shortest, MAX_SECONDS)


def check_milliseconds(value: Any, what: str) -> None:
    """The same for milliseconds from 0."""
    _check(value, what, "milliseconds", 0.0, MAX_SECONDS * 1000)


def _check(value: Any, what: str, unit: str, shortest: float, longest: float) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        way_out = "; give value.total_seconds()" if isinstance(value, timedelta) else ""
        raise TypeError(
            f"{what} is a number of {unit}, not of type {type(value).__name__} ({value!r:.80}){way_out}"
        )
    # Not a number compares false.
    if not shortest <= value <= longest:
        raise ValueError(
            f"{what} is a number of {unit} from {shortest:g} to {longest:.0f}, not {value!r:.80}"
        )


#: By how much a wall clock may move against the steady one before it was set, or the machine slept.
_STEP = 0.25
#: Seconds after which the database is asked for the time again.
_FRESH = 60.0


#: Seconds that no one sets; they go on while the machine sleeps where the system can tell.
_steady: Callable[[], float] = (
    partial(time.clock_gettime, time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic
)


class Clock:
    """The time of the database, as far as this process knows it.

    Leases and due times are compared by different machines; each measures how far its own steady clock is from the
    database's and corrects for it.  Its wall clock, which is set by people, NTP and hypervisors, decides nothing: when it
    moves against the steady one, and once a minute, the database is asked again.
    """

    def __init__(self) -> None:
        self._offset = timedelta()
        self._origin, self._begun = datetime.now(UTC), _steady()
        self._apart = self._measured = math.nan
        self._leases, self._lock = 0, threading.Lock()

    @property
    def is_known(self) -> bool:
        """Whether the database was asked before."""
        return not math.isnan(self._measured)

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """This process has a lease in the block."""
        with self._lock:
            self._leases += 1
        try:
            yield
        finally:
            with self._lock:
                self._leases -= 1

    def reading(self) -> datetime:
        """What the steady clock shows: the wall clock of when this object was made, and what has passed since."""
        return self._origin + timedelta(seconds=_steady() - self._begun)

    def now(self) -> datetime:
        """The current time, timezone-aware."""
        return self._origin + self._offset + timedelta(seconds=_steady() - self._begun)

    def latest(self) -> datetime:
        """What is due by then may be handled: other machines may be a little ahead."""
        return self.now() + TOLERANCE

    def is_stale(self) -> bool:
        """Whether the database is to be asked for the time (again)."""
        steady = _steady()
        return not (
            self.is_known
            and steady - self._measured < _FRESH
            and abs(time.time() - steady - self._apart) < _STEP
        )

    def synchronise(self, database_time: datetime, reading: datetime | None = None) -> None:
        """Take over the database's time, which it was when this clock's :meth:`reading` was that (default: now)."""
        self._offset = database_time - (reading or self.reading())
        self.was_asked()

    def agrees(self, database_time: datetime, asked: datetime, answered: datetime) -> bool:
        """Whether an answer of the database, given between two readings, fits what is known."""
        return asked <= database_time - self._offset <= answered

    def was_asked(self, answered: bool = True) -> None:
        """The database was asked just now; without an answer it is asked again next time."""
        self._measured = _steady() if answered else math.nan
        self._apart = time.time() - self._measured

    def follow_wall(self) -> None:
        """Where the database has no clock of its own: this machine's, unless leases would seem to end by its step."""
        if not self._leases:
            self.synchronise(datetime.now(UTC))


class FakeClock(Clock):
    """A clock that stands still until it is moved: a workflow that waits a week can be tested at once."""

    def __init__(self, start: datetime | None = None) -> None:
        super().__init__()
        self._now = start or datetime.now(UTC)

    def now(self) -> datetime:
        return self._now

    def latest(self) -> datetime:
        return self._now

    def is_stale(self) -> bool:
        return False

    def synchronise(self, database_time: datetime, reading: datetime | None = None) -> None:
        """A fake clock follows no other clock."""

    def advance(self, seconds: float) -> None:
        """Move forward by ``seconds``.

        Raises:
            TypeError, ValueError: it is no number of seconds from 0.
        """
        check_seconds(seconds, "the time to advance by")
        self._now += timedelta(seconds=seconds)

    def advance_to(self, moment: datetime) -> None:
        """Move forward to ``moment``, never back."""
        self._now = max(self._now, moment)
