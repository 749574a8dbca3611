"""The simulator's command: ``python -m tests.simulation --histories 100000 --seed 7``.

Each seed is one history: a random workflow, or some with a common limit, random controls, and random faults, run by the
real engine on SQLite in memory.  A history that breaks an invariant is made as short as it can be and told; the
command that tells it again is printed with it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from tests.simulation.invariants import INVARIANTS
from tests.simulation.run import failure_of, play_many, told_story


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status, 1 if an invariant was broken."""
    options = _options(arguments)
    if options.story:
        return _tell(options.seed, None if options.only is None else set(options.only.split(",")))
    return _play(options.seed, options.histories, options.jobs)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description="Run random workflows under random faults, and check after each that nothing was lost or doubled.",
        epilog="invariants:\n" + "\n".join(f"  {name}: {meaning}" for name, meaning in INVARIANTS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--histories", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="the seed of the first (default 0)")
    parser.add_argument("--jobs", type=int, default=1, help="how many processes (default 1)")
    parser.add_argument("--story", action="store_true", help="play the history of --seed alone, and tell it")
    parser.add_argument("--only", help="with --story: leave out all parts of the history but these")
    return parser.parse_args(arguments)


def _play(first: int, histories: int, jobs: int) -> int:
    begin, done, messages = time.monotonic(), 0, 0
    for batch in play_many(first, histories, jobs):
        done, messages = done + batch.histories, messages + batch.messages
        if batch.failed is not None:
            failure = failure_of(batch.failed)
            print(f"{failure}\nto see it again: {failure.command}")
            return 1
        if sys.stderr.isatty():
            print(f"\r{done} of {histories}", end="", file=sys.stderr, flush=True)
    seconds = time.monotonic() - begin
    print(f"{done} histories, {messages} messages delivered in {seconds:.0f} s: every invariant held")
    return 0


def _tell(seed: int, kept: set[str] | None) -> int:
    played = told_story(seed, kept)
    print(played.story)
    for violation in played.violations:
        print(f"\nbroken: {violation}")
    if not played.violations:
        print("\nevery invariant held")
    return 1 if played.violations else 0


if __name__ == "__main__":
    sys.exit(main())
