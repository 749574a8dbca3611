"""Nodes that are containers, the way pytest-celery makes them; PostgreSQL is one more beside its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import docker
import psycopg
import pytest
from pytest_celery import DEFAULT_WORKER_CONTAINER_TIMEOUT, DEFAULT_WORKER_VOLUME, RESULT_TIMEOUT
from pytest_docker_tools import build, container, fxtr
from pytest_docker_tools.wrappers import Container

from stabilize_celery.persistence.schema import create_tables
from tests.integration.celery_nodes.setup import NodesWorker
from tests.processes import wait_until
from tests.services import ROOT, PostgresService

_PASSWORD = "stabilize"


@pytest.fixture(scope="session")
def docker_client() -> Iterator[docker.DockerClient]:
    """That of pytest-docker-tools, closed in the end."""
    with closing(docker.from_env()) as client:
        yield client


worker_image = build(
    path=str(ROOT), dockerfile="tests/integration/celery_nodes/Dockerfile", tag="stabilize-celery/worker:test"
)

database_container = container(
    image="postgres:17.6-bookworm",
    ports={"5432/tcp": None},
    environment={"POSTGRES_PASSWORD": _PASSWORD},
    network="{default_pytest_celery_network.name}",
    timeout=RESULT_TIMEOUT,
)

_WORKER: dict[str, Any] = {
    "image": "{worker_image.id}",
    "environment": fxtr("default_worker_env"),
    "network": "{default_pytest_celery_network.name}",
    "volumes": {"{default_worker_volume.name}": DEFAULT_WORKER_VOLUME},
    "wrapper_class": NodesWorker,
    "timeout": DEFAULT_WORKER_CONTAINER_TIMEOUT,
}
default_worker_container = container(command=fxtr("default_worker_command"), **_WORKER)
payments_container = container(command=fxtr("payments_command"), **_WORKER)


@pytest.fixture
def default_rabbitmq_broker_image() -> str:
    """The one of docker-compose.yml, not whatever is the latest."""
    return "rabbitmq:4.1.4-management"


@pytest.fixture
def database_urls(database_container: Container) -> tuple[str, str]:
    """The database as this process and as workers see it."""
    host, port = database_container.get_addr("5432/tcp")
    start = f"postgresql+psycopg://postgres:{_PASSWORD}"
    ours = f"{start}@{host}:{port}/postgres"

    def answers() -> bool:
        try:
            PostgresService(ours).start()
        except psycopg.OperationalError:
            return False
        return True

    wait_until(answers, RESULT_TIMEOUT, "PostgreSQL in its container")
    create_tables(ours)
    return ours, f"{start}@{database_container.ips.primary}:5432/postgres"
