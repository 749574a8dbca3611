"""From the start of a one-stage workflow to its task body running, beside a bare `delay()`: python -m benchmarks.latency.

Both are asked for at random moments, half as many per second as the engine can take (and once more with nothing else to
do).  The bodies note how long ago they were asked for.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.apps import canvas, engine
from benchmarks.contenders.base import Contender, wait_for
from benchmarks.contenders.engine import Engine
from benchmarks.results import RESULTS, heading, load, surroundings, write
from benchmarks.servers import Servers, servers_running
from benchmarks.shapes import Shape
from stabilize_celery import StageExecution, Workflow


class Delay(Contender):
    """Celery's `delay()` of a task whose result nobody wants."""

    def start(self, servers: Servers) -> None:
        broker = servers.rabbit.add_vhost(self.slug)
        self.record = servers.folder / f"{self.slug}.latencies"
        self.app = canvas.make_app(broker, "rpc://")
        environment = {canvas.BROKER: broker, canvas.BACKEND: "rpc://", engine.RECORD: str(self.record)}
        self.start_worker(servers, "benchmarks.apps.canvas:app", environment)

    def run(self, shape: Shape, size: int) -> float:
        raise NotImplementedError

    def ask(self) -> None:
        """Ask for one."""
        self.app.tasks["bench.clock"].delay(time.monotonic())


def latencies(ask: Callable[[], Any], record: Path, rate: float, count: int) -> list[float]:
    """Ask ``count`` times at random moments, ``rate`` a second on average; milliseconds until each body ran.

    With an infinite rate there is no pause.
    """
    record.unlink(missing_ok=True)
    chance = random.Random(count)
    due = time.monotonic()
    for _ in range(count):
        due += 0.0 if rate == math.inf else chance.expovariate(rate)
        time.sleep(max(0.0, due - time.monotonic()))
        ask()
    wait_for(lambda: record.exists() and len(record.read_text().splitlines()) >= count)
    return [float(line) * 1000 for line in record.read_text().splitlines()]


def throughput(ask: Callable[[], Any], record: Path, count: int) -> float:
    """How many a second are taken if they are asked for one after the other, without a pause."""
    begun = time.monotonic()
    latencies(ask, record, math.inf, count)
    return count / (time.monotonic() - begun)


def percentiles(values: list[float]) -> dict[str, float]:
    """The 50th, the 95th and the highest."""
    cuts = statistics.quantiles(values, n=100)
    return {"p50": cuts[49], "p95": cuts[94], "max": max(values)}


@click.command()
@click.option("--count", default=2000, show_default=True, help="Workflows asked for in each round.")
@click.option("--rounds", default=3, show_default=True, help="Rounds, by turns.")
@click.option("--into", type=click.Path(path_type=Path), default=RESULTS, help="Folder of the results.")
def main(count: int, rounds: int, into: Path) -> None:
    """Measure target T8."""
    with servers_running() as servers:
        where = surroundings(servers)
        ours, bare = Engine(), Delay("bare delay()")
        for contender in (ours, bare):
            contender.start(servers)
        try:

            def start() -> None:
                stage = StageExecution.single("only", "clock", {"asked": time.monotonic()})
                ours.stabilize.start(Workflow.create("bench", "one", [stage]))

            asked: dict[str, tuple[Callable[[], Any], Path]] = {
                "stabilize_celery": (start, Path(ours.environment[engine.RECORD])),
                bare.name: (bare.ask, bare.record),
            }
            found: dict[str, dict[str, list[float]]] = {}
            latencies(*asked["stabilize_celery"], math.inf, 50)
            capacity = statistics.median(throughput(*asked["stabilize_celery"], 300) for _ in range(3))
            for name, rate, many in (("half load", capacity / 2, count), ("idle", 5.0, max(20, count // 20))):
                found[name] = {who: [] for who in asked}
                for _ in range(rounds):
                    for who, (ask, record) in asked.items():
                        found[name][who] += latencies(ask, record, rate, many)
        finally:
            ours.stop()
            bare.stop()
    where |= {"load_after": load(), "capacity": capacity}
    text = heading("From the start to the task body", where)
    told = f"The engine took {capacity:.0f} workflows of one stage a second here; half load is half of that."
    text += [told, "", "| milliseconds | | p50 | p95 | highest |", "|---|---|---|---|---|"]
    for name, by in found.items():
        for who, values in by.items():
            cells = " | ".join(f"{value:.1f}" for value in percentiles(values).values())
            text.append(f"| {name} | {who} | {cells} |")
    data = {
        "surroundings": where,
        "milliseconds": {
            name: {who: percentiles(values) | {"count": len(values)} for who, values in by.items()}
            for name, by in found.items()
        },
    }
    write("latency", data, "\n".join([*text, ""]), {}, into)


if __name__ == "__main__":
    main()
