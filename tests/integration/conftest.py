"""Fixtures of the integration tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration import celery_shop
from tests.integration.shop_deployment import Shop
from tests.pooler import Pooler, pooler_running
from tests.services import PostgresService, RabbitService
from tests.worker import WorkerProcess


@contextmanager
def make_shop(
    rabbit: RabbitService, broker: str, database: str, folder: Path, results: str | None = None
) -> Iterator[Shop]:
    """A shop without workers."""
    app, stabilize = celery_shop.make_app(broker, database, **celery_shop.results_in(results))
    log = folder / "shop.log"
    environment = {celery_shop.BROKER: broker, celery_shop.DATABASE: database, celery_shop.LOG: str(log)}
    if results is not None:
        environment[celery_shop.RESULTS] = results
    with ExitStack() as stack:
        stack.callback(app.close)
        stack.callback(stabilize.close)
        started: list[WorkerProcess] = []

        def start(name: str, *, wait: bool = True, **options: Any) -> WorkerProcess:
            options.setdefault("log", folder / f"worker-{len(started)}.log")
            env = {**environment, **options.pop("env", {})}
            worker = WorkerProcess(name, env=env, **options)
            started.append(worker)
            stack.callback(worker.kill)
            worker.start()
            return worker.wait_ready(60) if wait else worker

        yield Shop(app, stabilize, rabbit, broker, folder, start)


@pytest.fixture
def shop(rabbit_service: RabbitService, broker_url: str, postgres_url: str, tmp_path: Path) -> Iterator[Shop]:
    """A shop of the test's own, without workers: the test starts, kills and wipes what it likes."""
    with make_shop(rabbit_service, broker_url, postgres_url, tmp_path) as made:
        yield made


@pytest.fixture(scope="session")
def pooler(postgres_service: PostgresService) -> Iterator[Pooler]:
    """A PgBouncer in transaction mode before the tests' PostgreSQL."""
    with pooler_running(postgres_service.url) as running:
        yield running


@pytest.fixture
def pooled_url(pooler: Pooler, postgres_url: str) -> str:
    """The test's database, through PgBouncer."""
    return pooler.url_of(postgres_url)
