"""Does a long past make the present dear?  python -m benchmarks.past [--finished 1000000].

Two databases: an empty one, and one with so many finished workflows, each with a stage and five rows of history.  The
same runs by turns in both, by workers of their own.
"""

from __future__ import annotations

from pathlib import Path

import click

from benchmarks.contenders.engine import Engine
from benchmarks.results import RESULTS, heading, load, peers_tables, surroundings, write
from benchmarks.samples import measure, say, shapes_named
from benchmarks.servers import servers_running

#: Ids as ULIDs have them: 26 characters in the order of time, all of them before today's.
SEEDS = (
    """
    INSERT INTO stabilize_workflows (id, type, application, name, status, context, trigger, created_at, start_time, end_time,
        is_canceled, is_limit_concurrent, max_concurrent_executions, keep_waiting_pipelines, origin, live_branches,
        has_halted)
    SELECT '00' || lpad(n::text, 23, '0') || 'W', 'PIPELINE', 'shop', 'order', 'SUCCEEDED', '{"order": 1}', '{}', at, at, at,
        false, false, 0, false, 'api', 0, false
    FROM generate_series(1, %(count)s) n, LATERAL (SELECT now() - interval '1 year' + n * interval '25 s' AS at) t
    """,
    """
    INSERT INTO stabilize_stages (id, workflow_id, ref_id, type, name, status, generation, position, topo, rank, context,
        outputs, sources, tasks, output_reducers, planned, open_children, upstream_count, open_upstreams, blocked, released,
        start_time, end_time)
    SELECT '00' || lpad(n::text, 23, '0') || 'S', '00' || lpad(n::text, 23, '0') || 'W', 'charge', 'charge', 'charge',
        'SUCCEEDED', 0, 0, 0, '[]', '{"order": 1}', '{"charge_id": "ch_1"}', '{"charge_id": ["charge"]}',
        '[{"id": "t", "name": "charge", "type": "charge", "status": "SUCCEEDED", "attempts": 1}]', '{}', '[]', 0, 0, 0,
        false, false, at, at
    FROM generate_series(1, %(count)s) n, LATERAL (SELECT now() - interval '1 year' + n * interval '25 s' AS at) t
    """,
    """
    INSERT INTO stabilize_history (id, workflow_id, stage_id, generation, step, event, from_status, to_status, worker, at)
    SELECT '0' || k || lpad(n::text, 23, '0') || 'H', '00' || lpad(n::text, 23, '0') || 'W',
        '00' || lpad(n::text, 23, '0') || 'S', 0, k, 'stage', 'RUNNING', 'SUCCEEDED', 'w', now() - interval '1 year'
    FROM generate_series(1, %(count)s) n, generate_series(1, 5) k
    """,
)


@click.command()
@click.option("--finished", default=1_000_000, show_default=True, help="Workflows that have ended.")
@click.option("--stages", default=500, show_default=True, help="Of each run.")
@click.option("--shapes", default="chain,fan,many", show_default=True, help="With commas.")
@click.option("--rounds", default=9, show_default=True, help="Runs in each database, by turns.")
@click.option("--into", type=click.Path(path_type=Path), default=RESULTS, help="Folder of the results.")
def main(finished: int, stages: int, shapes: str, rounds: int, into: Path) -> None:
    """Measure target T7."""
    with servers_running() as servers:
        where = surroundings(servers)
        empty, full = Engine("empty database"), Engine(f"{finished:,} finished workflows")
        for contender in (empty, full):
            contender.start(servers)
        try:
            with servers.session(full.database) as connection:
                for seed in SEEDS:
                    connection.execute(seed, {"count": finished})
                connection.execute("VACUUM ANALYZE")
                connection.execute("CHECKPOINT")
                row = connection.execute(
                    "SELECT pg_size_pretty(pg_database_size(current_database()))"
                ).fetchone()
            say(f"the full database has {row[0] if row else '?'}")
            samples = measure([empty, full], shapes_named(shapes), [stages], rounds, float("inf"))
        finally:
            empty.stop()
            full.stop()
    where |= {"load_after": load(), "full_database": row[0] if row else None}
    text = heading("The cost of a long past", where)
    text += [f"The full database has {where['full_database']}. Medians of {rounds} runs by turns.", ""]
    for shape in shapes_named(shapes):
        text += peers_tables(samples, shape.name, [stages], [empty.name, full.name])
    write("past", {"surroundings": where, "samples": samples.as_json()}, "\n".join(text), {}, into)


if __name__ == "__main__":
    main()
