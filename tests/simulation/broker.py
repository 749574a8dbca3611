"""A broker in memory: it hands out what it was given, late, twice, in another order, or never."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from stabilize_celery.clock import Clock
from stabilize_celery.persistence.rows import Outgoing
from tests.simulation.faults import DELIVERY, Fault, Faults

_NEVER_MORE_THAN = 2000


@dataclass(frozen=True)
class Delivery:
    """A message in a queue, and when it is handed out at the earliest."""

    message: Outgoing
    ready_at: datetime


class SimulatedBroker:
    """The publisher of a simulated engine.

    Args:
        clock: the simulated time.
        published: called with whatever is published, before it is.
        struck: called with every fault that strikes a delivery.
    """

    def __init__(
        self,
        clock: Clock,
        faults: Faults,
        published: Callable[[list[Outgoing]], None],
        struck: Callable[[Fault, Outgoing], None],
    ) -> None:
        self._clock = clock
        self._faults = faults
        self._published = published
        self._struck = struck
        self._queue: list[Delivery] = []

    def publish(self, outgoing: list[Outgoing]) -> None:
        """Take messages in."""
        self._published(outgoing)
        now = self._clock.now()
        self._queue += [Delivery(message, now) for message in outgoing]
        del self._queue[_NEVER_MORE_THAN:]

    def wake(self, due: datetime) -> None:
        """The simulated relay looks by itself."""

    def next_ready(self) -> datetime | None:
        """When something can be handed out next."""
        return min((delivery.ready_at for delivery in self._queue), default=None)

    def take(self) -> tuple[Outgoing | None, float]:
        """The next message, if one can be handed out now; and how many seconds pass before.

        A fault may strike it; what is lost is not given back.
        """
        now = self._clock.now()
        ready = [delivery for delivery in self._queue if delivery.ready_at <= now]
        if not ready:
            return None, 0.0
        delivery, fault = ready[0], self._faults.strike(DELIVERY)
        if fault is not None:
            self._struck(fault, delivery.message)
            if fault.kind == "overtaken":
                delivery = ready[fault.number % len(ready)]
            elif fault.kind == "wiped":
                self._queue.clear()
                return None, 0.0
            elif fault.kind == "late":
                self._queue.remove(delivery)
                self._queue.append(Delivery(delivery.message, now + timedelta(seconds=fault.number)))
                return None, 0.0
        self._queue.remove(delivery)
        if fault is not None:
            if fault.kind == "lost":
                return None, 0.0
            if fault.kind == "twice":
                self._queue.append(Delivery(delivery.message, now))
            elif fault.kind == "idle":
                return delivery.message, float(fault.number)
        return delivery.message, 0.0
