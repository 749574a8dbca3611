"""Observers are told every transition, in order, after its commit, and can break nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import pytest

from stabilize_celery import Stabilize, StageExecution, Workflow, observe
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.observe import Transition


@pytest.fixture(params=[True, False], ids=["inline", "one by one"])
def stabilize(request: pytest.FixtureRequest) -> Iterator[Stabilize]:
    # One message after the other: of two threads either may tell first.
    with Stabilize.embedded(concurrency=1, inline=request.param, control_retry_delay=0.01) as engine:
        yield engine


def chain() -> Workflow:
    return Workflow.create(
        "shop",
        "order",
        [StageExecution.single("a", "noop"), StageExecution.single("b", "fail", requires={"a"})],
    )


@pytest.fixture
def told(stabilize: Stabilize) -> list[Transition]:
    found: list[Transition] = []
    stabilize.observe(found.extend)

    @stabilize.task("fail")
    def fail() -> None:
        raise ValueError("by design")

    return found


def test_every_row_of_the_history_is_told_in_order(stabilize: Stabilize, told: list[Transition]) -> None:
    run = stabilize.run(chain())

    history = stabilize.store.history(run.id)
    assert [(t.event, t.old, t.new, t.stage_id, t.task_id, t.at) for t in told] == [
        (r["event"], r["from_status"], r["to_status"], r["stage_id"], r["task_id"], r["at"]) for r in history
    ]
    assert len(history) >= 8


def test_transitions_carry_the_names_people_know(stabilize: Stabilize, told: list[Transition]) -> None:
    run = stabilize.run(chain())

    assert {(t.workflow_id, t.application, t.workflow_name) for t in told} == {(run.id, "shop", "order")}
    assert {(t.stage_ref, t.stage_type) for t in told if t.event == "stage"} == {("a", "noop"), ("b", "fail")}
    assert {t.task_type for t in told if t.event == "task"} == {"noop", "fail"}
    (last,) = [t for t in told if t.ends_workflow]
    assert last is told[-1]
    assert last.new is S.TERMINAL
    assert last.started_at is not None
    assert last.started_at <= last.at


def test_observers_are_told_after_the_commit(stabilize: Stabilize, told: list[Transition]) -> None:
    seen: list[S] = []

    @stabilize.observe
    def look(transitions: Sequence[Transition]) -> None:
        if transitions[-1].ends_workflow:
            seen.append(stabilize.get(transitions[-1].workflow_id).status)

    stabilize.run(chain())
    assert seen == [S.TERMINAL]


def test_what_is_rolled_back_is_not_told(
    stabilize: Stabilize, told: list[Transition], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that is repeated tells what it did once."""
    from stabilize_celery.persistence.unit_of_work import UnitOfWork

    flush = UnitOfWork.flush
    failures = iter([True] * 3)

    def fail_at_first(unit: UnitOfWork) -> None:
        if unit.transitions and next(failures, False):
            raise OSError("the transaction fails")
        flush(unit)

    monkeypatch.setattr(UnitOfWork, "flush", fail_at_first)
    run = stabilize.run(chain(), timeout=60)

    history = stabilize.store.history(run.id)
    assert [(t.event, t.stage_id, t.task_id, t.new) for t in told] == [
        (r["event"], r["stage_id"], r["task_id"], r["to_status"]) for r in history
    ]
    assert next(failures, None) is None


def test_an_observer_that_fails_keeps_nobody_from_going_on(
    stabilize: Stabilize, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Transition] = []

    @stabilize.observe
    def fail(_transitions: Sequence[Transition]) -> None:
        raise ValueError("an observer's own")

    stabilize.observe(told.extend)
    with caplog.at_level(logging.ERROR):
        run = stabilize.run(Workflow.create("shop", "order", [StageExecution.single("a", "noop")]))

    assert run.status is S.SUCCEEDED
    assert told[-1].ends_workflow
    assert "an observer's own" in caplog.text


def test_observers_of_every_engine_are_told_by_each(
    told: list[Transition], stabilize: Stabilize, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere: list[Transition] = []
    monkeypatch.setattr(observe, "everywhere", [everywhere.extend])
    stabilize.run(chain())

    assert everywhere == told
