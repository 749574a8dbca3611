"""Interleaves transactions, statement by statement, and judges what comes of it.

Each history must come to what *some* serial order of its transactions comes to.  The first such order tried is the one
in which they were committed; every order is played on the same engine from the same state, one whole transaction after the
other.  The pure rules of ``dag/`` and the invariants of the simulator are checked after both.

``python -m tests.interleaving.explore --seed 7 --schedules 20000`` explores; with ``--schedules 1`` it replays one.
"""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from tests.interleaving.scheduler import (
    Anyone,
    Participant,
    Policy,
    Preempted,
    Priorities,
    Schedule,
    Scheduler,
    Serially,
    stopping,
)
from tests.interleaving.situations import PAIRS, Situation, pair, random_situation
from tests.interleaving.world import Result, World

#: How many schedules a random situation is played by.
PER_SITUATION = 4
#: How many of the schedules of a pair are played where not all of them are.
PER_PAIR = 12
#: How many serial orders are tried at most before a history is said to be none of them.
_MOST_ORDERS = 60


class FoundError(AssertionError):
    """A history that no serial order explains, or that breaks an invariant."""


@dataclass
class History:
    """One schedule, played."""

    schedule: Schedule
    result: Result
    #: How many transactions each participant committed.
    transactions: list[int]


class Explorer:
    """Plays schedules of one situation after the other."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.played = 0
        self._serial: dict[tuple[int, ...], Result] = {}

    # ------------------------------------------------------------------ playing

    def play(self, situation: Situation, policy: Policy) -> History:
        """Play a situation from its beginning to its end."""
        world = self.world
        world.turn_to(situation.inline)
        world.put_back(situation.state)
        world.known = situation.known
        participants = [
            Participant(number, f"{number} {name}", lambda action=action: action(world))  # type: ignore[misc]
            for number, (name, action) in enumerate(situation.participants)
        ]
        with stopping(world.engine.store.database.engine, world.theirs):
            schedule = Scheduler(world.server, policy).run(participants)
        result = world.result(participants)
        transactions = [schedule.commits.count(each.number) for each in participants]
        return History(schedule, result, transactions)

    def judge(self, situation: Situation, history: History) -> None:
        """See whether a history is right.

        Raises:
            FoundError: it is not.
        """
        problems = list(history.result.problems)
        foreign = any(name == "operator" for name, _ in situation.participants)
        if not foreign:
            problems += [f"no_deadlock: a transaction of {who}" for who in history.schedule.deadlocks]
        if problems:
            raise FoundError(_report(situation, history, problems))
        tried: list[Result] = []
        for order in itertools.islice(self._orders(history), _MOST_ORDERS):
            serial = self._serially(situation, order)
            if serial.outcome == history.result.outcome:
                return
            tried.append(serial)
        problems = [
            f"no serial order of {len(tried)} comes to this:",
            str(history.result.outcome),
            f"in the order of its commits, {history.schedule.commits}:",
            str(tried[0].outcome),
        ]
        raise FoundError(_report(situation, history, problems))

    def _orders(self, history: History) -> Iterator[tuple[int, ...]]:
        yield tuple(history.schedule.commits)
        numbers = range(len(history.transactions))
        for order in itertools.permutations(numbers):
            yield tuple(n for n in order for _ in range(history.transactions[n]))
        yield from _merged(history.transactions)

    def _serially(self, situation: Situation, order: tuple[int, ...]) -> Result:
        if order not in self._serial:
            played = self.play(situation, Serially(order))
            if played.result.problems:
                raise FoundError(_report(situation, played, ["serially:", *played.result.problems]))
            self._serial[order] = played.result
        return self._serial[order]

    # ------------------------------------------------------------------ exploring

    def hunt(self, seed: int, schedules: int) -> None:
        """Some schedules of every pair of the list, then random situations.

        Raises:
            FoundError: one is wrong.
        """
        for inline, name in itertools.product((True, False), PAIRS):
            self.pair(name, inline, 2 * PER_PAIR)
        self.explore(seed, schedules - self.played)

    def pair(self, name: str, inline: bool, most: int | None = None) -> None:
        """Play a pair of the list, see :meth:`preempt`.

        Raises:
            FoundError: a schedule is wrong.
        """
        with self.world.watching():
            situation = pair(self.world, name, inline)
        self.preempt(situation, most)

    def explore(self, seed: int, schedules: int, inline: bool | None = None) -> None:
        """Play random situations, each by a few random schedules.

        Args:
            seed: of the first situation; the next one has the next seed.
            schedules: so many in all.
            inline: whether the engine continues in place; ``None`` lets the seed choose.

        Raises:
            FoundError: one is wrong.
        """
        end = self.played + schedules
        with self.world.watching():
            for number in itertools.count(seed):
                if self.played >= end:
                    return
                situation = random_situation(self.world, number, inline)
                if situation is not None:
                    self._some(situation, number, min(PER_SITUATION, end - self.played))

    def _some(self, situation: Situation, seed: int, many: int) -> None:
        self._serial.clear()
        random = Random(seed)
        first = self.play(
            situation, Serially([n for n in range(len(situation.participants)) for _ in range(9)])
        )
        if first.result.problems:
            raise FoundError(_report(situation, first, ["serially:", *first.result.problems]))
        length = len(first.schedule.steps)
        for _ in range(many):
            policy: Policy = Anyone(random)
            if random.random() < 0.7:
                changes = random.choice((0, 1, 1, 2, 2, 3))
                policy = Priorities(random, len(situation.participants), length, changes)
            self.judge(situation, self.play(situation, policy))
            self.played += 1

    def preempt(self, situation: Situation, most: int | None = None) -> None:
        """Play a situation of two participants by every schedule with up to two preemptions, or by ``most`` of them.

        Raises:
            FoundError: one is wrong.
        """
        self._serial.clear()
        with self.world.watching():
            first = self.play(situation, Serially([0] * 99))
            steps = [each.participant[0] for each in first.schedule.steps]
            lengths_of = [steps.count(str(who)) for who in (0, 1)]
            one = [(who, n) for who in (0, 1) for n in range(1, lengths_of[who])]
            two = [(*each, m) for each in one for m in range(1, lengths_of[1 - each[0]])]
            if most is not None:
                random = Random(situation.name)
                one = random.sample(one, min(most // 2, len(one)))
                two = random.sample(two, min(most - len(one), len(two)))
            for who, *lengths in [*one, *two]:
                self.judge(situation, self.play(situation, Preempted(who, *lengths)))
                self.played += 1


def _merged(counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every order of so many transactions of each participant."""
    if not any(counts):
        yield ()
        return
    for number, count in enumerate(counts):
        if count:
            rest = [*counts[:number], count - 1, *counts[number + 1 :]]
            yield from ((number, *order) for order in _merged(rest))


def _report(situation: Situation, history: History, problems: Iterable[str]) -> str:
    return "\n".join(["", *problems, "", str(situation), "", str(history.schedule)])


def main() -> None:
    """Explore from the command line, on a PostgreSQL of its own."""
    from stabilize_celery.persistence.schema import create_tables
    from tests.services import choose_postgres

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the first random situation")
    parser.add_argument("--schedules", type=int, default=20_000)
    parser.add_argument(
        "--pairs", action="store_true", help="every schedule of every pair of the list instead"
    )
    arguments = parser.parse_args()
    # What tasks raise here is no news.
    logging.lastResort = None
    service = choose_postgres()
    service.start()
    try:
        url = service.create_database("interleaving")
        create_tables(url)
        explorer = Explorer(World(url))
        if arguments.pairs:
            for inline, name in itertools.product((True, False), PAIRS):
                explorer.pair(name, inline)
                print(f"{name}, inline={inline}: {explorer.played} schedules so far", flush=True)
        else:
            explorer.explore(arguments.seed, arguments.schedules)
        print(f"{explorer.played} schedules: each is what some serial order comes to")
        explorer.world.close()
    finally:
        service.discard()


if __name__ == "__main__":
    main()
