"""A task type with a queue of its own is run by the worker that consumes it, and by no other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_celery import CeleryTestSetup, CeleryTestWorker, CeleryWorkerCluster

from stabilize_celery import Stabilize
from tests.integration.celery_nodes.setup import QUEUES
from tests.integration.celery_nodes.test_nodes import TIMEOUT, order


@pytest.fixture
def queues() -> str:
    return QUEUES


@pytest.fixture
def celery_worker_cluster(
    celery_worker: CeleryTestWorker, payments_worker: CeleryTestWorker
) -> Iterator[CeleryWorkerCluster]:
    cluster = CeleryWorkerCluster(celery_worker, payments_worker)
    yield cluster
    cluster.teardown()


def test_a_task_type_has_a_worker_of_its_own(celery_setup: CeleryTestSetup, shop: Stabilize) -> None:
    general, payments = celery_setup.worker_cluster
    runs = [shop.start(order()) for _ in range(3)]
    for run in runs:
        assert run.get(timeout=TIMEOUT)["parcel"] == "parcel for ch_42"
    payments.assert_log_exists("charging order 42")
    assert payments.logs().count("charging order 42") == 3
    assert "charging order" not in general.logs()
