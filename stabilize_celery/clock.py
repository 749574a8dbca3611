"""Where the engine takes the time from, so that tests can hold it and workers agree on it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
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


class Clock:
    """The time of the database, as far as this process knows it.

    Leases and due times are compared by different machines; each measures once how far its own clock is from the
    database's and corrects for it.
    """

    def __init__(self) -> None:
        self._offset = timedelta()

    def now(self) -> datetime:
        """The current time, timezone-aware."""
        return datetime.now(UTC) + self._offset

    def latest(self) -> datetime:
        """What is due by then may be handled: other machines may be a little ahead."""
        return self.now() + TOLERANCE

    def synchronise(self, database_time: datetime, own_time: datetime | None = None) -> None:
        """Take over the database's time, which it was when this machine's clock showed ``own_time`` (default: now)."""
        self._offset = database_time - (own_time or datetime.now(UTC))


class FakeClock(Clock):
    """A clock that stands still until it is moved: a workflow that waits a week can be tested at once."""

    def __init__(self, start: datetime | None = None) -> None:
        super().__init__()
        self._now = start or datetime.now(UTC)

    def now(self) -> datetime:
        return self._now

    def latest(self) -> datetime:
        return self._now

    def synchronise(self, database_time: datetime, own_time: datetime | None = None) -> None:
        """A fake clock follows nobody."""

    def advance(self, seconds: float) -> None:
        """Move forward by ``seconds``."""
        self._now += timedelta(seconds=seconds)

    def advance_to(self, moment: datetime) -> None:
        """Move forward to ``moment``, never back."""
        self._now = max(self._now, moment)
