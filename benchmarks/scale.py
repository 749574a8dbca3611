"""Is the cost per stage flat?  Small and large workflows in turn, and the ratio of their medians.

python -m benchmarks.scale [--small 100] [--large 2000] [--rounds 3]
"""

from __future__ import annotations

import statistics
import sys

import click
from rich.console import Console
from rich.table import Table

from benchmarks.services import deployment_running


@click.command()
@click.option("--small", default=100, show_default=True, help="Stages of the small workflows.")
@click.option("--large", default=2000, show_default=True, help="Stages of the large one.")
@click.option("--rounds", default=3, show_default=True, help="Alternating runs.")
@click.option("--processes", default=2, show_default=True, help="Pool processes of the worker.")
def main(small: int, large: int, rounds: int, processes: int) -> None:
    """Print milliseconds per stage of both sizes, and their ratio, for three shapes."""
    table = Table(title=f"ms per stage at {small} and {large} stages, medians of {rounds}")
    for column in ("shape", str(small), str(large), "ratio"):
        table.add_column(column)
    with deployment_running(("engine_app",), processes):
        from benchmarks import deployment as d

        def measure(build: object, stages: int) -> float:
            run = d.stabilize.start(build(stages))  # type: ignore[operator]
            run.wait(1800)
            workflow = run.workflow()
            assert workflow.start_time is not None
            assert workflow.end_time is not None
            return (workflow.end_time - workflow.start_time).total_seconds() / stages * 1000

        for build in (d.chain_workflow, d.fan_workflow, d.wide_workflow):
            measure(build, small)
            figures: dict[int, list[float]] = {small: [], large: []}
            for _ in range(rounds):
                # As many stages of the small ones as of the large one would take too long; several are steadier than one.
                figures[small].append(statistics.median(measure(build, small) for _ in range(5)))
                figures[large].append(measure(build, large))
            low, high = (statistics.median(figures[n]) for n in (small, large))
            table.add_row(build.__doc__ or "", f"{low:.2f}", f"{high:.2f}", f"{high / low:.2f}x")
    Console(file=sys.stdout).print(table)


if __name__ == "__main__":
    main()
