"""Canceling by force ends the pool process of a task that does not stop; hooks run, also after a crash."""

from __future__ import annotations

import os

import psutil
import pytest

from stabilize_celery import Workflow
from stabilize_celery import WorkflowStatus as S
from tests.conformance.harness import flow, stage
from tests.integration.workers.conftest import Deploy, processes_of
from tests.services import RabbitService

SHORT = {"stabilize_lease": 1.5, "stabilize_heartbeat": 0.1, "stabilize_task_kill_grace": 0.2}
DEAF = {"sleep": 60}


def deaf() -> Workflow:
    """Its task does not look whether it is still wanted."""
    return flow(stage("deaf", "hooked", do=[DEAF]), stage("after", after=["deaf"]))


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_task_that_does_not_listen_is_ended_with_its_process(deploy: Deploy) -> None:
    deployment = deploy(**SHORT)
    worker = deployment.worker(pool="prefork", concurrency=2)
    engine = deployment.engine
    run = engine.start(deaf())
    pid = processes_of(engine.wait_event(run, "deaf"), "deaf")[0]
    assert pid in worker.pool_pids()

    run.cancel(user="kim", reason="enough", force=True)
    engine.wait_until(lambda: ended(pid), run=run)
    result = engine.wait_final(run)
    # The message of the task that was killed falls due when its lease ends; it must not run again.
    engine.wait_until(lambda: engine.stabilize.store.count_messages() == 0, run=run)
    result = engine.result(run)

    assert result.statuses() == {"deaf": "CANCELED", "after": "CANCELED"}
    assert result.status is S.CANCELED
    assert result.executions("deaf") == 1
    assert sorted(result.hooks("deaf")) == ["on_cancel", "on_cleanup"]
    assert worker.running
    assert engine.run(flow(stage("next"))).status is S.SUCCEEDED


def test_a_task_that_listens_keeps_its_process(deploy: Deploy) -> None:
    deployment = deploy(**SHORT)
    worker = deployment.worker(pool="prefork", concurrency=2)
    engine = deployment.engine
    before = set(worker.pool_pids())
    never = engine.gate("never")
    run = engine.start(flow(stage("a", "hooked", do=[{"wait_file": never.path}])))
    engine.wait_event(run, "a")

    run.cancel(force=True)
    engine.wait_event(run, "a", "end")
    result = engine.wait_final(run)

    assert sorted(result.hooks("a")) == ["on_cancel", "on_cleanup"]
    assert set(worker.pool_pids()) == before


def test_without_force_a_task_that_does_not_listen_ends_by_itself(deploy: Deploy) -> None:
    deployment = deploy(**SHORT)
    deployment.worker(pool="prefork", concurrency=2)
    engine = deployment.engine
    late = [{"sleep": 1.5}, {"return": "success", "outputs": {"late": 1}}]
    run = engine.start(flow(stage("a", "hooked", do=[late])))
    engine.wait_event(run, "a")
    run.cancel()
    result = engine.wait_final(run)
    assert result.status is S.CANCELED
    engine.wait_event(run, "a", "end")
    engine.wait_until(lambda: engine.stabilize.store.count_messages() == 0, run=run)
    assert engine.result(run).stage("a").outputs == {}


@pytest.mark.slow
def test_the_order_to_end_survives_the_loss_of_the_broker(deploy: Deploy, own_rabbit: RabbitService) -> None:
    deployment = deploy(broker=own_rabbit.add_vhost("forced"), stabilize_resend_delay=0.5, **SHORT)
    deployment.worker(pool="prefork", concurrency=2)
    engine = deployment.engine
    run = engine.start(deaf())
    pid = processes_of(engine.wait_event(run, "deaf"), "deaf")[0]

    own_rabbit.kill()
    run.cancel(user="kim", force=True)
    assert run.status is S.RUNNING
    assert not ended(pid)
    own_rabbit.start()
    engine.wait_until(lambda: ended(pid), 60, run)
    result = engine.wait_final(run, 60)

    assert result.status is S.CANCELED
    assert result.executions("deaf") == 1
    assert sorted(result.hooks("deaf")) == ["on_cancel", "on_cleanup"]


@pytest.mark.slow
def test_the_order_to_end_survives_the_loss_of_the_worker(deploy: Deploy) -> None:
    """Given while no worker is alive, it is carried out by the next one; the task does not run again."""
    deployment = deploy(**{**SHORT, "stabilize_lease": 60.0})
    first = deployment.worker(pool="prefork", concurrency=1)
    engine = deployment.engine
    run = engine.start(deaf())
    engine.wait_event(run, "deaf")

    first.kill()
    run.cancel(user="kim", force=True)
    deployment.worker(pool="prefork", concurrency=1)
    engine.wait_until(run.ready, 60, run)
    engine.wait_event(run, "deaf", "on_cleanup")
    result = engine.wait_event(run, "deaf", "on_cancel")

    assert result.status is S.CANCELED
    assert result.executions("deaf") == 1


@pytest.mark.parametrize("hook", ["on_cleanup", "on_cancel"])
def test_a_hook_that_dies_with_its_worker_is_called_again(deploy: Deploy, hook: str) -> None:
    """At least once, whatever happens in between."""
    deployment = deploy(**SHORT)
    deployment.worker(pool="prefork", concurrency=2)
    engine = deployment.engine
    dies = {hook: {"kill": "SIGKILL", "times": 1}}
    run = engine.start(flow(stage("a", "hooked", do=[{"return": "suspend"}], **dies)))
    engine.wait_status(run, "a", "SUSPENDED")
    run.cancel()
    engine.wait_event(run, "a", hook, count=2)
    result = engine.wait_final(run)
    engine.wait_until(lambda: engine.stabilize.store.count_messages() == 0, run=run)

    assert engine.result(run).hooks("a").count(hook) == 2
    assert result.status is S.CANCELED
    pids = [entry["pid"] for entry in result.events(hook, "a")]
    assert pids[0] != pids[1]
    assert os.getpid() not in pids


def test_cleanup_follows_a_task_that_killed_its_worker(deploy: Deploy) -> None:
    deployment = deploy(**SHORT, stabilize_max_attempts=1)
    deployment.worker(pool="prefork", concurrency=2)
    engine = deployment.engine
    result = engine.run(flow(stage("a", "hooked", do=[{"kill": "SIGKILL"}])), 60)

    assert result.status is S.TERMINAL
    assert result.hooks("a") == ["on_cleanup"]


def test_a_hook_has_a_time_limit(deploy: Deploy) -> None:
    """It fails, and changes nothing else; its process is ended if it does not come back."""
    deployment = deploy(**SHORT, stabilize_hook_time_limit=0.3)
    worker = deployment.worker(pool="prefork", concurrency=2)
    engine = deployment.engine
    run = engine.start(flow(stage("a", "hooked", on_cleanup=DEAF), stage("b", after=["a"])))
    engine.wait_until(lambda: any(row["event"] == "on_cleanup" for row in run.history()), run=run)
    result = engine.wait_final(run)

    (told,) = [row for row in run.history() if row["event"] == "on_cleanup"]
    assert "timed out after 0.3s" in told["reason"]
    assert result.statuses() == {"a": "SUCCEEDED", "b": "SUCCEEDED"}
    assert result.hooks("a") == ["on_cleanup"], "on_timeout is not for hooks"
    pid = result.events("on_cleanup", "a")[0]["pid"]
    engine.wait_until(lambda: ended(pid), run=run)
    assert worker.running
