"""Code of users that runs outside the body of a task: builders, reducers, constructors, callbacks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from stabilize_celery import (
    Stabilize,
    StageDefinitionBuilder,
    StageExecution,
    Task,
    TaskExecution,
    TaskResult,
    Workflow,
    WorkflowStatus,
    current_run,
    reducers,
)
from stabilize_celery.dag.graph import StageGraphBuilder
from stabilize_celery.persistence.tables import messages
from stabilize_celery.tasks.run import TaskRun

ODD = [SystemExit(3), KeyboardInterrupt("no"), GeneratorExit("so"), ValueError("plain")]


class UglyError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not today")


@pytest.fixture
def engine() -> Iterator[Stabilize]:
    with Stabilize.embedded(lease=1, heartbeat=0.1, concurrency=1) as engine:
        yield engine


def run(engine: Stabilize, *stages: StageExecution) -> Workflow:
    started = engine.start(Workflow.create("test", "code", list(stages)))
    engine.processor.drain(timeout=60, until=started.ready)
    return started.workflow()


@pytest.mark.parametrize("error", [*ODD, UglyError()], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("method", ["build_tasks", "before_stages"])
def test_a_builder_that_raises(engine: Stabilize, error: BaseException, method: str) -> None:
    class Builder(StageDefinitionBuilder):
        type = "odd"

        def build_tasks(self, stage: StageExecution) -> list[TaskExecution]:
            if method == "build_tasks":
                raise error
            return [TaskExecution.create("n", "noop")]

        def before_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
            if method == "before_stages":
                raise error

    engine.register_builder(Builder())
    workflow = run(engine, StageExecution.create("odd", "a", "a"))
    assert workflow.status is WorkflowStatus.TERMINAL
    assert workflow.stages[0].context["exception"]["details"]["type"] == type(error).__name__


@pytest.mark.parametrize("error", ODD, ids=lambda error: type(error).__name__)
def test_a_reducer_that_raises(
    engine: Stabilize, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def reduce(values: list[Any]) -> Any:
        raise error

    monkeypatch.setitem(reducers._registered, "odd", reduce)
    engine.task("give")(lambda stage: {"n": 1})
    join = StageExecution.single("c", "noop", requires={"a", "b"}, output_reducers={"n": "odd"})
    workflow = run(engine, StageExecution.single("a", "give"), StageExecution.single("b", "give"), join)
    assert workflow.status is WorkflowStatus.TERMINAL
    failed = workflow.stage_by_ref_id("c")
    assert failed is not None
    assert type(error).__name__ in str(failed.context["exception"]["details"]["errors"])
    assert failed.tasks[0].claims <= 1


def test_the_lease_is_kept_while_a_task_is_made(engine: Stabilize) -> None:
    """A constructor that loads a model takes longer than a lease."""

    def lease_end() -> Any:
        with engine.store.database.autocommit() as connection:
            return connection.execute(select(messages.c.send_at).where(messages.c.type == "RunTask")).scalar()

    class Heavy(Task):
        def __init__(self) -> None:
            assert current_run() is not None
            first, end = lease_end(), time.monotonic() + 30
            while lease_end() == first:
                assert time.monotonic() < end, "nothing keeps its lease"
                time.sleep(0.01)

        def execute(self, stage: StageExecution) -> TaskResult:
            return TaskResult.success()

    engine.task("heavy")(Heavy)
    assert run(engine, StageExecution.single("a", "heavy")).status is WorkflowStatus.SUCCEEDED


def test_a_callback_that_raises_keeps_nothing_from_the_others() -> None:
    called = []

    def broken() -> None:
        raise ValueError("no")

    attempt = TaskRun("w", "s", "t")
    with attempt.on_interrupt(broken), attempt.on_interrupt(lambda: called.append(1)):
        attempt.interrupt()
        assert called == [1]


@pytest.mark.parametrize("harm", ["context", "tasks"])
def test_a_body_that_leaves_its_stage_unreadable(engine: Stabilize, harm: str) -> None:
    @engine.task("harm")
    def harmful(stage: StageExecution) -> TaskResult:
        setattr(stage, harm, None if harm == "context" else [])
        raise ValueError("after the harm")

    workflow = run(engine, StageExecution.single("a", "harm"))
    assert workflow.status is WorkflowStatus.TERMINAL
    assert workflow.stages[0].context["error"]
    assert workflow.stages[0].tasks[0].claims == 1
