"""How messages reach workers: at once, to the queues they belong to, through the app's own task class."""

from __future__ import annotations

import pytest

from stabilize_celery import WorkflowStatus as S
from tests.conformance.harness import flow, stage
from tests.integration.workers.conftest import Deploy, pids_of, processes_of

NO_RELAY = ["--no-stabilize-relay"]


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "no-inline"])
def test_everything_without_a_delay_completes_without_a_relay(deploy: Deploy, inline: bool) -> None:
    """Nothing waits for the next look at the table: each message is sent by whoever wrote it."""
    deployment = deploy(inline=inline)
    engine = deployment.engine
    deployment.worker(pool="prefork", concurrency=2, arguments=NO_RELAY)

    single = engine.run(flow(stage("only")))
    wide = engine.run(
        flow(
            stage("first"),
            *(stage(f"branch-{n}", after=["first"], plan={"before": [{"name": f"b{n}"}]}) for n in range(5)),
            stage("join", after=[f"branch-{n}" for n in range(5)]),
        )
    )
    failed = engine.run(flow(stage("a", "fail"), stage("b", after=["a"])))
    many = [
        engine.settle(run)
        for run in engine.stabilize.start_many([engine.prepare(flow(stage("a"))) for _ in range(5)])
    ]

    assert single.status is S.SUCCEEDED
    assert wide.status is S.SUCCEEDED
    assert len(wide.order()) == 12
    assert failed.status is S.TERMINAL
    assert [result.status for result in many] == [S.SUCCEEDED] * 5


def test_a_control_from_outside_takes_effect_without_a_relay(deploy: Deploy) -> None:
    deployment = deploy()
    engine = deployment.engine
    deployment.worker(arguments=NO_RELAY)
    run = engine.start(flow(stage("a", "script", do=[{"return": "suspend"}, {"return": "success"}])))
    engine.wait_status(run, "a", "SUSPENDED")

    run.signal("a", "go")

    assert engine.settle(run).status is S.SUCCEEDED


def test_what_has_to_wait_needs_a_relay(deploy: Deploy) -> None:
    """The other side of the tests above: they can fail."""
    deployment = deploy()
    engine = deployment.engine
    deployment.worker(arguments=NO_RELAY)
    run = engine.start(flow(stage("a", "script", do=[{"raise": "TransientError"}, {"return": "success"}])))
    engine.wait_until(lambda: engine.result(run).stage("a").tasks[0].last_error is not None)
    assert engine.result(run).executions("a") == 1

    deployment.worker()

    assert engine.settle(run).executions("a") == 2


def test_a_worker_consumes_exactly_the_queues_it_is_told(deploy: Deploy) -> None:
    deployment = deploy()
    engine = deployment.engine
    control = deployment.worker(queues=["stabilize"])
    run = engine.start(flow(stage("a"), stage("b", after=["a"])))
    engine.wait_status(run, "a", "RUNNING")
    # A task message that this worker may not take; one it may take comes after it and is handled.
    other = engine.start(flow(stage("x", stageEnabled=False)))
    assert engine.settle(other).status is S.SUCCEEDED
    assert engine.result(run).order() == []

    tasks = deployment.worker(queues=["stabilize.tasks"])
    result = engine.settle(run)

    assert result.status is S.SUCCEEDED
    assert set(processes_of(result, "a") + processes_of(result, "b")) <= pids_of(tasks)
    assert "(RunTask)[" not in control.output
    assert "(RunTask)[" in tasks.output
    assert "(StartWorkflow)[" not in tasks.output


def test_a_worker_that_is_told_nothing_consumes_the_engines_queues_too(deploy: Deploy) -> None:
    deployment = deploy()
    worker = deployment.worker()

    assert deployment.engine.run(flow(stage("a"))).status is S.SUCCEEDED
    for queue in ("celery", "stabilize", "stabilize.tasks"):
        assert f".> {queue} " in worker.output


def test_a_routed_task_type_reaches_only_the_workers_of_its_queue(deploy: Deploy) -> None:
    deployment = deploy(stabilize_task_routes={"see": {"queue": "special"}})
    engine = deployment.engine
    common = deployment.worker()
    run = engine.start(flow(stage("a"), stage("s", "see", ["a"]), stage("b", after=["s"])))
    engine.wait_status(run, "s", "RUNNING")
    # The common worker has nothing to do and does not take it.
    assert engine.run(flow(stage("x"))).status is S.SUCCEEDED
    assert engine.result(run).order() == ["a"]

    special = deployment.worker(queues=["special"])
    result = engine.settle(run)

    assert result.order() == ["a", "s", "b"]
    assert set(processes_of(result, "s")) <= pids_of(special)
    assert set(processes_of(result, "a") + processes_of(result, "b")) <= pids_of(common)


def test_user_code_runs_inside_the_apps_own_task_class(deploy: Deploy) -> None:
    """Flask and Django wrap each task in a context of theirs by replacing ``app.Task``."""
    deployment = deploy()
    deployment.worker(app="tests.integration.workers.wrapping_app")

    result = deployment.engine.run(flow(stage("a", "whoami"), stage("b", "hooked-whoami", after=["a"])))

    assert result.stage("a").outputs == {"inside": "stabilize.RunTask"}
    assert result.stage("b").outputs == {"inside": "stabilize.RunTask"}
    assert result.status is S.SUCCEEDED
