"""``make mutations``: make each change of the list, two side by side, and see its killers fail."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from tests.mutations.bench import Bench
from tests.mutations.change import Change
from tests.mutations.changes import CHANGES, drawn

T = TypeVar("T")


def main() -> int:
    """Returns the exit status: 0 if every change is killed by each of its killers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", default="", help="only changes whose name has this text")
    parser.add_argument("--killers", default="", help="only changes with a killer under this path")
    parser.add_argument("--drawn", type=int, help="only so many, drawn by SEED, or by the date")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    chosen = CHANGES if arguments.drawn is None else drawn(arguments.drawn, os.environ.get("SEED"))
    chosen = [
        change for change in chosen if arguments.name in change.name and _has(change, arguments.killers)
    ]
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="stabilize-mutations-") as folder:
        failed = _run(chosen, Path(folder), arguments.jobs)
    print(f"{len(chosen)} changes, {failed} not killed, in {time.monotonic() - began:.0f} s")
    return 1 if failed or not chosen else 0


def _has(change: Change, path: str) -> bool:
    return any(killer.startswith(path) for killer in change.killers)


def _run(changes: list[Change], folder: Path, jobs: int) -> int:
    """Judge all of them; returns how many are not killed."""
    benches: SimpleQueue[Bench] = SimpleQueue()
    for number in range(jobs):
        benches.put(Bench(folder / str(number)))

    def borrowed(use: Callable[[Bench], T]) -> T:
        bench = benches.get()
        try:
            return use(bench)
        finally:
            benches.put(bench)

    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        halves = [changes[number::jobs] for number in range(jobs)]
        unfit = pool.map(lambda half: borrowed(lambda bench: bench.fails_unchanged(half)), halves)
        useless = set().union(*unfit)
        for killer in sorted(useless):
            print(f"USELESS   {killer} fails without any change", flush=True)
        pending = {
            pool.submit(borrowed, lambda bench, c=change: bench.judge(c)): change for change in changes
        }
        for done in as_completed(pending):
            change = pending[done]
            try:
                told, bad = str(done.result()), bool(done.result().survived or useless & {*change.killers})
            except Exception as error:
                told, bad = f"ERROR     {change.name}: {type(error).__name__}: {error}", True
            failed += bad
            print(told, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
