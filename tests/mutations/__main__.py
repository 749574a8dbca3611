"""``make mutations``: make each change of the list, two side by side, and see its killers fail."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue

from tests.mutations.bench import Bench, Verdict
from tests.mutations.change import Change
from tests.mutations.changes import CHANGES, drawn


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

    def judge(change: Change) -> Verdict:
        bench = benches.get()
        try:
            return bench.judge(change)
        finally:
            benches.put(bench)

    def pass_unchanged(some: list[Change]) -> None:
        bench = benches.get()
        try:
            bench.pass_unchanged(some)
        finally:
            benches.put(bench)

    failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        # A killer that fails anyway kills nothing.
        for _ in pool.map(pass_unchanged, [changes[number::jobs] for number in range(jobs)]):
            pass
        pending = {pool.submit(judge, change): change for change in changes}
        for done in as_completed(pending):
            try:
                told, bad = str(done.result()), bool(done.result().survived)
            except Exception as error:
                told, bad = f"ERROR     {pending[done].name}: {type(error).__name__}: {error}", True
            failed += bad
            print(told, flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
