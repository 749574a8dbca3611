"""Whatever a user's hooks, constructors and errors do is that task's failure, at once and with its own text."""

from __future__ import annotations

from typing import Any

import pytest

from stabilize_celery import WorkflowStatus as S
from tests.conformance.harness import ConformanceEngine, Result, flow, stage


def details(result: Result, ref: str = "a") -> dict[str, Any]:
    found: dict[str, Any] = result.stage(ref).context["exception"]["details"]
    return found


@pytest.mark.parametrize(
    ("hook", "own"),
    [
        pytest.param("get_execution_timeout", {}, id="execution-timeout"),
        pytest.param("get_dynamic_timeout", {}, id="total-timeout"),
        pytest.param("get_backoff_period", {"polls": True}, id="backoff-of-a-poll"),
        pytest.param("get_backoff_period", {"fails": True}, id="backoff-of-a-retry"),
    ],
)
@pytest.mark.parametrize(
    ("step", "kind", "text"),
    [
        pytest.param({"raise": "KeyError", "message": "limits"}, "KeyError", "limits", id="raises"),
        pytest.param({"raise": "SystemExit", "message": "7"}, "SystemExit", "7", id="exits"),
        pytest.param({"raise": "KeyboardInterrupt"}, "KeyboardInterrupt", "Keyboard", id="interrupts"),
        pytest.param({"give": 600}, "TypeError", "timedelta", id="seconds"),
        pytest.param({"give": "soon"}, "TypeError", "timedelta", id="text"),
        pytest.param({"seconds": -5}, "ValueError", "-1 day", id="negative"),
    ],
)
def test_a_hook_that_raises_or_gives_no_span_of_time(
    engine: ConformanceEngine, hook: str, own: dict[str, Any], step: dict[str, Any], kind: str, text: str
) -> None:
    result = engine.run(flow(stage("a", "odd", hooks={hook: step}, **own)))

    assert result.status is S.TERMINAL
    assert details(result)["type"] == kind
    assert text in result.error("a")
    if "raise" not in step:
        assert hook in result.error("a"), "the hook is named"
    assert result.stage("a").tasks[0].claims == 1, "it is settled by the worker that found it"


def test_a_hook_that_raises_what_may_pass_is_tried_again(engine: ConformanceEngine) -> None:
    result = engine.run(
        flow(stage("a", "odd", hooks={"get_execution_timeout": {"raise": "TransientError"}}, fails=False))
    )

    assert result.status is S.TERMINAL
    assert result.stage("a").tasks[0].claims > 1
    assert details(result)["type"] == "TransientError"


def test_a_hook_for_the_end_of_the_time_that_raises(engine: ConformanceEngine) -> None:
    """Both are told: what the hook raised, and why it was called."""
    hooks = {
        "on_timeout": {"raise": "KeyError", "message": "no way out"},
        "get_dynamic_timeout": {"seconds": 0},
    }
    result = engine.run(flow(stage("a", "odd", hooks=hooks, polls=True)))

    assert result.status is S.TERMINAL
    assert "no way out" in result.error("a")
    assert any("exceeded total timeout" in told for told in details(result)["errors"])


def test_a_hook_for_the_end_of_the_time_that_gives_no_result(engine: ConformanceEngine) -> None:
    hooks = {"on_timeout": {"give": 3}, "get_dynamic_timeout": {"seconds": 0}}
    result = engine.run(flow(stage("a", "odd", hooks=hooks, polls=True)))

    assert result.status is S.TERMINAL
    assert "on_timeout" in result.error("a")
    assert "TaskResult or None" in result.error("a")


def test_a_task_that_cannot_be_made(engine: ConformanceEngine) -> None:
    result = engine.run(flow(stage("a", "unmade")))

    assert result.status is S.TERMINAL
    assert "no constructor today" in result.error("a")
    assert result.stage("a").tasks[0].claims == 1


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        ("ugly", "UglyError", "UglyError (its text cannot be read: __str__ raised IndexError)"),
        ("cyclic", "PermanentError", "round and round caused by: it goes"),
        ("group", "ExceptionGroup", "two of them (2 sub-exceptions): ValueError: one; KeyError: 'two'"),
        ("long", "ValueError", "deadlock on table orders"),
        ("unstorable", "ValueError", "half ? and \N{REPLACEMENT CHARACTER}"),
        ("silent", "PermanentError", "PermanentError"),
        ("AssertionError", "AssertionError", "AssertionError"),
        ("late delay", "ValueError", "retry_after of TransientError"),
        ("with an update", "PermanentError", "own words"),
        ("SystemExit", "SystemExit", "SystemExit"),
        ("GeneratorExit", "GeneratorExit", "GeneratorExit"),
        ("KeyboardInterrupt", "KeyboardInterrupt", "KeyboardInterrupt"),
    ],
)
def test_an_error_that_is_odd_in_itself(engine: ConformanceEngine, error: str, kind: str, text: str) -> None:
    result = engine.run(flow(stage("a", "script", do=[{"raise": error}])))

    assert result.status is S.TERMINAL
    assert details(result)["type"] == kind
    assert result.error("a").startswith(text)
    assert str(result.stage("a").context["error"]).startswith(text)
    assert result.stage("a").tasks[0].claims == 1
    assert len(result.error("a")) < 200_000
    assert details(result)["traceback"]


@pytest.mark.parametrize("error", ["long transient", "transient group"])
def test_an_odd_error_that_may_pass_is_tried_again(engine: ConformanceEngine, error: str) -> None:
    result = engine.run(flow(stage("a", "script", do=[{"raise": error}, {"return": "success"}])))

    assert result.status is S.SUCCEEDED
    assert result.executions("a") == 2


def test_a_long_text_of_a_result_is_cut(engine: ConformanceEngine) -> None:
    result = engine.run(flow(stage("a", "script", do=[{"return": "terminal", "error_length": 3_000_000}])))

    assert result.status is S.TERMINAL
    told = str(result.stage("a").context["error"])
    assert told.startswith("xxx")
    assert told.endswith("[TRUNCATED]")


@pytest.mark.parametrize("hook", ["on_cancel", "on_cleanup"])
def test_a_hook_after_the_end_that_raises_oddly(engine: ConformanceEngine, hook: str) -> None:
    gate = engine.gate()
    own: dict[str, Any] = {hook: {"raise": "ugly"}}
    run = engine.start(flow(stage("a", "hooked", do=[{"wait_file": gate.path}], **own)))
    engine.wait_event(run, "a")
    run.cancel()
    result = engine.wait_final(run)

    recorded = [row for row in run.history() if row["event"] == hook]
    assert [row["reason"][:9] for row in recorded] == ["UglyError"]
    assert result.status is S.CANCELED
