"""What can go wrong, and where: each fault strikes at the n-th time a place is passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from stabilize_celery.crash_points import POINTS

#: Where the broker hands out a message.
DELIVERY = "delivery"

#: What may happen to a delivery, with a description for stories; ``{}`` stands for the fault's number.
DELIVERY_FAULTS: dict[str, str] = {
    "late": "the broker keeps it for {} s",
    "twice": "the broker delivers it twice",
    "lost": "the broker loses it",
    "wiped": "the broker loses everything it holds",
    "overtaken": "{} other messages overtake it",
    "idle": "nothing happens for {} s",
}
#: What may happen to a process at a crash point.
POINT_FAULTS: dict[str, str] = {
    "killed": "the process dies; the broker delivers its message again",
    "killed silently": "the process dies; the broker has forgotten its message",
    "paused": "the process hangs while others handle {} messages",
    "doubled": "the broker delivers its message to others too; it hangs while they handle {} messages",
    "frozen": "the process hangs until its leases are over, and while others handle {} messages",
    "outlasted": "it hangs until its leases are over; who is given its task hangs for longer, for {} messages or more",
}
#: Points within a transaction, where a process can die and nobody else can go on.
WITHIN_TRANSACTION = frozenset({"start.written", "message.taken", "message.handled"})
#: Points that exist without a real broker and a real relay, each as often as it should be struck.
_STRUCK = {
    "start.written": 1,
    "start.committed": 2,
    "message.taken": 1,
    "message.handled": 3,
    "message.committed": 6,
    "message.published": 4,
    "message.done": 2,
    "task.claimed": 6,
    "task.returned": 9,
    "relay.taken": 2,
}
assert _STRUCK.keys() < POINTS.keys()


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        place: a crash point, or ``delivery``.
        at: which passing of the place, counted from 0.
        kind: a key of :data:`DELIVERY_FAULTS` or :data:`POINT_FAULTS`.
        number: seconds or messages, see there.
    """

    place: str
    at: int
    kind: str
    number: int = 0

    def __str__(self) -> str:
        described = {**DELIVERY_FAULTS, **POINT_FAULTS}[self.kind].format(self.number)
        return described if self.place == DELIVERY else f"at {self.place}: {described}"


class Faults:
    """Which fault strikes now."""

    def __init__(self, faults: Sequence[Fault] = ()) -> None:
        self._by_place = {(fault.place, fault.at): fault for fault in faults}
        self._passed: Counter[str] = Counter()

    def strike(self, place: str) -> Fault | None:
        """A place is passed once more; returns what goes wrong there."""
        number = self._passed[place]
        self._passed[place] += 1
        return self._by_place.get((place, number))


def random_faults(random: Random, most: int = 9, length: int = 12) -> list[Fault]:
    """Some faults, most of them early enough to strike.

    Args:
        random: decides.
        most: at most that many; none at all now and then.
        length: about how many messages the history has.
    """
    return [_random_fault(random, length) for _ in range(random.randrange(most + 1))]


def _random_fault(random: Random, length: int) -> Fault:
    if random.random() < 0.4:
        kind = random.choice(list(DELIVERY_FAULTS))
        number = {"overtaken": random.randint(1, 4)}.get(kind, random.choice((1, 4, 12, 31, 65)))
        return Fault(DELIVERY, random.randrange(2 * length), kind, number)
    place = random.choices(list(_STRUCK), list(_STRUCK.values()))[0]
    kinds = ["killed", "killed silently"]
    if place not in WITHIN_TRANSACTION:
        kinds += ["paused", "paused"]
    if place in ("task.claimed", "task.returned"):
        kinds += ["frozen", "frozen", "outlasted", "doubled", "doubled"]
    return Fault(place, random.randrange(length), random.choice(kinds), random.randint(1, 6))
