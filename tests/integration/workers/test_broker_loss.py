"""The broker is disposable: what it loses is sent again from the database (promises P1 and P4)."""

from __future__ import annotations

import logging

import pytest

from stabilize_celery import WorkflowRun
from stabilize_celery import WorkflowStatus as S
from tests.conformance.harness import Gate, Result, flow, stage
from tests.integration.workers.conftest import Deploy, Deployment
from tests.services import RabbitService

QUEUES = ("stabilize", "stabilize.tasks")
RESEND = {"stabilize_resend_delay": 0.5, "stabilize_lease": 2.0}


def start_behind(deployment: Deployment, gate: Gate, count: int = 4) -> tuple[WorkflowRun, list[WorkflowRun]]:
    """A workflow whose task occupies the only worker, and others whose messages wait in the queues."""
    engine = deployment.engine
    blocking = engine.start(
        flow(stage("slow", "script", do=[{"wait_file": gate.path}]), stage("after", after=["slow"]))
    )
    engine.wait_event(blocking, "slow")
    waiting = [
        engine.start(flow(stage("a"), stage("b", after=["a"]), stage("c", after=["a"]))) for _ in range(count)
    ]
    return blocking, waiting


def finish(deployment: Deployment, gate: Gate, runs: list[WorkflowRun]) -> list[Result]:
    gate.open()
    return [deployment.engine.settle(run, 60) for run in runs]


def assert_all_done(results: list[Result]) -> None:
    for result in results:
        assert result.status is S.SUCCEEDED
        # Lost messages are sent again; no task body runs twice for it.
        assert len(result.order()) == len(result.workflow.stages)


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "no-inline"])
def test_purging_the_queues_loses_nothing(
    deploy: Deploy, rabbit_service: RabbitService, inline: bool
) -> None:
    deployment = deploy(inline=inline, **RESEND)
    deployment.worker(pool="prefork", concurrency=1)
    gate = deployment.engine.gate()
    blocking, waiting = start_behind(deployment, gate)
    deployment.engine.wait_until(
        lambda: sum(rabbit_service.queue_length(deployment.broker_url, queue) for queue in QUEUES) > 0
    )

    purged = sum(rabbit_service.purge_queue(deployment.broker_url, queue) for queue in QUEUES)
    assert purged > 0

    assert_all_done(finish(deployment, gate, [blocking, *waiting]))


def test_deleting_the_queues_loses_nothing(deploy: Deploy, rabbit_service: RabbitService) -> None:
    deployment = deploy(**RESEND)
    worker = deployment.worker(pool="prefork", concurrency=1)
    gate = deployment.engine.gate()
    blocking, waiting = start_behind(deployment, gate)

    for queue in QUEUES:
        rabbit_service.delete_queue(deployment.broker_url, queue)

    assert_all_done(finish(deployment, gate, [blocking, *waiting]))
    assert worker.running


@pytest.mark.slow
def test_wiping_the_data_of_the_broker_loses_nothing(deploy: Deploy, own_rabbit: RabbitService) -> None:
    broker = own_rabbit.add_vhost("wiped")
    deployment = deploy(broker=broker, **RESEND)
    worker = deployment.worker(pool="prefork", concurrency=1)
    gate = deployment.engine.gate()
    blocking, waiting = start_behind(deployment, gate)

    own_rabbit.wipe_data()

    late = deployment.engine.start(flow(stage("late")))
    assert_all_done(finish(deployment, gate, [blocking, *waiting, late]))
    assert worker.running


@pytest.mark.slow
def test_a_workflow_started_while_the_broker_is_down_is_delivered_later(
    deploy: Deploy, own_rabbit: RabbitService, caplog: pytest.LogCaptureFixture
) -> None:
    broker = own_rabbit.add_vhost("down")
    deployment = deploy(broker=broker, **RESEND)
    engine = deployment.engine
    own_rabbit.kill()
    try:
        with caplog.at_level(logging.WARNING, "stabilize_celery"):
            run = engine.start(flow(stage("a"), stage("b", after=["a"])))
    finally:
        own_rabbit.start()
    assert run.status is S.NOT_STARTED
    assert "could not be published" in caplog.text
    assert "the relay sends them later" in caplog.text

    deployment.worker()

    assert engine.settle(run).order() == ["a", "b"]


@pytest.mark.slow
def test_workers_survive_a_broker_that_goes_away_and_comes_back(
    deploy: Deploy, own_rabbit: RabbitService
) -> None:
    broker = own_rabbit.add_vhost("restarted")
    deployment = deploy(broker=broker, **RESEND)
    worker = deployment.worker(pool="prefork", concurrency=1)
    engine = deployment.engine
    gate = engine.gate()
    run = engine.start(flow(stage("a", "script", do=[{"wait_file": gate.path}]), stage("b", after=["a"])))
    engine.wait_event(run, "a")

    own_rabbit.kill()
    gate.open()
    # The result is committed without the broker.
    engine.wait_status(run, "a", "SUCCEEDED")
    own_rabbit.start()
    result = engine.settle(run, 60)

    assert result.order() == ["a", "b"]
    assert result.status is S.SUCCEEDED
    assert worker.running


#: Nothing is sent again by itself.
PATIENT = {"stabilize_resend_delay": 600.0, "stabilize_resend_delay_max": 600.0, "stabilize_lease": 60.0}


@pytest.mark.slow
def test_a_wiped_broker_is_refilled_at_once(deploy: Deploy, own_rabbit: RabbitService) -> None:
    broker = own_rabbit.add_vhost("refilled")
    deployment = deploy(broker=broker, **PATIENT)
    engine = deployment.engine
    deployment.worker(concurrency=1)
    gate = engine.gate()
    busy = engine.start(flow(stage("slow", "script", do=[{"wait_file": gate.path}])))
    engine.wait_event(busy, "slow")
    later = engine.start(flow(stage("w", "wait", seconds=3600)))
    runs = [
        engine.start(engine.prepare(workflow))
        for workflow in (flow(stage("a"), stage("b", after=["a"])) for _ in range(5))
    ]

    own_rabbit.wipe_data()
    sent = engine.stabilize.rebuild().sent
    gate.open()

    assert sent >= len(runs)

    def is_done() -> bool:
        # What the worker sent into the void just before it noticed is there the next time.
        engine.stabilize.rebuild()
        return all(run.ready() for run in (busy, *runs))

    engine.wait_until(is_done, 60)
    assert engine.settle(busy, 60).executions("slow") == 1
    for run in runs:
        result = engine.wait_final(run, 60)
        assert result.status is S.SUCCEEDED
        assert sorted(result.order()) == ["a", "b"]
    assert not later.ready()
