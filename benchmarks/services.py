"""A private PostgreSQL and RabbitMQ, and the workers of the apps that are measured."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.services import choose_postgres, choose_rabbit
from tests.worker import WorkerProcess

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def deployment_running(apps: Sequence[str], processes: int) -> Iterator[None]:
    """Servers, tables and one worker per app while the block runs; ``benchmarks.deployment`` can be imported in it."""
    with ExitStack() as stack:
        postgres, rabbit = choose_postgres(), choose_rabbit()
        stack.callback(postgres.discard)
        stack.callback(rabbit.discard)
        postgres.start()
        rabbit.start()
        os.environ["BENCH_BROKER"] = rabbit.url
        os.environ["BENCH_DATABASE"] = postgres.create_database("bench")
        os.environ["BENCH_BACKEND"] = "db+" + postgres.create_database("results")
        from benchmarks import deployment

        deployment.stabilize.create_tables()
        logs = Path(stack.enter_context(TemporaryDirectory()))
        for app in apps:
            worker = WorkerProcess(
                f"benchmarks.deployment:{app}", log=logs / f"{app}.log", concurrency=processes, cwd=ROOT
            )
            worker.start()
            stack.callback(worker.stop)
            worker.wait_ready()
        yield
