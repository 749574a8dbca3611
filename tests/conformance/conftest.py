"""The four backends of the conformance suite."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from stabilize_celery import Stabilize
from tests.conformance import behaviours
from tests.conformance.deployment import BROKER, DATABASE, INLINE, MORE, SETTINGS, make_app
from tests.conformance.harness import ConformanceEngine, EmbeddedEngine, WorkersEngine
from tests.services import PostgresService, RabbitService
from tests.worker import WorkerProcess

BACKENDS = ("sqlite", "postgres", "workers", "workers-no-inline")
Crew = tuple[Stabilize, list[WorkerProcess]]


@contextmanager
def crew_of(
    postgres: PostgresService, broker: str, template: str, folder: Path, *, inline: bool = True, **conf: Any
) -> Iterator[Crew]:
    """Two workers, of two processes each, with a database of their own."""
    name = f"conformance_{uuid.uuid4().hex[:8]}"
    database = postgres.create_database(name, template=template)
    environment = {BROKER: broker, DATABASE: database, INLINE: str(int(inline)), MORE: json.dumps(conf)}
    app, stabilize = make_app(broker, database, inline=inline, **conf)
    with ExitStack() as stack:
        stack.callback(postgres.drop_database, name)
        stack.callback(app.close)
        stack.callback(stabilize.close)
        workers = [
            WorkerProcess(
                "tests.conformance.deployment", log=folder / f"{name}-{n}.log", concurrency=2, env=environment
            )
            for n in range(2)
        ]
        for worker in workers:
            stack.callback(worker.kill)
            worker.start()
        for worker in workers:
            worker.wait_ready(60)
        yield stabilize, workers


@contextmanager
def _vhost(rabbit: RabbitService) -> Iterator[str]:
    name = f"conformance_{uuid.uuid4().hex[:8]}"
    yield rabbit.add_vhost(name)
    rabbit.delete_vhost(name)


@pytest.fixture(scope="session")
def inline_crew(
    postgres_service: PostgresService,
    rabbit_service: RabbitService,
    postgres_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Crew]:
    """Workers that handle follow-on messages in place."""
    folder = tmp_path_factory.mktemp("inline")
    with (
        _vhost(rabbit_service) as broker,
        crew_of(postgres_service, broker, postgres_template, folder) as crew,
    ):
        yield crew


@pytest.fixture(scope="session")
def plain_crew(
    postgres_service: PostgresService,
    rabbit_service: RabbitService,
    postgres_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Crew]:
    """Workers that send every message through RabbitMQ."""
    folder = tmp_path_factory.mktemp("plain")
    with (
        _vhost(rabbit_service) as broker,
        crew_of(postgres_service, broker, postgres_template, folder, inline=False) as crew,
    ):
        yield crew


@pytest.fixture(params=BACKENDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ConformanceEngine]:
    """The engine under test, on each backend in turn."""
    make: dict[str, Callable[[], ConformanceEngine]] = {
        "sqlite": lambda: _embedded("sqlite", "sqlite://", tmp_path),
        "postgres": lambda: _embedded("postgres", request.getfixturevalue("postgres_url"), tmp_path),
        "workers": lambda: _on_workers("workers", request.getfixturevalue("inline_crew"), tmp_path),
        "workers-no-inline": lambda: _on_workers(
            "workers-no-inline", request.getfixturevalue("plain_crew"), tmp_path
        ),
    }
    engine = make[request.param]()
    yield engine
    engine.close()


def _embedded(name: str, url: str, folder: Path) -> ConformanceEngine:
    stabilize = Stabilize.embedded(url, create_tables=url.startswith("sqlite"), **SETTINGS)
    behaviours.register(stabilize)
    return EmbeddedEngine(name, stabilize, folder)


def _on_workers(name: str, crew: Crew, folder: Path) -> ConformanceEngine:
    stabilize, workers = crew
    return WorkersEngine(name, stabilize, folder, workers)
