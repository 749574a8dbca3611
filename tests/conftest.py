"""Fixtures every test may use: real servers started on first use, and a clean place in them per test."""

from __future__ import annotations

import sys
import tomllib
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.services import (
    PostgresService,
    RabbitService,
    RedisService,
    choose_postgres,
    choose_rabbit,
    choose_redis,
)
from tests.worker import WorkerProcess

#: Folders whose tests need nothing but Python packages, unless a fixture or a parameter says otherwise.
FAST = {"unit", "property", "simulation", "conformance", "fuzz", "testing_kit", "mutations"}
#: What a test that needs a server, a worker or a browser asks for.
SERVICES = {"postgres_service", "rabbit_service", "redis_service", "start_worker", "browser"}


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run with an installation that knows other entry points than the project: features would be missing."""
    written = tomllib.loads((config.rootpath / "pyproject.toml").read_text())["project"]["entry-points"]
    for group, offered in written.items():
        installed = {entry.name: entry.value for entry in entry_points(group=group)}
        if not offered.items() <= installed.items():
            command = f"pip --python {sys.executable} install --no-deps --no-build-isolation --editable"
            raise pytest.UsageError(
                f"the installed metadata is older than pyproject.toml: {command} {config.rootpath}"
            )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs more than Python packages as ``served``, see `make test-fast`."""
    for item in items:
        folder = item.path.relative_to(item.config.rootpath / "tests").parts[0]
        parameters = getattr(getattr(item, "callspec", None), "params", {}).values()
        backends = {value.split("-")[0] for value in parameters if isinstance(value, str)}
        needs = SERVICES.intersection(getattr(item, "fixturenames", ()))
        if folder not in FAST or needs or backends & {"postgres", "postgresql", "workers", "redis", "quorum"}:
            item.add_marker(pytest.mark.served)


# How long an example takes says how busy the machine is, not whether the code is right.
settings.register_profile("unhurried", settings(), deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def postgres_service() -> Iterator[PostgresService]:
    """The run's PostgreSQL server. A test that stops or kills it must start it again."""
    service = choose_postgres()
    service.start()
    yield service
    service.discard()


@pytest.fixture(scope="session")
def rabbit_service() -> Iterator[RabbitService]:
    """The run's RabbitMQ broker. A test that stops or kills it must start it again."""
    service = choose_rabbit()
    service.start()
    yield service
    service.discard()


@pytest.fixture(scope="session")
def redis_service() -> Iterator[RedisService]:
    """The run's Redis server."""
    service = choose_redis()
    service.start()
    yield service
    service.discard()


@pytest.fixture(scope="session")
def postgres_template(postgres_service: PostgresService) -> Iterator[str]:
    """The name of a database with our tables: made once, because cloning it is ten times faster."""
    from stabilize_celery.persistence.schema import create_tables

    name = f"stabilize_template_{uuid.uuid4().hex[:8]}"
    create_tables(postgres_service.create_database(name))
    yield name
    postgres_service.drop_database(name)


@pytest.fixture
def empty_postgres_url(postgres_service: PostgresService) -> Iterator[str]:
    """A database without any table, for tests of migrations and of a missing schema."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    yield postgres_service.create_database(name)
    postgres_service.drop_database(name)


@pytest.fixture
def postgres_url(postgres_service: PostgresService, postgres_template: str) -> Iterator[str]:
    """A database with our tables that no other test sees, as a SQLAlchemy URL."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    yield postgres_service.create_database(name, template=postgres_template)
    postgres_service.drop_database(name)


@pytest.fixture
def broker_url(rabbit_service: RabbitService) -> Iterator[str]:
    """A virtual host that no other test sees, as an AMQP URL."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    yield rabbit_service.add_vhost(name)
    rabbit_service.delete_vhost(name)


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Start real workers that end with the test: `start_worker("module:app", pool="threads", env={...})`.

    Takes what `WorkerProcess` takes and returns it ready to consume; `wait=False` returns it at once.
    """
    workers: list[WorkerProcess] = []

    def start(app: str, *, wait: bool = True, **options: Any) -> WorkerProcess:
        log = options.pop("log", tmp_path / f"worker-{len(workers)}.log")
        worker = WorkerProcess(app, log=log, **options)
        workers.append(worker)
        worker.start()
        return worker.wait_ready() if wait else worker

    yield start
    for worker in workers:
        worker.kill()
