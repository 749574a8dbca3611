"""The bare limit: see :mod:`benchmarks.apps.bare`."""

from __future__ import annotations

import secrets
import time

import psycopg

from benchmarks.apps import bare as app
from benchmarks.contenders.base import Contender, wait_for
from benchmarks.servers import Servers
from benchmarks.shapes import CHAIN, Shape
from stabilize_celery.persistence.schema import create_tables
from tests.services import plain_address

BARE = "bare limit: one hop, two raw transactions"
WORKFLOW = """
    INSERT INTO stabilize_workflows (id, type, application, name, status, context, trigger, created_at, is_canceled,
        is_limit_concurrent, max_concurrent_executions, keep_waiting_pipelines, origin, live_branches, has_halted)
    VALUES (%s, 'PIPELINE', 'bench', 'bare', 'RUNNING', '{}', '{}', now(), false, false, 0, false, 'bare', 1, false)
"""
STAGES = """
    INSERT INTO stabilize_stages (id, workflow_id, ref_id, type, name, status, generation, position, topo, rank, context,
        outputs, sources, tasks, output_reducers, planned, open_children, upstream_count, open_upstreams, blocked, released)
    SELECT lpad(%(run)s, 12, '0') || 's' || lpad(number::text, 13, '0'), %(id)s, 's' || number, 'bench', 's' || number,
        'NOT_STARTED', 0, number, number, '[]', '{}', '{}', '{}', '[{"id": "t", "name": "bench", "type": "bench"}]', '{}',
        '[]', 0, 1, 1, false, false
    FROM generate_series(0, %(last)s) AS number
"""
EDGES = """
    INSERT INTO stabilize_edges (workflow_id, upstream_id, downstream_id)
    SELECT %(id)s, lpad(%(run)s, 12, '0') || 's' || lpad(number::text, 13, '0'),
        lpad(%(run)s, 12, '0') || 's' || lpad((number + 1)::text, 13, '0')
    FROM generate_series(0, %(last)s - 1) AS number
"""


class Bare(Contender):
    """One Celery hop and the same row writes for each stage of a chain."""

    def __init__(self, *, processes: int = 2) -> None:
        super().__init__(BARE, [CHAIN], processes=processes)

    def start(self, servers: Servers) -> None:
        broker = servers.rabbit.add_vhost(self.slug)
        url = servers.postgres.create_database(self.slug)
        create_tables(url)
        self._connection = self.stack.enter_context(psycopg.connect(plain_address(url), autocommit=True))
        self._app = app.make_app(broker, plain_address(url))
        self.stack.callback(self._app.close)
        self.start_worker(
            servers, "benchmarks.apps.bare:app", {app.BROKER: broker, app.DATABASE: plain_address(url)}
        )

    def run(self, shape: Shape, size: int) -> float:
        run = secrets.token_hex(6)
        begun = time.perf_counter()
        workflow_id = app.row_id(run, "w", 0)
        values = {"id": workflow_id, "run": run, "last": size - 1}
        with self._connection.transaction():
            self._connection.execute(WORKFLOW, (workflow_id,))
            self._connection.execute(STAGES, values)
            self._connection.execute(EDGES, values)
            first = app.row_id(run, "s", 0)
            self._connection.execute(app.SEND, (app.row_id(run, "m", 0), workflow_id, first, first))
        self._app.tasks["bench.hop"].apply_async((run, workflow_id, 0, size - 1))
        query = "SELECT status FROM stabilize_workflows WHERE id = %s"
        wait_for(lambda: self._connection.execute(query, (workflow_id,)).fetchone() == ("SUCCEEDED",))
        return time.perf_counter() - begun
