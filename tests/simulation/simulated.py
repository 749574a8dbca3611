"""An engine made ready for simulated worlds: its clock, its leases, and how its processes die."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from stabilize_celery.clock import FakeClock
from stabilize_celery.crash_points import ProcessDiedError
from stabilize_celery.engine import Stabilize
from stabilize_celery.worker.leases import Lease, LeaseKeeper
from tests.simulation.watch import Watch

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class Killed(ProcessDiedError):
    """A process died."""


class SimulatedClock(FakeClock):
    """A clock that can be set back to the beginning for the next history."""

    def __init__(self) -> None:
        super().__init__(BEGIN)

    def reset(self) -> None:
        """It is the beginning again."""
        self._now = BEGIN


class SimulatedKeeper(LeaseKeeper):
    """Leases without a thread: the heart beats once when a task begins, and time limits run out when told to."""

    watch: Watch | None = None
    _current: Lease | None = None

    @contextmanager
    def keep(self, lease: Lease) -> Iterator[Lease]:
        outer, self._current = self._current, lease
        self._beat([lease])
        if self.watch is not None:
            self.watch.called(lease.message_id, lease.run)
        try:
            yield lease
        finally:
            lease.done.set()
            self._current = outer

    def expire(self) -> None:
        """The call that is running takes longer than it may."""
        lease = self._current
        if lease is not None and not lease.expired:
            lease.expired = True
            lease.on_deadline()


def simulated(engine: Stabilize) -> Stabilize:
    """Make an embedded engine ready for simulated worlds; it is good for nothing else then."""
    dispatcher, settings = engine.dispatcher, engine.settings
    keeper = SimulatedKeeper(engine.store, settings.lease, settings.heartbeat, settings.task_kill_grace)
    # Looked up at each call, because the watch takes the place of the store's methods.
    keeper.renew = lambda leases, lease: engine.store.heartbeat(leases, lease, dispatcher.worker.owner)
    dispatcher.keeper = dispatcher.worker.keeper = keeper
    # With an observer transactions keep what they change.
    engine.observers.append(lambda transitions: None)
    return engine
