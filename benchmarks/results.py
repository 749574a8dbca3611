"""What is written down of a run: figures for machines, a table for people, and where they were measured."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.plot import bars
from benchmarks.samples import Samples
from benchmarks.servers import Servers
from benchmarks.shapes import SHAPES

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("celery", "kombu", "psycopg", "sqlalchemy")


def surroundings(servers: Servers) -> dict[str, Any]:
    """The machine, the versions, and how busy it is: read it before the measurement."""
    return {
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "machine": f"{platform.machine()} {platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "postgresql": servers.settings(),
        "disk_ms": servers.disk(),
        "load_before": load(),
    }


def _module() -> str:
    name = Path(sys.argv[0]).stem
    return "benchmarks" if name == "__main__" else f"benchmarks.{name}"


def load() -> float:
    """Processes that wanted a core, on average of the last minute."""
    return round(os.getloadavg()[0], 1)


def write(name: str, data: dict[str, Any], text: str, plots: dict[str, str], folder: Path = RESULTS) -> None:
    """Write ``name.json``, ``name.md`` and the plots, and print the text."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / f"{name}.md").write_text(text)
    for plot, drawing in plots.items():
        (folder / f"{plot}.svg").write_text(drawing)
    print(text)


def heading(title: str, where: dict[str, Any]) -> list[str]:
    """The first lines of a page of results."""
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items())
    server = where["postgresql"]
    told = (
        f"{where['at']}, {where['cores']} cores shared by everything, Python {where['python']}, {packages}, PostgreSQL "
        f"{server['server_version']} (fsync {server['fsync']}, synchronous_commit {server['synchronous_commit']}, "
        f"full_page_writes {server['full_page_writes']}). A page reaches the disk in {where['disk_ms']} ms. "
        f"Load before: {where['load_before']}, after: {where.get('load_after', '?')}."
    )
    return [f"# {title}", "", f"    {where['command']}", "", told, ""]


def peers_tables(samples: Samples, shape: str, sizes: Sequence[int], contenders: Sequence[str]) -> list[str]:
    """One shape: how long it took, and how much processor time."""
    processor = Samples(samples.processor)
    return [
        f"## {SHAPES[shape].title}",
        "",
        *peers_table(samples, shape, sizes, contenders),
        *peers_table(processor, shape, sizes, contenders, "processor ms per stage"),
    ]


def peers_table(
    samples: Samples, shape: str, sizes: Sequence[int], contenders: Sequence[str], unit: str = "ms per stage"
) -> list[str]:
    """A row for each contender, and at each size its median, its spread, and the ratio to the first."""
    lines = [f"| {unit} | {' | '.join(f'{size:,}' for size in sizes)} | flat |"]
    lines += ["|---" * (len(sizes) + 2) + "|"]
    for name in contenders:
        cells = [_cell(samples, shape, size, name, contenders[0]) for size in sizes]
        if any(cell != "-" for cell in cells):
            lines.append(f"| {name} | {' | '.join(cells)} | {_flat(samples, shape, sizes, name)} |")
    return [*lines, ""]


def _cell(samples: Samples, shape: str, size: int, name: str, first: str) -> str:
    middle, ours = samples.median(shape, size, name), samples.median(shape, size, first)
    spread = samples.spread(shape, size, name)
    if middle is None or spread is None:
        return samples.absent.get((shape, size, name), "-")
    ratio = "" if ours is None or name == first else f", **{middle / ours:.2f}x**"
    return f"{middle:.2f} ({spread[0]:.2f} to {spread[1]:.2f}){ratio}"


def _flat(samples: Samples, shape: str, sizes: Sequence[int], name: str) -> str:
    known = [m for size in sizes if (m := samples.median(shape, size, name)) is not None]
    return f"{known[-1] / known[0]:.2f}" if len(known) > 1 else ""


def peers_plot(samples: Samples, size: int, contenders: Sequence[str]) -> str:
    """Bars of the medians at one size, for each shape."""
    groups = {
        SHAPES[shape].title: {
            name: middle for name in contenders if (middle := samples.median(shape, size, name)) is not None
        }
        for shape in SHAPES
        if any((shape, size, name) in samples.values for name in contenders)
    }
    return bars(f"Milliseconds per stage, {size:,} stages (logarithmic, medians)", groups, contenders)
