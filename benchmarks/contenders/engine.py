"""This engine, with workers."""

from __future__ import annotations

import time

from sqlalchemy import text

from benchmarks.apps import engine as app
from benchmarks.contenders.base import Contender, wait_for
from benchmarks.servers import Servers
from benchmarks.shapes import Shape
from stabilize_celery import Stabilize, __version__
from tests.worker import Pool

OURS = "stabilize_celery"
OFF = f"{OURS}, continuation off"
RUNNING = text(
    "SELECT count(*) FROM stabilize_workflows WHERE id = ANY(:ids) "
    "AND status NOT IN ('SUCCEEDED', 'TERMINAL', 'CANCELED')"
)
FAILED = text("SELECT count(*) FROM stabilize_workflows WHERE status <> 'SUCCEEDED' AND id = ANY(:ids)")


class Engine(Contender):
    """With continuation in place, or with every message through the broker; with processes or threads."""

    def __init__(
        self, name: str = OURS, *, inline: bool = True, pool: Pool = "prefork", processes: int = 2
    ) -> None:
        super().__init__(name, processes=processes)
        self._inline = inline
        self._pool: Pool = pool
        self.stabilize: Stabilize
        self.database = ""
        self.environment: dict[str, str] = {}

    def version(self) -> str:
        return __version__

    def start(self, servers: Servers) -> None:
        broker = servers.rabbit.add_vhost(self.slug)
        self.database = self.slug
        url = servers.postgres.create_database(self.database)
        _, self.stabilize = app.make_app(broker, url, inline=self._inline)
        self.stack.callback(self.stabilize.close)
        self.stabilize.create_tables()
        self.environment = {
            app.BROKER: broker,
            app.DATABASE: url,
            app.INLINE: str(int(self._inline)),
            app.RECORD: str(servers.folder / f"{self.slug}.latencies"),
        }
        self.add_worker(servers)

    def add_worker(self, servers: Servers) -> None:
        """One more worker."""
        self.start_worker(servers, "benchmarks.apps.engine:app", self.environment, self._pool)

    def run(self, shape: Shape, size: int) -> float:
        if shape.each is not None:
            workflows = [app.workflow_of(shape, shape.each) for _ in range(size // shape.each)]
        else:
            workflows = [app.workflow_of(shape, size)]
        begun = time.perf_counter()
        runs = self.stabilize.start_many(workflows)
        ids = {"ids": [run.id for run in runs]}
        database = self.stabilize.store.database.engine
        with database.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            wait_for(lambda: not connection.execute(RUNNING, ids).scalar_one())
            took = time.perf_counter() - begun
            if failed := connection.execute(FAILED, ids).scalar_one():
                raise RuntimeError(f"{failed} workflows of shape {shape.name} did not succeed")
        return took
