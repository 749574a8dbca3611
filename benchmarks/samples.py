"""Alternating runs: what was measured, and the medians, spreads and ratios of it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

from benchmarks.contenders.base import Contender
from benchmarks.servers import Servers
from benchmarks.shapes import SHAPES, Shape

WARM_UP = 30


@dataclass
class Samples:
    """Milliseconds per stage of every run, by shape, size and contender."""

    values: dict[tuple[str, int, str], list[float]] = field(default_factory=dict)
    #: Milliseconds of processor time per stage, of all processes together; another's work on the machine is not in it.
    processor: dict[tuple[str, int, str], list[float]] = field(default_factory=dict)
    #: Why a figure is missing.
    absent: dict[tuple[str, int, str], str] = field(default_factory=dict)

    def median(self, shape: str, size: int, contender: str) -> float | None:
        """The middle one; ``None`` if there is none."""
        values = self.values.get((shape, size, contender))
        return statistics.median(values) if values else None

    def spread(self, shape: str, size: int, contender: str) -> tuple[float, float] | None:
        """The lowest and the highest."""
        values = self.values.get((shape, size, contender))
        return (min(values), max(values)) if values else None

    def as_json(self) -> list[dict[str, object]]:
        """For machines."""
        measured: list[dict[str, object]] = [
            {
                "shape": shape,
                "stages": size,
                "contender": name,
                "ms_per_stage": [round(v, 4) for v in values],
                "processor_ms_per_stage": [round(v, 4) for v in self.processor.get((shape, size, name), [])],
            }
            for (shape, size, name), values in self.values.items()
        ]
        return measured + [
            {"shape": shape, "stages": size, "contender": name, "absent": why}
            for (shape, size, name), why in self.absent.items()
        ]


def started(contenders: Sequence[Contender], servers: Servers) -> list[Contender]:
    """Start them; one that cannot be started here is left out, and said so."""
    ready = []
    for contender in contenders:
        try:
            contender.start(servers)
        except (OSError, ImportError, RuntimeError, subprocess.CalledProcessError) as error:
            contender.stop()
            say(f"left out: {contender.name}: {error}")
        else:
            ready.append(contender)
    return ready


def measure(
    contenders: Sequence[Contender],
    shapes: Sequence[Shape],
    sizes: Sequence[int],
    rounds: int,
    longest: float,
) -> Samples:
    """Run every shape and size, the contenders by turns.

    Args:
        rounds: runs of each.
        longest: seconds that a run may be expected to take, by what smaller ones took; longer ones are left out.
    """
    samples = Samples()
    try:
        _measure(samples, contenders, shapes, sizes, rounds, longest)
    except KeyboardInterrupt:
        say("interrupted; what was measured is written")
    return samples


def _measure(
    samples: Samples,
    contenders: Sequence[Contender],
    shapes: Sequence[Shape],
    sizes: Sequence[int],
    rounds: int,
    longest: float,
) -> None:
    for shape in shapes:
        able = [contender for contender in contenders if shape in contender.shapes]
        for contender in able:
            _run(samples, contender, shape, WARM_UP, keep=False)
        for size in sizes:
            for turn in range(rounds):
                # Nobody is always the first after a checkpoint.
                for contender in able[turn % len(able) :] + able[: turn % len(able)]:
                    if (shape.name, size, contender.name) in samples.absent:
                        continue
                    expected = _expected(samples, contender, shape, size)
                    if expected > longest:
                        why = f"would take about {expected:.0f} s"
                        samples.absent[shape.name, size, contender.name] = why
                    else:
                        _run(samples, contender, shape, size)


def _expected(samples: Samples, contender: Contender, shape: Shape, size: int) -> float:
    known = [
        (other, values)
        for (name, other, who), values in samples.values.items()
        if name == shape.name and who == contender.name and values and other < size
    ]
    if not known:
        return 0.0
    return statistics.median(max(known)[1]) * size / 1000


def _run(samples: Samples, contender: Contender, shape: Shape, size: int, *, keep: bool = True) -> None:
    key = (shape.name, size, contender.name)
    before = processor_seconds()
    try:
        seconds = contender.run(shape, size)
    except Exception as error:
        traceback.print_exc()
        if keep:
            samples.values.pop(key, None)
            samples.absent[key] = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return
    stages = size - size % shape.each if shape.each else size
    if keep:
        used = processor_seconds() - before
        samples.values.setdefault(key, []).append(seconds / stages * 1000)
        samples.processor.setdefault(key, []).append(used / stages * 1000)
    say(f"{shape.name:8} {stages:6} {contender.name:40} {seconds / stages * 1000:8.2f} ms per stage")


def processor_seconds(pid: int | None = None) -> float:
    """What a process (this one), all below it and those that ended there have used so far: servers and workers."""
    total = 0.0
    own = psutil.Process(pid)
    for process in [own, *own.children(recursive=True)]:
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:4])
    return total


def busy(servers: Servers, contender: Contender) -> dict[str, float]:
    """Seconds of processors used so far, by who used them."""
    pids = {
        "PostgreSQL": [servers.postgres.pid],
        "RabbitMQ": [servers.rabbit.pid],
        "workers": [worker.pid for worker in contender.workers],
        "client": [],
    }
    used = {name: sum(processor_seconds(pid) for pid in many) for name, many in pids.items()}
    own = psutil.Process().cpu_times()
    return used | {"client": own.user + own.system}


def say(what: str) -> None:
    """Progress, for whoever waits."""
    print(what, file=sys.stderr, flush=True)


def shapes_named(names: str) -> list[Shape]:
    """Shapes from text with commas; ``all`` is all.

    Raises:
        ValueError: there is none of that name.
    """
    if names == "all":
        return list(SHAPES.values())
    unknown = set(names.split(",")) - set(SHAPES)
    if unknown:
        raise ValueError(f"no shape {', '.join(sorted(unknown))}; there are {', '.join(SHAPES)}")
    return [SHAPES[name] for name in names.split(",")]
