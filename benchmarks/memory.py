"""Does the memory of a worker grow?  python -m benchmarks.memory [--stages 100000].

Workflows of every shape, one after the other; the resident memory of all processes of the worker after the first tenth
(when caches, pools and prepared statements are what they will be) and every tenth after.
"""

from __future__ import annotations

from pathlib import Path

import click
import psutil

from benchmarks.contenders.engine import Engine
from benchmarks.results import RESULTS, heading, load, surroundings, write
from benchmarks.samples import say
from benchmarks.servers import servers_running
from benchmarks.shapes import CHAIN, FAN, MANY, PAYLOAD, WIDE

TENTHS = 10


def memory(pid: int) -> int:
    """Resident bytes of a worker and its children, what they share counted once per process that has it."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(process.memory_full_info().uss for process in processes)


@click.command()
@click.option("--stages", default=100_000, show_default=True, help="In all.")
@click.option("--size", default=500, show_default=True, help="Stages of each workflow.")
@click.option("--pool", type=click.Choice(["prefork", "threads"]), default="prefork", show_default=True)
@click.option("--into", type=click.Path(path_type=Path), default=RESULTS, help="Folder of the results.")
def main(stages: int, size: int, pool: str, into: Path) -> None:
    """Measure target T10."""
    with servers_running() as servers:
        where = surroundings(servers)
        engine = Engine(pool=pool)  # type: ignore[arg-type]
        engine.start(servers)
        shapes = (CHAIN, FAN, WIDE, MANY, PAYLOAD)
        found: list[tuple[int, int]] = []
        done = turn = 0
        try:
            for tenth in range(1, TENTHS + 1):
                while done < stages * tenth // TENTHS:
                    engine.run(shapes[turn % len(shapes)], size)
                    done, turn = done + size, turn + 1
                found.append((done, memory(engine.workers[0].pid)))
                say(f"{found[-1][0]} stages: {found[-1][1] / 2**20:.1f} MB")
        finally:
            engine.stop()
    where["load_after"] = load()
    (first, low), (last, high) = found[0], found[-1]
    per = (high - low) / (last - first)
    told = (
        f"Between {first:,} and {last:,} stages: {(high - low) / 2**20:+.1f} MB ({(high / low - 1) * 100:+.1f} %), "
        f"{per:.0f} bytes per stage. Pool {pool}; private memory (USS) of the worker with its two processes."
    )
    text = [*heading("Memory of a worker", where), told, "", "| stages | MB |", "|---|---|"]
    text += [f"| {count:,} | {size / 2**20:.1f} |" for count, size in found]
    data = {"surroundings": where, "pool": pool, "bytes": found, "bytes_per_stage": per}
    write(f"memory-{pool}", data, "\n".join([*text, ""]), {}, into)


if __name__ == "__main__":
    main()
