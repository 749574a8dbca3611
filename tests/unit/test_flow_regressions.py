"""Defects that were found once, each with the shortest way to it; messages are handled one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import update

from stabilize_celery import (
    FakeClock,
    Stabilize,
    StageDefinitionBuilder,
    StageExecution,
    SyntheticStageOwner,
    TaskExecution,
    TaskResult,
    Workflow,
    WorkflowRun,
)
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.dag.branches import recount
from stabilize_celery.dag.graph import StageGraphBuilder
from stabilize_celery.messages import CompleteWorkflow, StartWorkflow
from stabilize_celery.persistence import tables


@pytest.fixture(params=[True, False], ids=["inline", "no-inline"])
def engine(request: pytest.FixtureRequest) -> Iterator[Stabilize]:
    with engine_with(inline=request.param) as engine:
        yield engine


@pytest.fixture
def plain_engine() -> Iterator[Stabilize]:
    """Every message is one step."""
    with engine_with(inline=False) as engine:
        yield engine


def engine_with(*, inline: bool) -> Stabilize:
    engine = Stabilize.embedded("sqlite://", concurrency=1, clock=FakeClock(), inline=inline)
    engine.registry.register("hold", lambda stage: TaskResult.suspend())
    return engine


def workflow_of(*stages: StageExecution, **options: Any) -> Workflow:
    return Workflow.create("tests", "regression", stages, **options)


def one(ref: str, task: str = "noop", *requires: str, **context: Any) -> StageExecution:
    return StageExecution.single(ref, task, context, requires)


def statuses(run: WorkflowRun) -> dict[str, str]:
    return {s.name if s.is_synthetic else s.ref_id: str(s.status) for s in run.workflow().stages}


def limited(limit: int = 1, **more: Any) -> dict[str, Any]:
    return {"id": "line", "limitConcurrent": True, "maxConcurrentExecutions": limit, **more}


def holders(engine: Stabilize) -> int:
    with engine.store.database.begin() as connection:
        rows = connection.execute(tables.workflows.select()).all()
    return sum(row.holds_slot for row in rows)


def before_settling(engine: Stabilize, action: Callable[[], None]) -> None:
    """Do something between the claim of the next task and the recording of its outcome."""
    worker = engine.dispatcher.worker
    settle = worker.settle

    def late(*arguments: Any) -> bool:
        worker.settle = settle
        action()
        return settle(*arguments)

    worker.settle = late


def test_a_task_found_paused_is_not_parked_when_the_workflow_has_been_resumed_since(
    engine: Stabilize,
) -> None:
    """It would wait for a resume that had come already."""
    run = engine.start(workflow_of(one("a")))
    while not any(s.status is S.RUNNING for s in run.workflow().stages):
        engine.processor.step()
    run.pause()
    while run.status is not S.PAUSED:
        engine.publisher.ready.rotate(1)  # type: ignore[attr-defined]
        engine.processor.step()

    def resume() -> None:
        run.resume()
        while run.status is not S.RUNNING:
            engine.processor.step()

    before_settling(engine, resume)
    engine.processor.drain()
    assert run.status is S.SUCCEEDED


@pytest.mark.parametrize("verb", ["cancel_stage", "skip_stage"])
def test_a_first_stage_that_ends_before_the_workflow_starts_is_no_branch(
    engine: Stabilize, verb: str
) -> None:
    """The workflow waited for it for ever."""
    run = engine.start(workflow_of(one("a"), one("b"), one("c", "noop", "a")))
    run_of_start = engine.publisher.ready.popleft()  # type: ignore[attr-defined]
    getattr(run, verb)("a")
    engine.processor.step()
    engine.publisher.ready.append(run_of_start)  # type: ignore[attr-defined]
    engine.processor.drain()

    if verb == "cancel_stage":
        assert statuses(run) == {"a": "CANCELED", "b": "SUCCEEDED", "c": "NOT_STARTED"}
        assert run.status is S.CANCELED
    else:
        assert statuses(run) == {"a": "SKIPPED", "b": "SUCCEEDED", "c": "SUCCEEDED"}
        assert run.status is S.SUCCEEDED


def test_a_slot_is_given_to_a_workflow_and_not_to_a_message(plain_engine: Stabilize) -> None:
    """One that was let in, paused and resumed began without a slot when its first start was late."""
    engine = plain_engine
    first = engine.run(workflow_of(one("a", "hold"), config=limited()))
    second = engine.run(workflow_of(one("a", "hold"), config=limited()))
    assert second.status is S.BUFFERED
    first.cancel()
    while second.status is not S.NOT_STARTED:
        engine.processor.step()
    late = [row for row in engine.publisher.ready if row[1] == "StartWorkflow"]  # type: ignore[attr-defined]
    engine.publisher.ready.clear()  # type: ignore[attr-defined]
    second.pause()
    while second.status is not S.PAUSED:
        engine.processor.step()
    third = engine.start(workflow_of(one("a", "hold"), config=limited()))
    while third.status is not S.RUNNING:
        engine.processor.step()
    second.resume()
    engine.processor.step()
    engine.publisher.ready.extendleft(late)  # type: ignore[attr-defined]
    engine.dispatcher.send(StartWorkflow(workflow_id=second.id, pipeline_config_id="line"))
    engine.processor.drain()

    assert (second.status, third.status) == (S.BUFFERED, S.RUNNING)
    assert holders(engine) == 1


def test_a_waiting_execution_that_had_begun_is_sent_away_whole(engine: Stabilize) -> None:
    """Defect 27: its stages were left PAUSED when a newer one took its place."""
    config = limited(keepWaitingPipelines=False)
    old = engine.run(workflow_of(one("a", "hold"), one("b", "noop", "a"), config=config))
    old.pause()
    engine.processor.drain()
    running = engine.run(workflow_of(one("a", "hold"), config=config))
    old.resume()
    engine.processor.drain()
    assert old.status is S.BUFFERED
    newest = engine.run(workflow_of(one("a", "hold"), config=config))
    running.cancel()
    engine.processor.drain()

    assert (old.status, newest.status) == (S.CANCELED, S.RUNNING)
    assert statuses(old) == {"a": "CANCELED", "b": "CANCELED"}
    assert "newer execution" in (old.workflow().cancellation_reason or "")


def test_the_limit_of_an_older_execution_does_not_come_back(engine: Stabilize) -> None:
    """Of three executions the one started last came first; the newest one's limit is that of the first."""
    oldest, older, newest = (workflow_of(one("a", "hold"), config=limited(n)) for n in (1, 9, 1))
    runs = {}
    for each in (oldest, newest, older):
        runs[each.id] = engine.run(each)
    assert [str(runs[w.id].status) for w in (oldest, newest, older)] == ["RUNNING", "BUFFERED", "BUFFERED"]


def test_a_dead_letter_ends_a_paused_workflow(engine: Stabilize) -> None:
    """The table has no way from PAUSED to TERMINAL: the workflow stayed as it was, and so did the message."""
    run = engine.run(workflow_of(one("a", "hold")))
    run.pause()
    engine.processor.drain()
    engine.dispatcher.send(CompleteWorkflow(workflow_id=run.id))
    with engine.store.database.begin() as connection:
        connection.execute(update(tables.messages).values(payload={"halted": "perhaps"}))
    engine.processor.drain()

    assert run.status is S.TERMINAL
    assert statuses(run) == {"a": "CANCELED"}
    assert engine.store.count_messages() == 0


def test_a_moment_has_an_order(engine: Stabilize) -> None:
    """Histories of one moment were sorted by their place within their transactions."""
    run = engine.run(workflow_of(one("a"), one("b", "noop", "a"), one("c", "noop", "b")))
    known: dict[tuple[Any, Any], S] = {}
    for row in run.history():
        if row["to_status"] is not None:
            subject = (row["stage_id"], row["task_id"])
            assert row["from_status"] is known.get(subject, S.NOT_STARTED)
            known[subject] = row["to_status"]
    assert len({row["at"] for row in run.history()}) == 1
    assert set(known.values()) == {S.SUCCEEDED}


class Chain(StageDefinitionBuilder):
    """c1 fails and continues, c2 is chained to it, c3 stands beside them."""

    @property
    def type(self) -> str:
        return "chain"

    def build_tasks(self, stage: StageExecution) -> list[TaskExecution]:
        return [TaskExecution.create("t", "noop")]

    def before_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        def child(name: str, task: str, **context: Any) -> StageExecution:
            tasks = [TaskExecution.create(name, task)]
            return StageExecution.create_synthetic(
                "x", name, stage, SyntheticStageOwner.STAGE_BEFORE, context, tasks
            )

        first = graph.add(child("c1", "fail", continuePipelineOnFailure=True))
        graph.connect(first, child("c2", "noop"))
        graph.add(child("c3", "hold", continuePipelineOnFailure=True))


def test_a_stranded_stage_counts_once(engine: Stabilize) -> None:
    """Skipping it counted it a second time, and the parent went on while another one was still at work."""
    engine.register_builder(Chain())
    engine.registry.register("fail", lambda stage: TaskResult.terminal("boom"))
    run = engine.run(workflow_of(StageExecution.create("chain", "p", "p")))
    assert statuses(run) == {"p": "RUNNING", "c1": "FAILED_CONTINUE", "c2": "NOT_STARTED", "c3": "SUSPENDED"}
    run.skip_stage("c2")
    engine.processor.drain()

    assert statuses(run)["c3"] == "SUSPENDED"
    assert statuses(run)["p"] == "RUNNING"
    run.skip_stage("c3")
    engine.processor.drain()
    assert run.status is S.SUCCEEDED


def test_a_jump_in_vain_ends_its_task_as_a_failure(engine: Stabilize) -> None:
    engine.registry.register("leap", lambda stage: TaskResult.jump_to("nowhere"))
    run = engine.run(workflow_of(one("a", "leap")))
    (stage,) = run.workflow().stages
    assert [str(task.status) for task in stage.tasks] == ["TERMINAL"]


def test_skipping_a_stage_twice_and_restarting_it_forgets_the_wish(engine: Stabilize) -> None:
    """A wish to skip belongs to one pass."""
    run = engine.run(workflow_of(one("a", "hold"), one("b", "noop", "a")))
    run.skip_stage("b", user="kim")
    run.skip_stage("b", user="lee")
    engine.processor.drain()
    run.skip_stage("a")
    engine.processor.drain()
    assert statuses(run) == {"a": "SKIPPED", "b": "SKIPPED"}
    run.restart_stage("b")
    engine.processor.drain()
    assert statuses(run)["b"] == "SUCCEEDED"


def test_a_restarted_stage_runs_though_another_one_failed_as_well(plain_engine: Stabilize) -> None:
    """The other failure ended the workflow again before the restarted stage had run."""
    engine = plain_engine
    outcomes = {"a": [TaskResult.terminal("boom"), TaskResult.success()], "b": [TaskResult.terminal("bang")]}
    engine.registry.register("once", lambda stage: outcomes[stage.ref_id].pop(0))
    run = engine.run(workflow_of(one("a", "once"), one("b", "once"), one("c", "noop", "a")))
    assert statuses(run) == {"a": "TERMINAL", "b": "TERMINAL", "c": "NOT_STARTED"}
    run.restart_stage("a")
    engine.processor.drain()

    assert statuses(run) == {"a": "SUCCEEDED", "b": "TERMINAL", "c": "SUCCEEDED"}
    assert run.status is S.TERMINAL


def test_a_stage_that_can_never_start_still_counts_what_it_waits_for(engine: Stabilize) -> None:
    """Whoever counts anew, a restart or an audit, finds what was counted while things happened."""
    engine.registry.register("stop", lambda stage: TaskResult.stopped())
    run = engine.run(
        workflow_of(
            one("stopped", "stop"),
            one("first"),
            one("second", "noop", "first"),
            one("join", "noop", "stopped", "second"),
            one("held", "hold"),
        )
    )
    assert statuses(run) == {
        "stopped": "STOPPED",
        "first": "SUCCEEDED",
        "second": "SUCCEEDED",
        "join": "NOT_STARTED",
        "held": "SUSPENDED",
    }
    join = run.workflow().stage_by_ref_id("join")
    assert recount(run.workflow().top_level_stages()).arrivals[join.id] == (1, True)
    assert (join.open_upstreams, join.blocked) == (1, True)
