"""Playing many histories, and making the first one that breaks an invariant as short as it can be."""

from __future__ import annotations

import multiprocessing
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from tests.simulation.generate import random_plan
from tests.simulation.invariants import INVARIANTS
from tests.simulation.plan import Plan
from tests.simulation.scenario import Played, RandomWorkflows, Scenario
from tests.simulation.shrink import smallest

COMMAND = "python -m tests.simulation"


@dataclass(frozen=True)
class Failure:
    """A history that breaks an invariant, as short as it could be made.

    Attributes:
        seed: of the history it was made from.
        invariant: the name of the first invariant that is broken.
        told: how.
        kept: the parts of the history that are needed for it.
        story: what happens.
    """

    seed: int
    invariant: str
    told: str
    kept: tuple[str, ...]
    story: str

    def __str__(self) -> str:
        return (
            f"seed {self.seed} breaks {self.invariant} ({INVARIANTS[self.invariant]}):\n"
            f"  {self.told}\n\n{self.story}\n"
        )

    @property
    def command(self) -> str:
        """What replays it, for random workflows."""
        return f"{COMMAND} --seed {self.seed} --story --only {','.join(self.kept)}"


def shortened(scenario: Scenario, seed: int, plan: Plan, played: Played) -> Failure:
    """The shortest story of a failure that can be found."""
    broken = played.broken
    dropped = smallest(plan.parts(), lambda without: scenario.play(plan.without(without)).broken == broken)
    told = scenario.play(plan.without(dropped), told=True)
    if not told.violations:
        # The user's code does not do the same thing each time.
        dropped, told = set(), played
    first = told.violations[0]
    return Failure(seed, first.invariant, first.told, _kept(plan, dropped), str(told.story))


def _kept(plan: Plan, dropped: Collection[str]) -> tuple[str, ...]:
    return tuple(
        part
        for part in plan.parts()
        if part not in dropped and not any(part.startswith(f"{other}.") for other in dropped)
    )


def only(plan: Plan, kept: Collection[str]) -> Plan:
    """A plan without everything that is not kept."""
    return plan.without({part for part in plan.parts() if part not in kept})


@dataclass(frozen=True)
class Batch:
    """What came of some seeds."""

    histories: int
    messages: int
    #: The first seed whose history broke an invariant.
    failed: int | None = None


def play_seeds(seeds: Iterable[int]) -> Batch:
    """Play random histories until one breaks an invariant."""
    scenario, histories, messages = RandomWorkflows(), 0, 0
    for seed in seeds:
        played = scenario.play(random_plan(seed))
        histories, messages = histories + 1, messages + played.steps
        if played.broken:
            return Batch(histories, messages, seed)
    return Batch(histories, messages)


def play_many(first: int, histories: int, jobs: int = 1, size: int = 50) -> Iterator[Batch]:
    """Play the histories of seeds from ``first`` on, in some processes; each batch is told when it is done."""
    end = first + histories
    batches = [range(start, min(start + size, end)) for start in range(first, end, size)]
    if jobs == 1:
        yield from map(play_seeds, batches)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap_unordered(play_seeds, batches)


def failure_of(seed: int) -> Failure:
    """The shortest story of a seed that is known to fail."""
    scenario, plan = RandomWorkflows(), random_plan(seed)
    played = scenario.play(plan)
    return shortened(scenario, seed, plan, played)


def told_story(seed: int, kept: Collection[str] | None = None) -> Played:
    """Play one random history and tell it."""
    plan = random_plan(seed)
    return RandomWorkflows().play(plan if kept is None else only(plan, kept), told=True)
