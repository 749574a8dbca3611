"""Attempts, polling, time limits and gates: scenarios 58 to 63, and decision 10."""

from __future__ import annotations

from typing import Any

import pytest

from stabilize_celery import WorkflowStatus as S
from tests.conformance.deployment import SETTINGS
from tests.conformance.harness import ConformanceEngine, Result, flow, stage

#: The database's clock and that of the task bodies are read at different moments.
SLACK = 0.02


def gaps(result: Result, ref: str) -> list[float]:
    """Seconds from the end of each execution of a stage to the beginning of the next."""
    starts = [event["at"] for event in result.events("start", ref)]
    ends = [event["at"] for event in result.events("end", ref)]
    return [start - end for end, start in zip(ends, starts[1:], strict=False)]


def test_a_transient_error_is_retried_with_the_state_it_leaves(engine: ConformanceEngine) -> None:
    """Scenario 58."""
    result = engine.run(
        flow(
            stage(
                "a",
                "script",
                do=[
                    {"raise": "TransientError", "context_update": {"p": 1}},
                    {"raise": "TransientError", "context_update": {"p": 2}},
                    {"copy": {"progress": "p"}},
                ],
            )
        )
    )

    assert result.status is S.SUCCEEDED
    assert result.executions("a") == 3
    assert [event["attempt"] for event in result.events("start", "a")] == [1, 2, 3]
    assert result.stage("a").outputs == {"progress": 2}
    assert result.stage("a").context["p"] == 2
    task = result.stage("a").tasks[0]
    assert task.attempts == 3
    assert task.last_error is not None
    assert task.last_error["details"]["type"] == "TransientError"


def test_attempts_and_the_last_error_are_visible_while_it_is_retried(engine: ConformanceEngine) -> None:
    """Scenario 58 and decision 10."""
    gate = engine.gate()
    run = engine.start(
        flow(
            stage(
                "a",
                "script",
                do=[{"raise": "TransientError", "message": "not yet"}, {"wait_file": gate.path}],
            )
        )
    )
    task = engine.wait_event(run, "a", count=2).stage("a").tasks[0]

    assert task.last_error is not None
    assert task.last_error["details"]["error"] == "not yet"
    assert task.attempts >= 1
    gate.open()
    assert engine.settle(run).status is S.SUCCEEDED


@pytest.mark.parametrize("error", ["TransientError", "ConnectionResetError", "TimeoutError"])
def test_transient_errors_end_after_ten_executions(engine: ConformanceEngine, error: str) -> None:
    """Scenario 59."""
    result = engine.run(flow(stage("a", "script", do=[{"raise": error, "message": "still away"}])))

    assert result.executions("a") == 10
    assert result.tasks("a") == ["TERMINAL"]
    assert result.error("a") == "still away"
    assert result.stage("a").context["exception"]["details"]["transient"] is True
    assert result.stage("a").tasks[0].attempts == 10
    assert result.status is S.TERMINAL


def test_retries_that_run_out_follow_the_policy_of_the_stage(engine: ConformanceEngine) -> None:
    """Scenario 59 with scenario 7."""
    result = engine.run(
        flow(
            stage("a", "script", do=[{"raise": "TransientError"}], continuePipelineOnFailure=True),
            stage("b", after=["a"]),
        )
    )

    assert result.executions("a") == 10
    assert result.statuses() == {"a": "FAILED_CONTINUE", "b": "SUCCEEDED"}


def test_retry_after_is_the_least_delay(engine: ConformanceEngine) -> None:
    """Scenario 60; with 0.6 s instead of 3."""
    result = engine.run(
        flow(
            stage("a", "script", do=[{"raise": "TransientError", "retry_after": 0.6}, {"return": "success"}])
        )
    )

    assert result.executions("a") == 2
    assert gaps(result, "a")[0] >= 0.6 - SLACK


def test_delays_between_retries_double(engine: ConformanceEngine) -> None:
    """Decision 10: at least the first delay, then more, up to the longest."""
    result = engine.run(
        flow(stage("a", "script", do=[{"raise": "TransientError"}] * 3 + [{"return": "success"}]))
    )

    first, second, third = gaps(result, "a")
    assert first >= SETTINGS["retry_delay"] - SLACK
    assert min(second, third) >= 0.75 * SETTINGS["retry_delay_max"] - SLACK


def test_a_polling_task_is_called_until_it_is_done(engine: ConformanceEngine) -> None:
    """Scenario 61; polling again is not another attempt."""
    polls = [
        {"return": "running", "context": {"polled": 1}},
        {"return": "running", "context": {"polled": 2}},
        {"copy": {"polls": "polled"}},
    ]
    result = engine.run(flow(stage("a", "polling", backoff=0.1, do=polls)))

    assert result.executions("a") == 3
    assert [event["attempt"] for event in result.events("start", "a")] == [1, 1, 1]
    assert min(gaps(result, "a")) >= 0.1 - SLACK
    assert result.stage("a").outputs == {"polls": 2}
    assert result.status is S.SUCCEEDED


def test_any_task_may_say_that_it_is_still_running(engine: ConformanceEngine) -> None:
    """Scenario 61, for a task that says itself when to come back."""
    result = engine.run(
        flow(
            stage(
                "a",
                "script",
                do=[{"return": "running", "after": 0.3}, {"return": "running"}, {"return": "success"}],
            )
        )
    )

    assert result.executions("a") == 3
    assert gaps(result, "a")[0] >= 0.3 - SLACK
    assert gaps(result, "a")[1] >= SETTINGS["poll_delay"] - SLACK


def test_polling_does_not_use_up_attempts(engine: ConformanceEngine) -> None:
    """Decision 10: more calls than there are attempts."""
    result = engine.run(
        flow(stage("a", "polling", backoff=0.01, do=[{"return": "running"}] * 12 + [{"return": "success"}]))
    )

    assert result.executions("a") == 13
    assert result.status is S.SUCCEEDED


def test_a_polling_task_has_a_time_limit_in_all(engine: ConformanceEngine) -> None:
    """Scenario 61."""
    result = engine.run(flow(stage("a", "polling", backoff=0.1, total=0.5, do=[{"return": "running"}])))

    assert result.tasks("a") == ["TERMINAL"]
    assert "exceeded total timeout" in result.error("a")
    assert result.hooks("a")[0] == "on_timeout"
    assert result.hooks("a").count("on_timeout") == 1
    assert result.executions("a") >= 2
    assert result.status is S.TERMINAL


def test_what_on_timeout_returns_replaces_the_failure(engine: ConformanceEngine) -> None:
    """Scenario 61."""
    instead = {"return": "failed_continue", "outputs": {"gave": "up"}}
    result = engine.run(
        flow(
            stage("a", "polling", backoff=0.1, total=0.3, do=[{"return": "running"}], on_timeout=instead),
            stage("b", "see", after=["a"]),
        )
    )

    assert result.statuses() == {"a": "FAILED_CONTINUE", "b": "SUCCEEDED"}
    assert result.seen("b") == {"gave": "up"}
    assert result.status is S.SUCCEEDED


@pytest.mark.parametrize(
    ("enabled", "task", "stage_status", "executions"),
    [
        pytest.param(True, "SUCCEEDED", "SUCCEEDED", 1, id="enabled"),
        pytest.param(False, "SKIPPED", "SUCCEEDED", 0, id="disabled"),
        pytest.param("ValueError", "TERMINAL", "TERMINAL", 0, id="gate-raises"),
    ],
)
def test_a_task_may_decide_that_there_is_nothing_to_do(
    engine: ConformanceEngine, enabled: Any, task: str, stage_status: str, executions: int
) -> None:
    """Scenario 62."""
    result = engine.run(flow(stage("a", "skippable", enabled=enabled)))

    assert result.tasks("a") == [task]
    assert result.statuses() == {"a": stage_status}
    assert result.executions("a") == executions


def test_a_stage_that_takes_too_long_fails_while_its_task_still_runs(engine: ConformanceEngine) -> None:
    """Scenario 63; the task is told to stop, and what it returns is refused."""
    never = engine.gate("never")
    late = [{"wait_file": never.path}, {"return": "success", "outputs": {"too": "late"}}]
    result = engine.run(flow(stage("a", "hooked", stageTimeoutMs=200, do=[late]), stage("b", after=["a"])))
    engine.wait_event(result.run, "a", "end")
    result = engine.settle(result.run)

    assert result.statuses() == {"a": "TERMINAL", "b": "NOT_STARTED"}
    assert "timed out" in result.error("a")
    assert result.stage("a").outputs == {}
    assert sorted(result.hooks("a")) == ["on_cleanup", "on_timeout"]
    assert result.executions("a") == 1
    assert result.status is S.TERMINAL


def test_a_stage_time_limit_holds_across_retries(engine: ConformanceEngine) -> None:
    """Scenario 63: what is left of it limits each call, and an attempt that comes too late is not made."""
    result = engine.run(
        flow(stage("a", "script", stageTimeoutMs=300, do=[{"raise": "TransientError", "retry_after": 0.4}]))
    )

    assert result.executions("a") == 1
    assert result.statuses() == {"a": "TERMINAL"}
    assert "stageTimeoutMs" in result.error("a")
