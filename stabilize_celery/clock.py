"""Where the engine takes the time from, so that tests can hold it and workers agree on it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

#: By how much the clocks of two machines may differ before one takes what the other has sent for not due yet.
TOLERANCE = timedelta(seconds=0.5)


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
