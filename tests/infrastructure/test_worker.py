from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest
from celery import Celery

from tests.processes import ProcessFailed
from tests.services import RabbitService
from tests.worker import WorkerProcess

APP = "tests.infrastructure.celery_probe:app"
StartWorker = Callable[..., WorkerProcess]


@pytest.fixture
def client(broker_url: str) -> Iterator[Celery]:
    app = Celery("client", broker=broker_url, backend="rpc://", set_as_current=False)
    yield app
    app.close()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_task_runs_end_to_end(
    start_worker: StartWorker, client: Celery, broker_url: str, pool: str
) -> None:
    worker = start_worker(APP, pool=pool, env={"PROBE_BROKER_URL": broker_url})
    result = client.send_task("tests.infrastructure.celery_probe.add", (2, 3))
    assert result.get(timeout=20) == 5
    assert "succeeded" in worker.wait_log("succeeded")
    assert worker.stop() == 0


def test_a_solo_worker_gets_ready_and_stops(start_worker: StartWorker, broker_url: str) -> None:
    worker = start_worker(APP, pool="solo", env={"PROBE_BROKER_URL": broker_url})
    assert worker.running
    assert worker.stop() == 0


def test_a_killed_worker_is_gone_with_its_pool_and_its_task_moves_on(
    start_worker: StartWorker, client: Celery, broker_url: str
) -> None:
    first = start_worker(APP, env={"PROBE_BROKER_URL": broker_url})
    client.send_task("tests.infrastructure.celery_probe.sleep_once", (60, "one"))
    first.wait_log("sleeping one")
    assert len(first.pool_pids()) == 1
    first.kill()
    assert first.returncode == -signal.SIGKILL
    second = start_worker(APP, env={"PROBE_BROKER_URL": broker_url})
    second.wait_log("sleeping one")


def test_a_worker_consumes_only_its_queues(
    start_worker: StartWorker, client: Celery, broker_url: str, rabbit_service: RabbitService
) -> None:
    start_worker(APP, env={"PROBE_BROKER_URL": broker_url}, queues=["special"], pool="threads")
    client.send_task("tests.infrastructure.celery_probe.add", (1, 1))
    result = client.send_task("tests.infrastructure.celery_probe.add", (2, 2), queue="special")
    assert result.get(timeout=20) == 4
    assert rabbit_service.queue_length(broker_url, "celery") == 1


def test_a_worker_that_cannot_start_says_why(start_worker: StartWorker) -> None:
    with pytest.raises(ProcessFailed, match="no_such_module"):
        start_worker("no_such_module:app")
