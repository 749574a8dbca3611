"""A worker that dies in the middle of a task: another one goes on when the lease has run out (promises P1 and P3)."""

from __future__ import annotations

import os
import signal

import pytest

from stabilize_celery import Workflow
from stabilize_celery import WorkflowStatus as S
from tests.conformance.harness import Gate, flow, stage
from tests.integration.workers.conftest import Deploy, processes_of

SHORT = {"stabilize_lease": 1.0, "stabilize_heartbeat": 0.2}


def unlucky(gate: Gate) -> Workflow:
    """The first execution of the second stage never ends."""
    return flow(
        stage("before"),
        stage("unlucky", "script", ["before"], do=[{"wait_file": gate.path}, {"return": "success"}]),
        stage("after", after=["unlucky"]),
    )


@pytest.mark.parametrize(
    ("pool", "victim"), [("prefork", "worker"), ("threads", "worker"), ("prefork", "child")]
)
def test_another_worker_finishes_what_a_killed_one_had_begun(deploy: Deploy, pool: str, victim: str) -> None:
    deployment = deploy(**SHORT)
    deployment.two_workers(pool=pool, concurrency=1)
    engine = deployment.engine
    run = engine.start(unlucky(engine.gate("never")))
    pid = processes_of(engine.wait_event(run, "unlucky"), "unlucky")[0]

    if victim == "worker":
        deployment.worker_of(pid).kill()
    else:
        os.kill(pid, signal.SIGKILL)
    result = engine.settle(run)

    assert result.status is S.SUCCEEDED
    assert result.order() == ["before", "unlucky", "unlucky", "after"]
    first, second = processes_of(result, "unlucky")
    assert first != second
    assert [entry["attempt"] for entry in result.events("start", "unlucky")] == [1, 2]
    assert result.stage("unlucky").tasks[0].attempts == 2


@pytest.mark.slow
def test_a_task_that_kills_its_worker_each_time_ends_after_its_attempts(deploy: Deploy) -> None:
    """A poison task is a failed attempt like any other, and does not loop for ever."""
    deployment = deploy(stabilize_lease=0.5, stabilize_heartbeat=0.1, stabilize_max_attempts=3)
    deployment.worker(pool="prefork", concurrency=1)
    engine = deployment.engine

    result = engine.run(
        flow(stage("poison", "script", do=[{"kill": "SIGKILL"}]), stage("after", after=["poison"])),
        timeout=60,
    )

    assert result.executions("poison") == 3
    assert result.statuses() == {"poison": "TERMINAL", "after": "NOT_STARTED"}
    assert "started 3 times" in result.error("poison")
    assert result.status is S.TERMINAL


def test_a_worker_that_is_shut_down_finishes_its_task_first(deploy: Deploy) -> None:
    deployment = deploy()
    first = deployment.worker(pool="prefork", concurrency=1)
    engine = deployment.engine
    gate = engine.gate()
    run = engine.start(
        flow(stage("slow", "script", do=[{"wait_file": gate.path}]), stage("after", after=["slow"]))
    )
    engine.wait_event(run, "slow")

    first.kill(signal.SIGTERM)
    first.wait_log("Warm shutdown")
    gate.open()
    assert first.wait() == 0
    deployment.worker()
    result = engine.settle(run)

    assert result.status is S.SUCCEEDED
    assert result.order() == ["slow", "after"]


def test_a_frozen_worker_that_wakes_up_cannot_overwrite_the_result(deploy: Deploy) -> None:
    """A worker that lost its lease, and does not know it, is refused (fencing)."""
    deployment = deploy(**SHORT)
    deployment.two_workers(pool="prefork", concurrency=1)
    engine = deployment.engine
    gate = engine.gate()
    slow = [{"wait_file": gate.path}, {"return": "success", "outputs": {"from": "frozen"}}]
    run = engine.start(
        flow(stage("a", "script", do=[slow, {"return": "success", "outputs": {"from": "second"}}]))
    )
    pid = processes_of(engine.wait_event(run, "a"), "a")[0]
    frozen = deployment.worker_of(pid)
    os.kill(pid, signal.SIGSTOP)
    try:
        engine.wait_final(run)
    finally:
        gate.open()
        os.kill(pid, signal.SIGCONT)
    frozen.wait_log("its lease was lost")
    result = engine.settle(run)

    assert result.executions("a") == 2
    assert result.stage("a").outputs == {"from": "second"}
    assert result.status is S.SUCCEEDED
