"""pytest-celery's setup of a broker and workers: in containers where a Docker engine answers, else on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, _state
from pytest_celery import CeleryBrokerCluster, CeleryTestSetup, CeleryTestWorker, RabbitMQTestBroker

from stabilize_celery import Stabilize
from tests.integration.celery_nodes.setup import (
    DATABASE,
    PAYMENTS,
    QUEUES,
    NodesSetup,
    NodesWorker,
    in_containers,
)

if in_containers():
    from tests.integration.celery_nodes.containers import (
        database_container,
        database_urls,
        default_rabbitmq_broker_image,
        default_worker_container,
        docker_client,
        payments_container,
        worker_image,
    )

    __all__ = ["database_container", "default_rabbitmq_broker_image", "docker_client", "worker_image"]
else:
    from tests.integration.celery_nodes.local import (  # type: ignore[assignment]
        database_urls,
        default_rabbitmq_broker,
        default_worker_container,
        payments_container,
    )

    __all__ = ["default_rabbitmq_broker"]

__all__ += ["database_urls", "default_worker_container", "payments_container"]


#: Seconds; the first test builds an image and loads others.
_TIMEOUT_IN_CONTAINERS = 900


def pytest_itemcollected(item: pytest.Item) -> None:
    """Containers take their time, and Docker's client leaves its connections to the garbage collector."""
    if in_containers():
        item.add_marker(pytest.mark.timeout(_TIMEOUT_IN_CONTAINERS))
        item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket.*family=1:ResourceWarning"))


@pytest.fixture
def celery_setup_cls() -> type[CeleryTestSetup]:
    return NodesSetup


@pytest.fixture
def celery_broker_cluster(celery_rabbitmq_broker: RabbitMQTestBroker) -> Iterator[CeleryBrokerCluster]:
    """RabbitMQ alone, not one test for each broker that Celery knows."""
    cluster = CeleryBrokerCluster(celery_rabbitmq_broker)
    yield cluster
    cluster.teardown()


@pytest.fixture
def celery_backend_cluster() -> None:
    """The engine needs no results."""


@pytest.fixture
def celery_setup_app(
    celery_setup_cls: type[CeleryTestSetup], celery_setup_config: dict[str, Any], celery_setup_name: str
) -> Iterator[Celery]:
    """pytest-celery makes it the current app of the process: it is that for one test only."""
    before = getattr(_state._tls, "current_app", None)
    app = celery_setup_cls.create_setup_app(celery_setup_config, celery_setup_name)
    yield app
    app.close()
    _state._set_current_app(before)


@pytest.fixture
def default_worker_container_cls() -> type[NodesWorker]:
    return NodesWorker


@pytest.fixture
def default_worker_env(
    default_worker_container_cls: type[NodesWorker],
    celery_worker_cluster_config: dict[str, Any],
    database_urls: tuple[str, str],
) -> dict[str, str]:
    env: dict[str, str] = default_worker_container_cls.initial_env(celery_worker_cluster_config)
    return {**env, DATABASE: database_urls[1]}


@pytest.fixture
def pool() -> str:
    """The pool of the workers; a test overrides it by a parameter."""
    return "prefork"


@pytest.fixture
def queues() -> str:
    """What the first worker consumes."""
    return f"{QUEUES},{PAYMENTS}"


@pytest.fixture
def default_worker_command(pool: str, queues: str) -> list[str]:
    return NodesWorker.worker_command(pool, queues, "celery_test_worker")


@pytest.fixture
def payments_command(pool: str) -> list[str]:
    return NodesWorker.worker_command(pool, PAYMENTS, "payments")


@pytest.fixture
def payments_worker(
    payments_container: NodesWorker, default_worker_app: Celery
) -> Iterator[CeleryTestWorker]:
    """A worker that consumes one queue."""
    worker = CeleryTestWorker(payments_container, app=default_worker_app)
    yield worker
    worker.teardown()


@pytest.fixture
def shop(celery_setup: CeleryTestSetup, database_urls: tuple[str, str]) -> Iterator[Stabilize]:
    """The engine on the app of the setup, which starts workflows; the workers are ready."""
    celery_setup.app.conf.stabilize_database_url = database_urls[0]
    engine = Stabilize(celery_setup.app)
    assert celery_setup.ready()
    yield engine
    engine.close()
