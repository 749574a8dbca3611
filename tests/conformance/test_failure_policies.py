"""What a failure does to its stage, its branch and its workflow: scenarios 3 to 15, 18 and 22."""

from __future__ import annotations

from typing import Any

import pytest

from stabilize_celery import WorkflowStatus as S
from tests.conformance.harness import ConformanceEngine, flow, stage


@pytest.mark.parametrize(
    ("policy", "first", "second", "workflow"),
    [
        pytest.param({}, "TERMINAL", "NOT_STARTED", S.TERMINAL, id="3"),
        pytest.param({"failPipeline": False}, "STOPPED", "NOT_STARTED", S.SUCCEEDED, id="4"),
        pytest.param(
            {"continuePipelineOnFailure": True}, "FAILED_CONTINUE", "SUCCEEDED", S.SUCCEEDED, id="7"
        ),
        pytest.param({"continuePipeline": True}, "FAILED_CONTINUE", "SUCCEEDED", S.SUCCEEDED, id="7-orca"),
    ],
)
@pytest.mark.parametrize("failure", ["returned", "raised"])
def test_the_policy_of_a_stage_decides_what_its_failure_means(
    engine: ConformanceEngine,
    policy: dict[str, Any],
    first: str,
    second: str,
    workflow: S,
    failure: str,
) -> None:
    """Scenarios 3, 4 and 7."""
    step = {"raise": "ValueError", "message": "boom"} if failure == "raised" else {"return": "terminal"}
    result = engine.run(flow(stage("a", "script", do=[step], **policy), stage("b", after=["a"])))

    assert result.statuses() == {"a": first, "b": second}
    assert result.status is workflow
    assert result.executions("a") == 1
    if failure == "returned":
        assert result.stage("a").context["error"] == "boom"
    else:
        assert result.error("a") == "boom"


@pytest.mark.parametrize(
    ("policy", "workflow"),
    [
        pytest.param({}, S.SUCCEEDED, id="5"),
        pytest.param({"completeOtherBranchesThenFail": True}, S.TERMINAL, id="6"),
    ],
)
def test_other_branches_go_on_when_one_is_stopped(
    engine: ConformanceEngine, policy: dict[str, Any], workflow: S
) -> None:
    """Scenarios 5 and 6; the other branch ends after the failure."""
    gate = engine.gate()
    run = engine.start(
        flow(
            stage("a", "fail", failPipeline=False, **policy),
            stage("b", after=["a"]),
            stage("c", "script", do=[{"wait_file": gate.path}]),
            stage("d", after=["c"]),
        )
    )
    engine.wait_status(run, "a", "STOPPED")
    gate.open()
    result = engine.settle(run)

    assert result.statuses() == {"a": "STOPPED", "b": "NOT_STARTED", "c": "SUCCEEDED", "d": "SUCCEEDED"}
    assert result.status is workflow


@pytest.mark.parametrize(
    ("tasks", "policy", "task_statuses", "stage_status", "workflow"),
    [
        pytest.param(
            ["ok", "fail", "ok"],
            {"continuePipelineOnFailure": True},
            ["SUCCEEDED", "FAILED_CONTINUE", "SKIPPED"],
            "FAILED_CONTINUE",
            S.SUCCEEDED,
            id="8",
        ),
        pytest.param(
            ["ok", "fail", "ok"],
            {},
            ["SUCCEEDED", "TERMINAL", "SKIPPED"],
            "TERMINAL",
            S.TERMINAL,
            id="8-without-policy",
        ),
    ],
)
def test_tasks_after_a_failed_one_are_skipped(
    engine: ConformanceEngine,
    tasks: list[str],
    policy: dict[str, Any],
    task_statuses: list[str],
    stage_status: str,
    workflow: S,
) -> None:
    """Scenario 8."""
    result = engine.run(flow(stage("a", tasks=tasks, **policy)))

    assert result.tasks("a") == task_statuses
    assert result.statuses() == {"a": stage_status}
    assert result.executions("a") == 2
    assert result.status is workflow


@pytest.mark.parametrize(
    ("returned", "task_statuses", "stage_status", "after", "workflow"),
    [
        pytest.param(
            "failed_continue",
            ["FAILED_CONTINUE", "SUCCEEDED"],
            "FAILED_CONTINUE",
            "SUCCEEDED",
            S.SUCCEEDED,
            id="9",
        ),
        pytest.param("skipped", ["SKIPPED", "SUCCEEDED"], "SUCCEEDED", "SUCCEEDED", S.SUCCEEDED, id="10"),
        pytest.param("canceled", ["CANCELED", "SKIPPED"], "CANCELED", "NOT_STARTED", S.CANCELED, id="11"),
        pytest.param("stopped", ["STOPPED", "SKIPPED"], "STOPPED", "NOT_STARTED", S.SUCCEEDED, id="12"),
    ],
)
def test_what_the_first_of_two_tasks_returns(
    engine: ConformanceEngine,
    returned: str,
    task_statuses: list[str],
    stage_status: str,
    after: str,
    workflow: S,
) -> None:
    """Scenarios 9 to 12."""
    result = engine.run(
        flow(
            stage(
                "a",
                tasks={"first": "script", "second": "ok"},
                do=[{"return": returned, "outputs": {"done": "partly"}}],
            ),
            stage("b", "see", after=["a"]),
        )
    )

    assert result.tasks("a") == task_statuses
    assert result.statuses()["a"] == stage_status
    assert result.executions("a") == task_statuses.count("SUCCEEDED") + 1
    # A canceled workflow cancels what has not started.
    assert result.statuses()["b"] in ({after, "CANCELED"} if workflow is S.CANCELED else {after})
    assert result.executions("b") == (after == "SUCCEEDED")
    assert result.status is workflow
    if returned == "failed_continue":
        assert result.seen("b")["done"] == "partly"


@pytest.mark.parametrize(
    ("policy", "failed", "workflow"),
    [
        pytest.param({}, "TERMINAL", S.TERMINAL, id="13"),
        pytest.param({"failPipeline": False}, "STOPPED", S.SUCCEEDED, id="14"),
    ],
)
def test_a_join_does_not_run_when_a_branch_failed(
    engine: ConformanceEngine, policy: dict[str, Any], failed: str, workflow: S
) -> None:
    """Scenarios 13 and 14: the good branch has ended when the other fails."""
    gate = engine.gate()
    run = engine.start(
        flow(
            stage("a"),
            stage("b", "script", do=[[{"wait_file": gate.path}, {"return": "terminal"}]], **policy),
            stage("j", after=["a", "b"]),
        )
    )
    engine.wait_status(run, "a", "SUCCEEDED")
    gate.open()
    result = engine.settle(run)

    assert result.statuses() == {"a": "SUCCEEDED", "b": failed, "j": "NOT_STARTED"}
    assert result.status is workflow


def test_a_failure_cancels_what_still_runs_and_calls_its_hooks_once(engine: ConformanceEngine) -> None:
    """Scenario 15."""
    never, later = engine.gate("never"), engine.gate("later")
    run = engine.start(
        flow(
            stage(
                "a",
                "hooked",
                do=[{"wait_file": never.path}],
                on_cancel={"return": "success", "outputs": {"undone": True}},
            ),
            stage("y", "script", do=[[{"wait_file": later.path}, {"return": "terminal"}]]),
            stage("b", after=["a"]),
        )
    )
    engine.wait_event(run, "a")
    later.open()
    engine.wait_final(run)
    # The gate stays closed: the body ends because it is told to.
    engine.wait_event(run, "a", "end")
    result = engine.settle(run)

    assert result.statuses() == {"a": "CANCELED", "y": "TERMINAL", "b": "NOT_STARTED"}
    assert result.tasks("a") == ["CANCELED"]
    assert sorted(result.hooks("a")) == ["on_cancel", "on_cleanup"]
    assert result.stage("a").outputs == {"undone": True}
    assert result.status is S.TERMINAL


def test_an_unknown_task_type_is_a_failure_that_names_it(engine: ConformanceEngine) -> None:
    """Scenario 18."""
    result = engine.run(flow(stage("a", "nope"), stage("b", after=["a"])))

    assert result.tasks("a") == ["TERMINAL"]
    assert result.error("a").startswith("No task found for type: nope")
    assert result.statuses() == {"a": "TERMINAL", "b": "NOT_STARTED"}
    assert result.status is S.TERMINAL


@pytest.mark.parametrize(
    ("step", "text"),
    [
        pytest.param({"return": "nothing"}, "returned NoneType", id="none"),
        pytest.param({"return": "junk"}, "returned int", id="number"),
        pytest.param({"return": "redirect"}, "REDIRECT result without target_stage_ref_id", id="redirect"),
        pytest.param({"raise": "ZeroDivisionError", "message": "by nought"}, "by nought", id="exception"),
        pytest.param({"raise": "PermanentError", "message": "never"}, "never", id="permanent"),
        pytest.param({"raise": "SystemExit"}, "SystemExit", id="exit"),
    ],
)
def test_what_cannot_get_better_fails_after_one_execution(
    engine: ConformanceEngine, step: dict[str, Any], text: str
) -> None:
    """Scenario 22."""
    result = engine.run(flow(stage("a", "script", do=[step])))

    assert result.executions("a") == 1
    assert result.tasks("a") == ["TERMINAL"]
    assert text in result.error("a")
    assert result.stage("a").context["exception"]["details"]["transient"] is False
    assert result.status is S.TERMINAL


def test_a_function_that_returns_something_else_fails(engine: ConformanceEngine) -> None:
    """Scenario 22, with a function as the task."""
    result = engine.run(flow(stage("a", "function", give=42)))

    assert result.executions("a") == 1
    assert "returned int" in result.error("a")
    assert result.status is S.TERMINAL
