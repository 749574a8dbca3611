"""What do things cost that wait?  python -m benchmarks.waiting [--waiting 10000] [--seconds 60].

A deployment with a worker and nothing to do, then the same with thousands of workflows that wait for a signal, for a
time, for a slot or for a turn in a map; statements and transactions that PostgreSQL counts meanwhile.
"""

from __future__ import annotations

import time
from pathlib import Path

import click
from sqlalchemy import text as sql

from benchmarks.contenders.engine import Engine
from benchmarks.results import RESULTS, heading, load, surroundings, write
from benchmarks.samples import say
from benchmarks.servers import Servers, servers_running
from stabilize_celery import StageExecution, Workflow

COUNTS = """
    SELECT (SELECT coalesce(sum(calls), 0) FROM pg_stat_statements WHERE dbid = d.oid)::bigint,
        (SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datid = d.oid)::bigint
    FROM pg_database d WHERE d.datname = %s
"""
#: By what keeps them from going on, the workflow, and how many stages wait in each.
WAITERS = {
    "a signal": lambda: Workflow.create("bench", "signal", [StageExecution.single("gate", "approval")]),
    "a time": lambda: Workflow.create(
        "bench", "timer", [StageExecution.single("t", "wait", {"seconds": 86400})]
    ),
    "a slot of its configuration (buffered)": lambda: Workflow.create(
        "bench",
        "limited",
        [StageExecution.single("gate", "approval")],
        config={"limitConcurrent": True, "maxConcurrentExecutions": 1, "keepWaitingPipelines": True},
        pipeline_config_id="limited",
    ),
    "a turn in a map (mutex)": lambda: Workflow.create(
        "bench",
        "mutex",
        [
            StageExecution.single(
                "m", "map", {"items": list(range(100)), "limit": 1, "stage": {"type": "approval"}}
            )
        ],
    ),
}
EACH = {"a turn in a map (mutex)": 100}


def counted(servers: Servers, database: str, seconds: float) -> dict[str, float]:
    """Statements and transactions a second in a database while nobody asks for anything."""
    with servers.session("postgres") as connection:

        def read() -> tuple[int, int]:
            row = connection.execute(COUNTS, (database,)).fetchone()
            assert row is not None
            return int(row[0]), int(row[1])  # type: ignore[call-overload]

        before, begun = read(), time.monotonic()
        time.sleep(seconds)
        after, took = read(), time.monotonic() - begun
    return {
        "statements per second": (after[0] - before[0]) / took,
        "transactions per second": (after[1] - before[1]) / took,
    }


@click.command()
@click.option("--waiting", default=10_000, show_default=True, help="Stages or workflows that wait, in all.")
@click.option("--seconds", default=60.0, show_default=True, help="How long is counted.")
@click.option("--into", type=click.Path(path_type=Path), default=RESULTS, help="Folder of the results.")
def main(waiting: int, seconds: float, into: Path) -> None:
    """Measure target T9."""
    with servers_running() as servers:
        where = surroundings(servers)
        engine = Engine("waiting")
        engine.start(servers)
        try:
            with servers.session("postgres") as connection:
                connection.execute("CREATE EXTENSION pg_stat_statements")
            say("counting with nothing to do")
            empty = counted(servers, "waiting", seconds)
            for what, make in WAITERS.items():
                count = max(1, waiting // len(WAITERS) // EACH.get(what, 1))
                say(f"{count} workflows wait for {what}")
                for start in range(0, count, 500):
                    engine.stabilize.start_many([make() for _ in range(min(500, count - start))])
            _settle(engine)
            statuses = _statuses(engine)
            say(f"counting with {statuses}")
            full = counted(servers, "waiting", seconds)
        finally:
            engine.stop()
    where["load_after"] = load()
    table = [f"| {name} | {empty[name]:.2f} | {full[name]:.2f} |" for name in empty]
    text = [
        *heading("What waiting costs", where),
        f"One worker, {seconds:g} s each. Waiting: {statuses}.",
        "",
        f"| | nothing to do | {waiting:,} waiting |",
        "|---|---|---|",
        *table,
        "",
    ]
    data = {"surroundings": where, "waiting": statuses, "empty": empty, "full": full}
    write("waiting", data, "\n".join(text), {}, into)


def _settle(engine: Engine) -> None:
    """Wait until nothing is due within the hour."""
    from benchmarks.contenders.base import wait_for

    due = sql("SELECT count(*) FROM stabilize_messages WHERE due_at < now() + interval '1 hour'")

    def idle() -> bool:
        with engine.stabilize.store.database.engine.connect() as connection:
            return not connection.execute(due).scalar_one()

    wait_for(idle)


def _statuses(engine: Engine) -> str:
    query = sql(
        "SELECT name || ' ' || status || ' ' || count(*) FROM stabilize_workflows GROUP BY name, status ORDER BY 1"
    )
    with engine.stabilize.store.database.engine.connect() as connection:
        return ", ".join(connection.execute(query).scalars())


if __name__ == "__main__":
    main()
