"""Every target beside what was measured: python -m benchmarks.targets.

Reads the newest results of the other programs and says which target is met, and by how much which is not.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.contenders.bare import BARE
from benchmarks.contenders.canvas import name_of
from benchmarks.contenders.engine import OFF, OURS
from benchmarks.contenders.programs import REFERENCE
from benchmarks.results import RESULTS, write

CANVAS = name_of("PostgreSQL")
SMALL, LARGE = 100, 10_000
#: 1,000 workflows of 3 stages.
BULK = 3000


@dataclass(frozen=True)
class Finding:
    """One figure beside its bound."""

    target: str
    what: str
    #: As measured, with its unit; and how far it may go, up (``at most``) or down.
    measured: float
    bound: float
    at_most: bool
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.measured <= self.bound if self.at_most else self.measured >= self.bound

    @property
    def verdict(self) -> str:
        """For the table."""
        if self.met:
            return "met"
        share = self.measured / self.bound
        return f"missed: {share:.1f} times as much" if self.at_most else f"missed: {share * 100:.0f} % of it"


class Missing(LookupError):
    """A program has not been run yet."""


class Results:
    """The figures in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pages: dict[str, dict[str, Any]] = {}

    def load(self, name: str) -> dict[str, Any]:
        """A page of results.

        Raises:
            Missing: it was not made.
        """
        if name not in self._pages:
            file = self.folder / f"{name}.json"
            if not file.exists():
                raise Missing(name)
            self._pages[name] = json.loads(file.read_text())
        return self._pages[name]

    def median(self, page: str, shape: str, stages: int, contender: str) -> float:
        """Milliseconds per stage.

        Raises:
            Missing: nothing was measured there.
        """
        for each in self.load(page)["samples"]:
            key = (each["shape"], each["stages"], each["contender"])
            if key == (shape, stages, contender) and each.get("ms_per_stage"):
                return statistics.median(each["ms_per_stage"])
        raise Missing(f"{page}: {shape}, {stages} stages, {contender}")

    def ratio(self, page: str, shape: str, stages: int, over: str, under: str) -> float:
        """How many times as long one takes as another, by turns in one run."""
        return self.median(page, shape, stages, over) / self.median(page, shape, stages, under)

    def largest(self, page: str, shape: str, *contenders: str) -> int:
        """The largest size at which all of them were measured."""
        sizes = [
            {
                each["stages"]
                for each in self.load(page)["samples"]
                if (each["shape"], each["contender"]) == (shape, contender) and each.get("ms_per_stage")
            }
            for contender in contenders
        ]
        common = set.intersection(*sizes)
        if not common:
            raise Missing(f"{page}: {shape}, {', '.join(contenders)}")
        return max(common)


Look = Callable[[Results], Iterator[Finding]]


def _faster(target: str, shape: str, ours: str, than_canvas: float, than_reference: float) -> Look:
    def look(results: Results) -> Iterator[Finding]:
        size = results.largest("peers", shape, ours, CANVAS)
        times = results.ratio("peers", shape, size, CANVAS, ours)
        yield Finding(target, f"{shape}, {size:,} stages: times as fast as canvas", times, than_canvas, False)
        size = results.largest("reference", shape, ours, REFERENCE)
        times = results.ratio("reference", shape, size, REFERENCE, ours)
        yield Finding(
            target, f"{shape}, {size:,} stages: times as fast as `stabilize`", times, than_reference, False
        )

    return look


def _limit(results: Results) -> Iterator[Finding]:
    size = results.largest("peers", "chain", OURS, BARE)
    times = results.ratio("peers", "chain", size, OURS, BARE)
    yield Finding("T3", f"chain, {size:,} stages: times the bare limit", times, 1.5, True)


def _flat(results: Results) -> Iterator[Finding]:
    for shape in ("chain", "fan", "fan-in", "wide", "payload"):
        small, large = (results.median("large", shape, size, OURS) for size in (SMALL, LARGE))
        yield Finding("T4", f"{shape}: a stage of {LARGE:,} to one of {SMALL}", large / small, 1.2, True)


def _bulk(results: Results) -> Iterator[Finding]:
    many, one = (results.median("large", shape, BULK, OURS) for shape in ("many", "chain"))
    what = f"{BULK // 3:,} workflows of 3 stages to a chain of {BULK:,}"
    yield Finding("T6", what, many / one, 1.3, True)


def _past(results: Results) -> Iterator[Finding]:
    samples = results.load("past")["samples"]
    empty, full = dict.fromkeys(each["contender"] for each in samples)
    for shape in dict.fromkeys(each["shape"] for each in samples):
        size = results.largest("past", shape, empty, full)
        times = results.ratio("past", shape, size, full, empty)
        yield Finding("T7", f"{shape}: with {full} to an {empty}", times, 1.1, True)


def _latency(results: Results) -> Iterator[Finding]:
    measured = results.load("latency")["milliseconds"]["half load"][OURS]
    for name, bound in (("p50", 15.0), ("p95", 50.0)):
        yield Finding("T8", f"start to task body, half load, {name}", measured[name], bound, True, " ms")


def _waiting(results: Results) -> Iterator[Finding]:
    measured = results.load("waiting")
    empty, full = (measured[which]["statements per second"] for which in ("empty", "full"))
    what = "statements a second with all that waits, to those with nothing"
    yield Finding("T9", what, full / empty, 1.2, True)


def _memory(results: Results) -> Iterator[Finding]:
    sizes = results.load("memory-prefork")["bytes"]
    # What a process needs once is there long before the half; what grows with each stage goes on.
    (half, low), (last, high) = sizes[len(sizes) // 2 - 1], sizes[-1]
    yield Finding("T10", f"memory after {last:,} stages to that after {half:,}", high / low, 1.02, True)


LOOKS: tuple[Look, ...] = (
    _faster("T1", "chain", OURS, 4, 50),
    _faster("T2", "fan", OURS, 6, 100),
    _limit,
    _flat,
    _bulk,
    _past,
    _latency,
    _waiting,
    _memory,
    _faster("T11", "chain", OFF, 1, 10),
)
#: What is known of targets that are missed; the profile shows it.
WHY = {
    "T1": "One hop through the broker and two transactions take longer than a quarter of a canvas by themselves, see T3.",
    "T2": "The same; besides, all arms end in the row of their join.",
    "T4": "Thousands of independent stages all count down on the row of their workflow, and wait for each other there.",
    "T11": "Five messages, five transactions for each stage, each as dear as the canvas's one.",
}


def table(found: list[Finding], missing: list[str]) -> list[str]:
    """The page's table."""
    rows = [
        f"| {each.target} | {each.what} | {'at most' if each.at_most else 'at least'} {each.bound:g}{each.unit} "
        f"| {each.measured:.2f}{each.unit} | {each.verdict} |"
        for each in found
    ]
    missed = dict.fromkeys(each.target for each in found if not each.met)
    return [
        "| | | bound | measured | |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "T5, what a stage costs in statements, transactions and messages, is checked by `tests/costs/`.",
        "",
        *(f"- {target}: {WHY[target]} (`profile-chain.md`)" for target in missed if target in WHY),
        *(f"- not measured: {what}" for what in missing),
    ]


def findings(results: Results) -> tuple[list[Finding], list[str]]:
    """What was measured, and what was not."""
    found: list[Finding] = []
    missing: list[str] = []
    for look in LOOKS:
        try:
            found.extend(look(results))
        except Missing as what:
            if str(what) not in missing:
                missing.append(str(what))
    return found, missing


@click.command()
@click.option("--results", "folder", type=click.Path(path_type=Path), default=RESULTS, help="Folder.")
def main(folder: Path) -> None:
    """Say which targets are met."""
    found, missing = findings(Results(folder))
    told = "Targets and what was measured, from the pages beside this one."
    text = ["# Targets", "", "    python -m benchmarks.targets", "", told, "", *table(found, missing), ""]
    data = {"findings": [{**vars(each), "met": each.met} for each in found], "missing": missing}
    write("targets", data, "\n".join(text), {}, folder)


if __name__ == "__main__":
    main()
