"""Chain and fan-out with join: this engine beside Celery's own canvas, alternating, in one run.

    python -m benchmarks.peers [--stages 500] [--rounds 3]

Both use the same RabbitMQ, the same PostgreSQL (state here, result backend there) and the same number of worker
processes.  Single times say little on a shared machine; the ratio of the medians does.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import click
from rich.console import Console
from rich.table import Table

from benchmarks.services import deployment_running

Measure = Callable[[int], float]


@click.command()
@click.option("--stages", default=500, show_default=True, help="Stages of each workflow.")
@click.option("--rounds", default=3, show_default=True, help="Alternating runs of each contender.")
@click.option("--processes", default=2, show_default=True, help="Pool processes of each contender's worker.")
@click.option("--json", "as_json", is_flag=True, help="Print figures for machines.")
def main(stages: int, rounds: int, processes: int, as_json: bool) -> None:
    """Print milliseconds per stage of both, and their ratio."""
    with deployment_running(("engine_app", "canvas_app"), processes):
        figures = compare(_contenders(), stages, rounds)
    report(figures, stages, as_json)


def _contenders() -> dict[str, dict[str, Measure]]:
    from benchmarks import deployment as d

    def engine(build: Callable[[int], object]) -> Measure:
        def measure(stages: int) -> float:
            workflow = build(stages)
            begun = time.perf_counter()
            run = d.stabilize.start(workflow)  # type: ignore[arg-type]
            run.get(timeout=600)
            return time.perf_counter() - begun

        return measure

    def canvas(build: Callable[[int], object]) -> Measure:
        def measure(stages: int) -> float:
            signature = build(stages)
            begun = time.perf_counter()
            signature.apply_async().get(timeout=600, interval=0.02)  # type: ignore[attr-defined]
            return time.perf_counter() - begun

        return measure

    return {
        "chain": {"stabilize_celery": engine(d.chain_workflow), "Celery chain": canvas(d.canvas_chain)},
        "fan-out with join": {
            "stabilize_celery": engine(d.fan_workflow),
            "Celery chord": canvas(d.canvas_fan),
        },
    }


def compare(
    contenders: dict[str, dict[str, Measure]], stages: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Milliseconds per stage of every run, by shape and contender; one warm-up each, then alternating."""
    figures: dict[str, dict[str, list[float]]] = {}
    for shape, measures in contenders.items():
        figures[shape] = {name: [] for name in measures}
        for measure in measures.values():
            measure(20)
        for _ in range(rounds):
            for name, measure in measures.items():
                figures[shape][name].append(measure(stages) / stages * 1000)
    return figures


def report(figures: dict[str, dict[str, list[float]]], stages: int, as_json: bool) -> None:
    """Medians, spread, and how many times faster than the peer."""
    if as_json:
        Console().print_json(data={"stages": stages, "milliseconds_per_stage": figures})
        return
    table = Table(title=f"ms per stage, {stages} stages, median (lowest to highest)")
    for column in ("shape", "contender", "ms per stage", "ratio"):
        table.add_column(column)
    for shape, runs in figures.items():
        ours = statistics.median(runs["stabilize_celery"])
        for name, values in runs.items():
            middle = statistics.median(values)
            table.add_row(
                shape, name, f"{middle:.2f} ({min(values):.2f} to {max(values):.2f})", f"{middle / ours:.2f}x"
            )
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()
