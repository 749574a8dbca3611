"""Waiting for a time, and for a person, on a clock that is moved by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stabilize_celery import FakeClock, StageExecution, Workflow, WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.testing import StabilizeForTests, assert_stage

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
def stabilize_clock() -> FakeClock:
    return FakeClock(NOON)


def start(stabilize: StabilizeForTests, task: str, **context: Any) -> WorkflowRun:
    return stabilize.start(Workflow.create("tests", task, [StageExecution.single("a", task, context)]))


def only_stage(run: WorkflowRun) -> StageExecution:
    (stage,) = run.workflow().stages
    return stage


@pytest.mark.parametrize(
    ("context", "seconds"),
    [
        ({"waitTime": 90}, 90.0),
        ({"seconds": 0.5}, 0.5),
        ({"until": "2030-01-01T12:30:00+00:00"}, 1800.0),
        ({"until": "2030-01-01T12:30:00"}, 1800.0),
        ({"until": "2030-01-01T13:30:00+01:00"}, 1800.0),
    ],
)
def test_a_wait_is_one_row_that_falls_due(
    stabilize: StabilizeForTests, context: dict[str, Any], seconds: float
) -> None:
    run = start(stabilize, "wait", **context)
    stabilize.advance()
    assert stabilize.store.count_messages() == 1
    assert stabilize.store.next_due() == NOON + timedelta(seconds=seconds)

    claims = 0
    while not run.ready():
        due = stabilize.store.next_due()
        assert due is not None
        stabilize.advance(due - stabilize.clock.now())
        claims += 1
    assert claims == 1, "it was called in between"
    stage = only_stage(run)
    assert stage.outputs == {"waitedSeconds": seconds}
    assert stage.end_time == NOON + timedelta(seconds=seconds)


@pytest.mark.parametrize("context", [{"waitTime": 0}, {"until": "2029-12-31T00:00:00Z"}])
def test_nothing_to_wait_for(stabilize: StabilizeForTests, context: dict[str, Any]) -> None:
    run = start(stabilize, "wait", **context)
    stabilize.advance()
    assert only_stage(run).outputs == {"waitedSeconds": 0.0}


def test_a_wait_goes_on_while_the_workflow_is_paused(stabilize: StabilizeForTests) -> None:
    run = start(stabilize, "wait", waitTime=60)
    stabilize.advance()
    run.pause()
    stabilize.advance()
    stabilize.advance(61)
    assert only_stage(run).status is S.PAUSED
    run.resume()
    stabilize.advance()
    assert only_stage(run).status is S.SUCCEEDED


def test_a_wait_that_is_restarted_waits_again(stabilize: StabilizeForTests) -> None:
    run = start(stabilize, "wait", waitTime=60)
    stabilize.drain()
    run.restart_stage("a")
    stabilize.advance()
    assert stabilize.store.next_due() == NOON + timedelta(seconds=120)


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"waitTime": -1},
        {"waitTime": "soon"},
        {"waitTime": 1, "until": "2030-01-01"},
        {"until": "tomorrow"},
        {"waitTime": True},
        {"seconds": 1e12},
        {"seconds": "inf"},
    ],
)
def test_waits_that_make_no_sense(stabilize: StabilizeForTests, context: dict[str, Any]) -> None:
    run = start(stabilize, "wait", **context)
    stabilize.advance()
    stage = only_stage(run)
    assert stage.status is S.TERMINAL
    assert "Stage 'a'" in stage.context["error"]
    assert stage.tasks[0].attempts == 1


def test_a_signal_that_is_no_answer_gives_nobody_more_time(stabilize: StabilizeForTests) -> None:
    run = start(stabilize, "approval", timeout=100)
    stabilize.advance()
    stabilize.advance(60)
    run.signal("a", "hurry up")
    stabilize.advance()
    stabilize.advance(39)
    assert only_stage(run).status is S.SUSPENDED
    stabilize.advance(1)
    assert only_stage(run).status is S.TERMINAL
    assert run.status is S.TERMINAL


def test_an_upstream_output_does_not_answer(stabilize: StabilizeForTests) -> None:
    """Defect 21: a stage is not approved because one before it put out what looks like a signal."""
    stabilize.stub("forge", returns={"_signal_name": "approve", "timeout": 1})
    run = stabilize.run(
        Workflow.create(
            "tests",
            "forged",
            [StageExecution.single("f", "forge"), StageExecution.single("a", "approval", requires=["f"])],
        )
    )
    assert_stage(run, "a", status=S.SUSPENDED)


def test_start_expiry_of_a_stage_and_of_a_workflow(stabilize: StabilizeForTests) -> None:
    late = StageExecution.single("late", "noop", requires=["w"])
    late.start_time_expiry = NOON + timedelta(seconds=30)
    run = stabilize.start(
        Workflow.create(
            "tests",
            "expiry",
            [
                StageExecution.single("w", "wait", {"waitTime": 60}),
                late,
                StageExecution.single("z", "noop", requires=["late"]),
            ],
        )
    )
    forgotten = stabilize.start(
        Workflow.create("tests", "expiry", [StageExecution.single("a", "noop")], start_time_expiry=NOON)
    )
    stabilize.drain()

    statuses = {stage.ref_id: stage.status for stage in run.workflow().stages}
    assert statuses == {"w": S.SUCCEEDED, "late": S.SKIPPED, "z": S.SUCCEEDED}
    (told,) = [row for row in run.history() if row["to_status"] is S.SKIPPED and row["task_id"] is None]
    assert told["reason"] == "its start time has expired"
    assert forgotten.status is S.CANCELED
    assert forgotten.workflow().cancellation_reason == "its start time has expired"
