"""What is late, early, or meant for something else changes nothing (promise P5), and what is delayed comes at its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from stabilize_celery import (
    FakeClock,
    Stabilize,
    StageExecution,
    TaskResult,
    TransientError,
    Workflow,
    WorkflowRun,
)
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.messages import CancelStage, Message, RestartStage, SignalStage, SkipStage, StartStage
from stabilize_celery.persistence import tables


@pytest.fixture
def called() -> list[int]:
    """The generation of each pass in which the body of the task ``asks`` was called."""
    return []


@pytest.fixture
def engine(called: list[int]) -> Iterator[Stabilize]:
    def asks(stage: StageExecution) -> TaskResult:
        called.append(stage.generation)
        return TaskResult.success() if "_signal_name" in stage.context else TaskResult.suspend()

    with Stabilize.embedded("sqlite://", concurrency=1, clock=FakeClock()) as made:
        made.registry.register("asks", asks)
        yield made


def waiting(engine: Stabilize, *more: StageExecution) -> WorkflowRun:
    """A workflow whose stage waits for a signal."""
    asks = StageExecution.single("asks", "asks")
    run = engine.start(Workflow.create("tests", "stale", [asks, *more]))
    engine.processor.drain()
    return run


def second_pass(engine: Stabilize) -> WorkflowRun:
    """A workflow whose stage waits for a signal, for the second time."""
    run = waiting(engine)
    run.signal("asks", "go")
    engine.processor.drain()
    run.restart_stage("asks")
    engine.processor.drain()
    assert stage_of(run).generation == 1
    assert stage_of(run).status is S.SUSPENDED
    return run


def stage_of(run: WorkflowRun) -> StageExecution:
    return run.workflow().stages[0]


ORDERS: list[Callable[..., Message]] = [
    lambda **ids: SignalStage(**ids, signal_name="go", user="ann"),
    lambda **ids: CancelStage(**ids, user="ann"),
    lambda **ids: SkipStage(**ids, user="ann"),
]
NAMES = ["signal", "cancel", "skip"]


@pytest.mark.parametrize("order", ORDERS, ids=NAMES)
def test_what_was_meant_for_an_earlier_pass_changes_nothing_and_says_so(
    engine: Stabilize, order: Callable[..., Message]
) -> None:
    run = second_pass(engine)
    stage = stage_of(run)
    engine.dispatcher.send(order(workflow_id=run.id, stage_id=stage.id, generation=0))
    engine.processor.drain()

    assert stage_of(run).status is S.SUSPENDED
    assert [row["actor"] for row in run.history() if row["event"] == "refused"] == ["ann"]


@pytest.mark.parametrize("order", ORDERS, ids=NAMES)
def test_a_message_with_the_id_of_another_workflow_changes_nothing(
    engine: Stabilize, order: Callable[..., Message]
) -> None:
    run, other = waiting(engine), waiting(engine)
    engine.dispatcher.send(order(workflow_id=other.id, stage_id=stage_of(run).id, generation=0))
    engine.processor.drain()

    assert stage_of(run).status is S.SUSPENDED
    assert stage_of(other).status is S.SUSPENDED


def test_a_task_of_an_earlier_pass_is_not_called(engine: Stabilize, called: list[int]) -> None:
    run = second_pass(engine)
    run.signal("asks", "go")
    engine.processor.step()
    before = list(called)
    with engine.store.database.begin() as connection:
        [kind] = connection.execute(select(tables.messages.c.type)).scalars()
        assert kind == "RunTask"
        # Its row is that of a task that waits now; only its generation is old.
        connection.execute(update(tables.messages).values(generation=0))
    engine.processor.drain()

    assert called == before


def test_a_signal_kept_for_one_pass_does_not_wake_the_next(engine: Stabilize) -> None:
    run = waiting(engine)
    run.signal("asks", "go")
    run.signal("asks", "again")
    engine.processor.drain()
    assert stage_of(run).status is S.SUCCEEDED

    run.restart_stage("asks")
    engine.processor.drain()
    assert stage_of(run).status is S.SUSPENDED


def test_a_signal_sent_in_two_is_taken_in_order(engine: Stabilize) -> None:
    run = engine.start(Workflow.create("tests", "stale", [StageExecution.single("asks", "asks")]))
    for name in ("first", "second"):
        run.signal("asks", name)
    engine.processor.drain()

    assert "signal first" in [row["reason"] for row in run.history()]
    assert "signal second" not in [row["reason"] for row in run.history()]


def test_a_control_message_is_not_taken_before_its_time(engine: Stabilize) -> None:
    run = waiting(engine)
    stage = stage_of(run)
    order = CancelStage(workflow_id=run.id, stage_id=stage.id, generation=stage.generation)
    message_id = engine.dispatcher.send(order).id
    with engine.store.database.begin() as connection:
        later = engine.store.now() + timedelta(seconds=5)
        connection.execute(update(tables.messages).values(due_at=later, send_at=later))

    assert not engine.dispatcher.handle(message_id)
    assert stage_of(run).status is S.SUSPENDED

    engine.store.clock.advance(5)
    assert engine.dispatcher.handle(message_id)
    assert stage_of(run).status is S.CANCELED


def test_a_retry_is_not_claimed_before_its_time(engine: Stabilize) -> None:
    calls: list[Any] = []

    def fails_once(stage: StageExecution) -> TaskResult:
        calls.append(engine.store.now())
        if len(calls) == 1:
            raise TransientError("not now", retry_after=7)
        return TaskResult.success()

    engine.registry.register("fails_once", fails_once)
    run = engine.start(Workflow.create("tests", "early", [StageExecution.single("a", "fails_once")]))
    while not calls:
        engine.processor.step()
    with engine.store.database.begin() as connection:
        [message_id] = connection.execute(tables.messages.select()).scalars()

    assert not engine.dispatcher.run(message_id)
    assert len(calls) == 1

    engine.processor.drain()
    assert calls[1] - calls[0] == timedelta(seconds=7)
    assert run.status is S.SUCCEEDED


def test_a_message_that_waits_for_its_time_comes_at_it(engine: Stabilize) -> None:
    begun = engine.store.now()
    run = engine.start(Workflow.create("tests", "wait", [StageExecution.single("a", "wait", {"seconds": 5})]))
    engine.processor.drain()
    assert run.status is S.SUCCEEDED
    assert engine.store.now() - begun == timedelta(seconds=5)


def test_a_suspension_ends_at_its_time(engine: Stabilize) -> None:
    engine.registry.register(
        "asks_for_a_while", lambda stage: TaskResult.suspend(timeout=30) if stage else TaskResult.success()
    )
    begun = engine.store.now()
    run = engine.start(Workflow.create("tests", "late", [StageExecution.single("a", "asks_for_a_while")]))
    engine.processor.drain()
    assert run.status is S.TERMINAL
    assert engine.store.now() - begun == timedelta(seconds=30)


@pytest.mark.parametrize("again", [StartStage, RestartStage])
def test_an_order_for_a_stage_that_is_gone_changes_nothing(
    engine: Stabilize, again: Callable[..., Message]
) -> None:
    run = waiting(engine)
    engine.dispatcher.send(again(workflow_id=run.id, stage_id="gone", generation=0))
    engine.processor.drain()
    assert stage_of(run).status is S.SUSPENDED
