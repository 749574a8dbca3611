"""The servers that all contenders share: PostgreSQL as production has it, RabbitMQ, and Redis for a result backend."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.processes import ChildProcess, free_port, temporary_folder, wait_ready
from tests.services import PostgresService, RabbitService, plain_address, services_running

#: Commits wait for the disk here, unlike in the tests.
DURABLE = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "wal_level": "replica",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
    "shared_preload_libraries": "pg_stat_statements",
}


@dataclass
class Servers:
    """What contenders are given."""

    postgres: PostgresService
    rabbit: RabbitService
    #: None where no ``redis-server`` is installed.
    redis_url: str | None
    #: For logs, and for what contenders need on disk.
    folder: Path

    def settings(self) -> dict[str, str]:
        """The settings of PostgreSQL on which durable figures depend, as the server says them."""
        names = [*DURABLE, "server_version"]
        with self.session("postgres") as connection:
            return {name: str(connection.execute(f"SHOW {name}").fetchone()[0]) for name in names}  # type: ignore[arg-type,index]

    def disk(self) -> float:
        """Milliseconds until a page that was written is on the disk: the median of fifty."""
        took = []
        with (self.folder / "disk").open("wb", buffering=0) as file:
            for _ in range(50):
                begun = time.perf_counter()
                file.write(bytes(8192))
                os.fdatasync(file.fileno())
                took.append(time.perf_counter() - begun)
        return round(statistics.median(took) * 1000, 2)

    def session(self, database: str) -> psycopg.Connection[tuple[object, ...]]:
        """A session of its own in a database."""
        return psycopg.connect(plain_address(self.postgres.url_of(database)), autocommit=True)


@contextmanager
def servers_running(*, redis: bool = False, settings: Mapping[str, str] | None = None) -> Iterator[Servers]:
    """Private servers while the block runs; ``settings`` are more of PostgreSQL's."""
    with ExitStack() as stack:
        postgres, rabbit = stack.enter_context(services_running({**DURABLE, **(settings or {})}))
        folder = temporary_folder("benchmarks")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        redis_url = stack.enter_context(_redis_running(folder)) if redis else None
        yield Servers(postgres, rabbit, redis_url, folder)


@contextmanager
def _redis_running(folder: Path) -> Iterator[str | None]:
    binary = shutil.which("redis-server")
    if binary is None:
        yield None
        return
    port = free_port()
    command = [binary, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    # As durable as Celery's results are said to be: written to the log each second.
    process = ChildProcess([*command, "--appendonly", "yes"], log=folder / "redis.log", cwd=folder)
    process.start()
    try:
        wait_ready(process, lambda: "Ready to accept connections" in process.output(), 30)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill_tree()
