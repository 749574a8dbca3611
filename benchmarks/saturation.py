"""How many stages a second one machine takes, by the number of workers: python -m benchmarks.saturation.

Many small workflows at once, one worker, then one more, until more do not help; beside each the load on PostgreSQL, the
broker and the workers, in cores.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.contenders.engine import Engine
from benchmarks.results import RESULTS, heading, load, surroundings, write
from benchmarks.samples import busy, say
from benchmarks.servers import Servers, servers_running
from benchmarks.shapes import MANY, WIDE


def sessions(servers: Servers, engine: Engine) -> int:
    """Sessions that the workers and the client keep with PostgreSQL."""
    with servers.session("postgres") as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
        row = connection.execute(query, (engine.database,)).fetchone()
    return int(row[0]) if row else 0  # type: ignore[call-overload]


@click.command()
@click.option("--stages", default=3000, show_default=True, help="Of each run.")
@click.option("--workers", default=4, show_default=True, help="The most.")
@click.option("--processes", default=1, show_default=True, help="Of each worker.")
@click.option("--rounds", default=5, show_default=True, help="Runs with each number of workers.")
@click.option("--into", type=click.Path(path_type=Path), default=RESULTS, help="Folder of the results.")
def main(stages: int, workers: int, processes: int, rounds: int, into: Path) -> None:
    """Measure what one machine carries."""
    rows: list[dict[str, Any]] = []
    with servers_running() as servers:
        where = surroundings(servers)
        engine = Engine("saturation", processes=processes)
        engine.start(servers)
        try:
            for count in range(1, workers + 1):
                if count > 1:
                    engine.add_worker(servers)
                for shape in (MANY, WIDE):
                    engine.run(shape, 99)
                    before, begun = busy(servers, engine), time.monotonic()
                    rates = [stages / engine.run(shape, stages) for _ in range(rounds)]
                    took, after = time.monotonic() - begun, busy(servers, engine)
                    row = {"workers": count, "shape": shape.title, "rates": rates}
                    used = {name: after[name] - before[name] for name in after}
                    row["cores"] = {name: seconds / took for name, seconds in used.items()}
                    row["processor_ms_per_stage"] = {
                        name: seconds * 1000 / (stages * rounds) for name, seconds in used.items()
                    }
                    row["sessions"] = sessions(servers, engine)
                    rows.append(row)
                    say(f"{count} workers, {shape.title}: {statistics.median(rates):.0f} stages per second")
        finally:
            engine.stop()
    where["load_after"] = load()
    users = list(rows[0]["cores"])
    text = heading("Stages per second by workers", where)
    text += [f"Each worker has {processes} processes. Medians of {rounds} runs of {stages:,} stages.", ""]
    text += ["In the columns of those who work: processor milliseconds per stage (cores kept busy).", ""]
    text += [f"| workers | shape | stages per second | sessions | {' | '.join(users)} |"]
    text += ["|---" * (4 + len(users)) + "|"]
    for row in rows:
        rates, each = row["rates"], row["processor_ms_per_stage"]
        cores = " | ".join(f"{each[user]:.2f} ({row['cores'][user]:.2f})" for user in users)
        text.append(
            f"| {row['workers']} | {row['shape']} | {statistics.median(rates):.0f} "
            f"({min(rates):.0f} to {max(rates):.0f}) | {row['sessions']} | {cores} |"
        )
    write("saturation", {"surroundings": where, "rows": rows}, "\n".join([*text, ""]), {}, into)


if __name__ == "__main__":
    main()
