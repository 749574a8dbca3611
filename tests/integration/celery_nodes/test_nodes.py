"""Workflows on workers and a broker that are pytest-celery's nodes: pools, kills, restarts."""

from __future__ import annotations

import pytest
from pytest_celery import CeleryTestSetup

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.testing import assert_order, assert_stage, assert_succeeded
from tests.processes import wait_until

TIMEOUT = 90


def order() -> Workflow:
    return Workflow.create(
        "shop",
        "order",
        [
            StageExecution.single("charge", "charge", {"order_id": 42}),
            StageExecution.single("ship", "ship", requires={"charge"}),
        ],
    )


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_workflow_runs_on_a_worker_of_any_pool(
    celery_setup: CeleryTestSetup, shop: Stabilize, pool: str
) -> None:
    assert len(celery_setup) == 2
    run = shop.start(order())
    assert run.get(timeout=TIMEOUT)["parcel"] == "parcel for ch_42"
    assert_order(run, "charge", "ship")
    celery_setup.worker.assert_log_exists("charging order 42")
    processes = celery_setup.worker.get_running_processes_info(["pid", "cmdline"])
    worker = [each for each in processes if f"{celery_setup.worker.hostname()}" in str(each["cmdline"])]
    # A prefork worker is a process with one for each of its two tasks at once.
    assert len(worker) == (3 if pool == "prefork" else 1)


def test_a_workflow_outlives_the_worker_that_runs_it(celery_setup: CeleryTestSetup, shop: Stabilize) -> None:
    worker = celery_setup.worker
    run = shop.start(Workflow.create("shop", "long", [StageExecution.single("work", "long")]))
    worker.wait_for_log("attempt 1 of work begins")
    worker.kill()
    assert worker.container.status == "exited"
    assert not run.ready()
    worker.restart()
    assert run.get(timeout=TIMEOUT)["attempt"] == 2
    assert_stage(run, "work", status="SUCCEEDED", attempts=2)


def test_a_workflow_outlives_the_broker(celery_setup: CeleryTestSetup, shop: Stabilize) -> None:
    ask = StageExecution.single("ask", "approval")
    ship = StageExecution.single("ship", "ship", {"charge_id": "ch_1"}, {"ask"})
    waiting = shop.start(Workflow.create("shop", "approval", [ask, ship]))

    def asks() -> bool:
        return waiting.workflow().stages[0].status.name == "SUSPENDED"

    wait_until(asks, TIMEOUT, "the stage to wait for its approval")
    celery_setup.broker.kill()
    meanwhile = shop.start(order())
    waiting.approve("ask", user="kim")
    celery_setup.broker.restart()
    for run in (waiting, meanwhile):
        run.wait(timeout=TIMEOUT)
        assert_succeeded(run)
