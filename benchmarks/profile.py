"""Where does the time of a stage go?  python -m benchmarks.profile [--stages 1000].

Three looks at the same shape: the processor time of every process by contender; what PostgreSQL spends on which statement;
and what the pool process that runs the tasks is doing, as py-spy sees it some hundred times a second.
"""

from __future__ import annotations

import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
import psutil

from benchmarks.contenders.bare import Bare
from benchmarks.contenders.base import Contender
from benchmarks.contenders.canvas import Canvas
from benchmarks.contenders.engine import OFF, Engine
from benchmarks.results import RESULTS, heading, load, surroundings, write
from benchmarks.samples import busy, say
from benchmarks.servers import Servers, servers_running
from benchmarks.shapes import SHAPES, Shape

STATEMENTS = """
    SELECT calls, total_exec_time * 1000 / calls, (wal_bytes / calls)::float8, rows,
        left(regexp_replace(query, '\\s+', ' ', 'g'), 90)
    FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid WHERE d.datname = %s AND calls > %s
    ORDER BY total_exec_time DESC LIMIT 12
"""
#: What a stack is about, by the innermost of these that it goes through.
ROOMS = {
    r"_recv \(billiard/connection": "waiting for the next message",
    r"_results \(stabilize_celery/persistence/pipeline": "waiting for PostgreSQL",
    r"stabilize_celery/persistence/pipeline": "statements: sending, converting values",
    r"stabilize_celery/persistence": "rows to models and back, the unit of work",
    r"stabilize_celery/(handlers|dag|stages)": "handlers and rules",
    r"stabilize_celery/delivery/publisher": "publishing",
    r"stabilize_celery/(worker|tasks|observe|context)": "running the task",
    r"stabilize_celery/delivery": "dispatching",
    r"sqlalchemy/": "SQLAlchemy: connections and transactions",
    r"(celery|billiard|kombu)/": "Celery: tracing the task, pipes",
}


def processor_times(servers: Servers, contender: Contender) -> Counter[str]:
    """Seconds of processors used so far, by who used them; workers by what their processes are for."""
    used = Counter(busy(servers, contender))
    main = sum(sum(psutil.Process(worker.pid).cpu_times()[:2]) for worker in contender.workers)
    used["worker, pool processes"] = used.pop("workers") - main
    used["worker, main process"] = main
    return used


def by_process(servers: Servers, contenders: list[Contender], shape: Shape, stages: int, rounds: int) -> Any:
    """Processor milliseconds per stage: for each contender the medians of its rounds, by turns."""
    found: dict[str, list[Counter[str]]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for contender in contenders:
            before = processor_times(servers, contender)
            contender.run(shape, stages)
            used = processor_times(servers, contender)
            used.subtract(before)
            found[contender.name].append(used)
            say(f"{contender.name}: {used.total() * 1000 / stages:.2f} ms of processors per stage")
    return {
        name: {who: statistics.median(each[who] for each in samples) * 1000 / stages for who in samples[0]}
        for name, samples in found.items()
    }


def statements(servers: Servers, engine: Engine, shape: Shape, stages: int) -> list[tuple[Any, ...]]:
    """What PostgreSQL spends most on: calls, microseconds and bytes of log each, rows, the statement."""
    with servers.session(engine.database) as connection:
        connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
        connection.execute("SELECT pg_stat_statements_reset()")
        engine.run(shape, stages)
        return connection.execute(STATEMENTS, (engine.database, stages // 20)).fetchall()


def samples(engine: Engine, shape: Shape, stages: int) -> Counter[str]:
    """What the pool processes were seen at."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        say("there is no py-spy: install stabilize-celery[bench]")
        return Counter()
    pool = [child.pid for worker in engine.workers for child in psutil.Process(worker.pid).children()]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{pid}.raw") for pid in pool]
        spies = [
            subprocess.Popen(
                [
                    spy,
                    "record",
                    "--rate",
                    "200",
                    "--format",
                    "raw",
                    "--duration",
                    "600",
                    "-o",
                    file,
                    "-p",
                    str(pid),
                ],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for file, pid in zip(files, pool, strict=True)
        ]
        engine.run(shape, stages)
        for each in spies:
            each.send_signal(2)
            each.wait(60)
        seen = Counter[str]()
        for file in files:
            if file.exists():
                seen += rooms(file.read_text().splitlines())
    return seen


def rooms(stacks: Iterable[str]) -> Counter[str]:
    """How many samples are about what, from stacks as py-spy writes them (``outer;inner 12``)."""
    seen: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if not any("workloop" in frame for frame in frames):
            # Threads beside the one that works.
            continue
        room = next(
            (
                name
                for frame in reversed(frames)
                for pattern, name in ROOMS.items()
                if re.search(pattern, frame)
            ),
            "other",
        )
        seen[room] += int(count)
    return seen


@click.command()
@click.option("--shape", type=click.Choice(list(SHAPES)), default="chain", show_default=True)
@click.option("--stages", default=1000, show_default=True, help="Of each run.")
@click.option("--rounds", default=5, show_default=True, help="Runs of each contender, by turns.")
@click.option("--into", type=click.Path(path_type=Path), default=RESULTS, help="Folder of the results.")
def main(shape: str, stages: int, rounds: int, into: Path) -> None:
    """Show where the time of a stage goes."""
    wanted = SHAPES[shape]
    with servers_running() as servers:
        where = surroundings(servers)
        engine = Engine()
        everybody = [
            engine,
            Engine(OFF, inline=False),
            Bare(),
            Canvas("PostgreSQL"),
        ]
        contenders = [each for each in everybody if wanted in each.shapes]
        try:
            for contender in contenders:
                contender.start(servers)
                contender.run(wanted, 99)
            times = by_process(servers, contenders, wanted, stages, rounds)
            asked = statements(servers, engine, wanted, stages)
            seen = samples(engine, wanted, stages)
        finally:
            for contender in contenders:
                contender.stop()
    where["load_after"] = load()
    text = [
        *heading(f"Where the time of a stage goes: {wanted.title}", where),
        *_times(times),
        *_statements(asked, stages),
        *_samples(seen),
    ]
    data = {"surroundings": where, "processor_ms": times, "statements": asked, "samples": seen}
    write(f"profile-{shape}", data, "\n".join(text), {}, into)


def _times(times: dict[str, dict[str, float]]) -> list[str]:
    users = list(next(iter(times.values())))
    rows = [
        f"| {name} | {' | '.join(f'{each[user]:.2f}' for user in users)} | {sum(each.values()):.2f} |"
        for name, each in times.items()
    ]
    return [
        "## Processor milliseconds per stage, by process",
        "",
        f"| | {' | '.join(users)} | together |",
        "|---" * (len(users) + 2) + "|",
        *rows,
        "",
    ]


def _statements(asked: list[tuple[Any, ...]], stages: int) -> list[str]:
    rows = [
        f"| {calls / stages:.2f} | {each:.0f} | {each * calls / stages:.0f} | {log:.0f} | `{told.replace('|', ' ')}` |"
        for calls, each, log, _, told in asked
    ]
    head = "| calls per stage | µs each | µs per stage | bytes of log each | statement |"
    return ["## What PostgreSQL executes", "", head, "|---|---|---|---|---|", *rows, ""]


def _samples(seen: Counter[str]) -> list[str]:
    busy = {room: count for room, count in seen.most_common() if room != "waiting for the next message"}
    whole = sum(busy.values()) or 1
    rows = [f"| {room} | {count * 100 / whole:.0f} % |" for room, count in busy.items()]
    return [
        "## What the pool process does between a message and the next",
        "",
        "| | of its time |",
        "|---|---|",
        *rows,
        "",
    ]


if __name__ == "__main__":
    main()
