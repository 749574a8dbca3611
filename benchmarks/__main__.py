"""Every contender by turns on the same servers: python -m benchmarks [--quick].

The long form is what the tables in docs/explanation/performance.md were made with, and takes hours.  Single figures
say little on a shared machine; ratios of medians measured by turns do.
"""

from __future__ import annotations

import signal
from pathlib import Path

import click

from benchmarks.contenders.bare import Bare
from benchmarks.contenders.base import Contender
from benchmarks.contenders.canvas import Canvas
from benchmarks.contenders.engine import OFF, Engine
from benchmarks.contenders.programs import Dbos, Reference
from benchmarks.results import RESULTS, heading, load, peers_plot, peers_tables, surroundings, write
from benchmarks.samples import measure, shapes_named, started
from benchmarks.servers import servers_running


def contenders(processes: int) -> dict[str, Contender]:
    """Everybody, by a short name; ratios are to the first."""
    return {
        "ours": Engine(processes=processes),
        "threads": Engine("stabilize_celery, threads", pool="threads", processes=processes),
        "no-inline": Engine(OFF, inline=False, processes=processes),
        "bare": Bare(processes=processes),
        "canvas": Canvas("PostgreSQL", processes=processes),
        "canvas-redis": Canvas("Redis", processes=processes),
        "dbos": Dbos(),
        "reference": Reference(),
    }


@click.command()
@click.option("--quick", is_flag=True, help="Two minutes: 100 stages, one run each, no one else's package.")
@click.option("--shapes", default="all", show_default=True, help="With commas.")
@click.option("--sizes", default="100,1000,10000", show_default=True, help="Stages, with commas.")
@click.option("--who", default="all", show_default=True, help="Contenders, with commas.")
@click.option("--rounds", default=5, show_default=True, help="Runs of each contender, by turns.")
@click.option("--processes", default=2, show_default=True, help="Processes of each contender's worker.")
@click.option(
    "--longest", default=60.0, show_default=True, help="Leave out runs that will take longer, in seconds."
)
@click.option("--wait-for-disk/--no-wait-for-disk", default=True, help="Whether commits do, on the server.")
@click.option("--name", default=None, help="Of the files of results; `peers`, or `quick`.")
@click.option("--into", type=click.Path(path_type=Path), default=RESULTS, help="Folder of the results.")
def main(
    quick: bool,
    shapes: str,
    sizes: str,
    who: str,
    rounds: int,
    processes: int,
    longest: float,
    wait_for_disk: bool,
    name: str | None,
    into: Path,
) -> None:
    """Measure milliseconds per stage and write a table, the figures and a plot."""
    if quick:
        shapes, sizes, rounds, longest = "chain,fan,many", "100", 2, 10.0
        who = "ours,no-inline,bare,canvas" if who == "all" else who
    everybody = contenders(processes)
    chosen = list(everybody) if who == "all" else who.split(",")
    if unknown := set(chosen) - set(everybody):
        raise click.BadParameter(f"no contender {', '.join(unknown)}; there are {', '.join(everybody)}")
    many = [int(size) for size in sizes.split(",")]
    name = name or ("quick" if quick else "peers")
    # `kill` and `timeout` end it as ^C does: with what was measured so far.
    signal.signal(signal.SIGTERM, _end)
    durable = {} if wait_for_disk else {"synchronous_commit": "off"}
    with servers_running(redis="canvas-redis" in chosen, settings=durable) as servers:
        where = surroundings(servers)
        running = started([everybody[each] for each in chosen], servers)
        try:
            names = [contender.name for contender in running]
            versions = {contender.name: contender.version() for contender in running}
            samples = measure(running, shapes_named(shapes), many, rounds, longest)
        finally:
            for contender in running:
                contender.stop()
    where |= {"load_after": load(), "processes": processes, "rounds": rounds, "versions": versions}
    text = [
        *_introduction(where),
        *(line for shape in shapes_named(shapes) for line in peers_tables(samples, shape.name, many, names)),
    ]
    plots = {f"{name}-{size}": peers_plot(samples, size, names) for size in many}
    write(name, {"surroundings": where, "samples": samples.as_json()}, "\n".join(text), plots, into)


def _end(_number: int, _frame: object) -> None:
    # `timeout` signals twice: the process, then its group.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _introduction(where: dict[str, object]) -> list[str]:
    versions = where["versions"]
    assert isinstance(versions, dict)
    told = (
        f"Medians of {where['rounds']} runs by turns (lowest to highest), and how many times the first contender's. "
        f"Workers have {where['processes']} processes or threads each. `flat`: the largest size's median "
        "divided by the smallest's. The time is that from the start by the client until the client knows of the end."
    )
    return [
        *heading("Contenders by turns", where),
        told,
        "",
        *(f"- {name}: {version}" for name, version in versions.items() if version),
        "",
    ]


if __name__ == "__main__":
    main()
