"""What is asked of a workflow is kept, whatever else goes on; the clock stands still, one message after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import select

from stabilize_celery import (
    FakeClock,
    Stabilize,
    StageExecution,
    Task,
    TaskResult,
    Workflow,
    WorkflowRun,
)
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.messages import (
    CancelWorkflow,
    ExpireStage,
    Message,
    PauseWorkflow,
    RestartStage,
    SignalStage,
    SkipStage,
)
from stabilize_celery.persistence import tables

Bodies = dict[str, Callable[[StageExecution], Any]]


@pytest.fixture
def bodies() -> Bodies:
    """What the task ``does`` of a stage does, by the stage's ref_id."""
    return {}


@pytest.fixture(params=[True, False], ids=["inline", "no-inline"])
def engine(request: pytest.FixtureRequest, bodies: Bodies) -> Iterator[Stabilize]:
    def asks(stage: StageExecution) -> TaskResult:
        if "_signal_name" in stage.context:
            return TaskResult.success()
        return TaskResult.suspend(timeout=stage.own_context.get("patience"))

    def does(stage: StageExecution) -> TaskResult:
        done = bodies[stage.ref_id](stage)
        return done if isinstance(done, TaskResult) else TaskResult.success()

    clock = FakeClock()
    with Stabilize.embedded(
        "sqlite://", concurrency=1, clock=clock, inline=request.param, inline_batch=10
    ) as made:
        made.registry.register("asks", asks)
        made.registry.register("does", does)
        yield made


def one(ref: str, task: str = "noop", *requires: str, **context: Any) -> StageExecution:
    return StageExecution.single(ref, task, context, requires)


def start(engine: Stabilize, *stages: StageExecution, **options: Any) -> WorkflowRun:
    return engine.start(Workflow.create("tests", "controls", list(stages), **options))


def settle(engine: Stabilize, *, after: float = 0.0) -> None:
    """Handle everything that is due by then."""
    engine.store.clock.advance(after)
    while engine.processor.step():
        pass


def statuses(run: WorkflowRun) -> dict[str, str]:
    return {stage.ref_id: str(stage.status) for stage in run.workflow().stages}


def order(engine: Stabilize, message: Message) -> None:
    """Have a message handled before everything else."""
    assert engine.dispatcher.handle(engine.dispatcher.send(message).id)


def limited(limit: int = 1) -> dict[str, Any]:
    return {
        "id": "line",
        "limitConcurrent": True,
        "maxConcurrentExecutions": limit,
        "keepWaitingPipelines": True,
    }


# ---------------------------------------------------------------------- branches


def test_a_workflow_ends_with_its_join(engine: Stabilize) -> None:
    run = start(engine, one("a"), one("b"), one("j", "noop", "a", "b"), one("k", "noop", "j"))
    settle(engine)
    assert set(statuses(run).values()) == {"SUCCEEDED"}
    assert run.status is S.SUCCEEDED


def test_every_stage_of_a_wide_fan_out_runs(engine: Stabilize) -> None:
    wide = [one(f"w{number}", "noop", "a") for number in range(23)]
    run = start(engine, one("a"), *wide, one("j", "noop", *(stage.ref_id for stage in wide)))
    settle(engine)
    assert set(statuses(run).values()) == {"SUCCEEDED"}
    assert run.status is S.SUCCEEDED


def test_a_stopped_branch_before_a_join_leaves_nothing_to_wait_for(engine: Stabilize, bodies: Bodies) -> None:
    bodies["b"] = lambda stage: TaskResult.terminal("no")
    run = start(engine, one("a"), one("b", "does", failPipeline=False), one("j", "noop", "a", "b"))
    settle(engine)
    assert statuses(run) == {"a": "SUCCEEDED", "b": "STOPPED", "j": "NOT_STARTED"}
    assert run.status is S.SUCCEEDED


def test_a_failure_while_paused_ends_the_workflow_when_it_is_resumed(
    engine: Stabilize, bodies: Bodies
) -> None:
    def fails(stage: StageExecution) -> TaskResult:
        order(engine, PauseWorkflow(workflow_id=stage.execution.id))
        return TaskResult.terminal("no")

    bodies["a"] = fails
    run = start(engine, one("a", "does"), one("b", "asks"))
    settle(engine)
    assert run.status is S.PAUSED
    run.resume()
    settle(engine)
    assert run.status is S.TERMINAL
    assert statuses(run) == {"a": "TERMINAL", "b": "CANCELED"}


# ---------------------------------------------------------------------- time


def test_a_pause_puts_off_the_time_limit_of_a_stage(engine: Stabilize) -> None:
    run = start(engine, one("a", "asks", stageTimeoutMs=10_000))
    settle(engine)
    settle(engine, after=6)
    run.pause()
    settle(engine)
    settle(engine, after=100)
    run.resume()
    settle(engine)
    settle(engine, after=3)
    assert statuses(run) == {"a": "SUSPENDED"}
    settle(engine, after=2)
    assert statuses(run) == {"a": "TERMINAL"}


def test_each_suspension_has_its_own_time(engine: Stabilize, bodies: Bodies) -> None:
    bodies["a"] = lambda stage: TaskResult.suspend(timeout=30)
    run = start(engine, one("a", "does"))
    settle(engine)
    settle(engine, after=20)
    run.signal("a", "go")
    settle(engine)
    assert "_signal_name" not in run.workflow().stages[0].context
    settle(engine, after=15)
    assert statuses(run) == {"a": "SUSPENDED"}
    settle(engine, after=16)
    assert statuses(run) == {"a": "TERMINAL"}


def test_an_ended_stage_leaves_no_timer(engine: Stabilize) -> None:
    run = start(engine, one("a", "asks", stageTimeoutMs=10_000, patience=5))
    settle(engine)
    run.signal("a", "go")
    settle(engine)
    assert run.status is S.SUCCEEDED
    assert engine.store.count_messages() == 0


# ---------------------------------------------------------------------- signals


def test_a_transient_signal_that_nobody_waits_for_is_lost(engine: Stabilize) -> None:
    run = start(engine, one("b", "asks"), one("a", "asks", "b"))
    settle(engine)
    run.signal("a", "go", persistent=False)
    settle(engine)
    run.signal("b", "go")
    settle(engine)
    assert statuses(run) == {"b": "SUCCEEDED", "a": "SUSPENDED"}


def test_a_signal_for_what_has_ended_is_lost_and_says_so(engine: Stabilize) -> None:
    run = start(engine, one("a"))
    settle(engine)
    stage = run.workflow().stages[0]
    late = SignalStage(workflow_id=run.id, stage_id=stage.id, generation=0, signal_name="go", persistent=True)
    order(engine, late)
    assert run.history()[-1]["reason"] == "signal go lost: the stage is SUCCEEDED"


def test_a_timer_that_comes_early_ends_nothing(engine: Stabilize) -> None:
    run = start(engine, one("a", "asks", stageTimeoutMs=60_000))
    settle(engine)
    stage = run.workflow().stages[0]
    order(engine, ExpireStage(workflow_id=run.id, stage_id=stage.id, generation=0))
    assert statuses(run) == {"a": "SUSPENDED"}


def test_a_signal_of_a_person_does_not_end_the_wait_for_a_sub_workflow(engine: Stabilize) -> None:
    outer, inner = nested(engine)
    (stage,) = outer.workflow().top_level_stages()
    outer.signal(stage.ref_id, "hurry")
    settle(engine)
    assert (outer.status, inner.status) == (S.RUNNING, S.RUNNING)
    inner.signal("i", "go")
    settle(engine)
    assert (outer.status, inner.status) == (S.SUCCEEDED, S.SUCCEEDED)


# ---------------------------------------------------------------------- controls


def test_a_restart_that_was_on_its_way_does_not_revive_a_canceled_workflow(engine: Stabilize) -> None:
    run = start(engine, one("a"), one("b", "asks", "a"))
    settle(engine)
    stage = run.workflow().stages[0]
    run.cancel()
    settle(engine)
    order(engine, RestartStage(workflow_id=run.id, stage_id=stage.id, generation=0, user="ann"))
    settle(engine)
    assert run.status is S.CANCELED
    assert statuses(run) == {"a": "SUCCEEDED", "b": "CANCELED"}


def test_a_stage_that_waits_is_skipped_when_its_turn_comes(engine: Stabilize) -> None:
    run = start(engine, one("a", "asks"), one("b", "noop", "a"), one("c", "noop", "b"))
    settle(engine)
    run.skip_stage("b")
    settle(engine)
    assert statuses(run) == {"a": "SUSPENDED", "b": "NOT_STARTED", "c": "NOT_STARTED"}
    run.signal("a", "go")
    settle(engine)
    assert statuses(run) == {"a": "SUCCEEDED", "b": "SKIPPED", "c": "SUCCEEDED"}


def test_what_comes_after_a_skipped_stage_sees_what_came_before_it(engine: Stabilize, bodies: Bodies) -> None:
    seen: list[Any] = []
    bodies["a"] = lambda _: TaskResult.success(outputs={"found": 1})
    bodies["c"] = lambda stage: seen.append(stage.context.get("found"))
    run = start(engine, one("a", "does"), one("b", "asks", "a"), one("c", "does", "b"))
    while statuses(run)["a"] != "SUCCEEDED":
        assert engine.processor.step()
    # Its turn has come; with each message alone it has not begun.
    stage = run.workflow().stage_by_ref_id("b")
    assert stage is not None
    order(engine, SkipStage(workflow_id=run.id, stage_id=stage.id, generation=0, user="ann"))
    settle(engine)
    assert statuses(run) == {"a": "SUCCEEDED", "b": "SKIPPED", "c": "SUCCEEDED"}
    assert seen == [1]


@pytest.mark.parametrize(("force", "told"), [(False, "ask"), (True, "kill")])
def test_a_running_body_is_told_how_it_is_canceled(
    engine: Stabilize, bodies: Bodies, force: bool, told: str
) -> None:
    heard: list[Any] = []

    def runs(stage: StageExecution) -> None:
        order(engine, CancelWorkflow(workflow_id=stage.execution.id, force=force))
        heard.append(cancellation(engine))

    bodies["a"] = runs
    run = start(engine, one("a", "does"))
    settle(engine)
    assert heard == [told]
    assert run.status is S.CANCELED


def test_a_running_body_hears_that_its_stage_is_skipped(engine: Stabilize, bodies: Bodies) -> None:
    heard: list[Any] = []

    def runs(stage: StageExecution) -> TaskResult:
        ids = {"workflow_id": stage.execution.id, "stage_id": stage.id, "generation": stage.generation}
        order(engine, SkipStage(**ids, user="ann"))
        heard.append(cancellation(engine))
        return TaskResult.success(outputs={"too": "late"})

    bodies["a"] = runs
    run = start(engine, one("a", "does"))
    settle(engine)
    assert heard == ["ask"]
    assert statuses(run) == {"a": "SKIPPED"}
    assert run.workflow().stages[0].outputs == {}


def cancellation(engine: Stabilize) -> Any:
    running = select(tables.messages.c.cancel).where(tables.messages.c.type == "RunTask")
    with engine.store.database.begin() as connection:
        return connection.execute(running).scalar_one()


class Cleans(Task):
    """Says in its stage's context which pass was cleaned up."""

    def execute(self, stage: StageExecution) -> TaskResult:
        return TaskResult.success()

    def on_cleanup(self, stage: StageExecution) -> TaskResult:
        return TaskResult.success(context={f"cleaned {stage.generation}": True})


def test_a_hook_of_an_earlier_pass_does_not_change_the_next(engine: Stabilize) -> None:
    engine.registry.register("cleans", Cleans())
    run = start(engine, one("a", "cleans"))
    while statuses(run) != {"a": "SUCCEEDED"}:
        engine.processor.step()
    stage = run.workflow().stages[0]
    order(engine, RestartStage(workflow_id=run.id, stage_id=stage.id, generation=0))
    settle(engine)
    assert [key for key in run.workflow().stages[0].context if key.startswith("cleaned")] == ["cleaned 1"]


# ---------------------------------------------------------------------- limits


def test_a_paused_workflow_gives_its_slot_to_the_next_and_needs_one_again(engine: Stabilize) -> None:
    first, second = (start(engine, one("a", "asks"), config=limited()) for _ in range(2))
    settle(engine)
    assert (first.status, second.status) == (S.RUNNING, S.BUFFERED)
    first.pause()
    settle(engine)
    assert (first.status, second.status) == (S.PAUSED, S.RUNNING)
    first.resume()
    settle(engine)
    assert (first.status, second.status) == (S.BUFFERED, S.RUNNING)
    second.signal("a", "go")
    settle(engine)
    assert (first.status, second.status) == (S.RUNNING, S.SUCCEEDED)
    second.restart_stage("a")
    settle(engine)
    assert (first.status, second.status) == (S.RUNNING, S.BUFFERED)


def test_one_that_comes_when_the_limit_is_raised_lets_those_before_it_go_first(engine: Stabilize) -> None:
    runs = [start(engine, one("a", "asks"), config=limited()) for _ in range(2)]
    settle(engine)
    runs.append(start(engine, one("a", "asks"), config=limited(2)))
    settle(engine)
    assert [run.status for run in runs] == [S.RUNNING, S.RUNNING, S.BUFFERED]


def test_without_keeping_those_that_wait_are_canceled_for_the_newest(engine: Stabilize) -> None:
    config = {**limited(), "keepWaitingPipelines": False}
    runs = [start(engine, one("a", "asks"), config=config) for _ in range(3)]
    settle(engine)
    runs[0].signal("a", "go")
    settle(engine)
    assert [run.status for run in runs] == [S.SUCCEEDED, S.CANCELED, S.RUNNING]


# ---------------------------------------------------------------------- workflows within workflows


def nested(engine: Stabilize) -> tuple[WorkflowRun, WorkflowRun]:
    """A workflow whose stage waits for one within it, whose stage waits for a signal."""
    engine.register_workflow("inner", lambda seen: Workflow.create("tests", "inner", [one("i", "asks")]))
    outer = start(engine, one("o", "sub_workflow", workflow="inner"))
    settle(engine)
    return outer, engine.get(outer.workflow().stages[0].context["_sub_workflow_id"])


def test_controls_of_a_workflow_reach_those_within_it(engine: Stabilize) -> None:
    outer, inner = nested(engine)
    outer.pause()
    settle(engine)
    assert (outer.status, inner.status) == (S.PAUSED, S.PAUSED)
    outer.resume()
    settle(engine)
    assert (outer.status, inner.status) == (S.RUNNING, S.RUNNING)
    order(engine, PauseWorkflow(workflow_id=inner.id))
    assert inner.status is S.RUNNING
    outer.cancel()
    settle(engine)
    assert (outer.status, inner.status) == (S.CANCELED, S.CANCELED)


def test_a_workflow_goes_on_when_the_one_within_it_has_ended(engine: Stabilize) -> None:
    outer, inner = nested(engine)
    inner.signal("i", "go")
    settle(engine)
    assert (outer.status, inner.status) == (S.SUCCEEDED, S.SUCCEEDED)
