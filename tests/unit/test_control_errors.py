"""What makes no sense is refused at the call; what becomes senseless later leaves a reason; nothing is half done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from stabilize_celery import (
    FakeClock,
    Stabilize,
    StageDefinitionBuilder,
    StageExecution,
    SyntheticStageOwner,
    TaskExecution,
    TaskResult,
    Workflow,
    WorkflowNotFoundError,
    WorkflowRun,
)
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.dag.graph import StageGraphBuilder
from stabilize_celery.errors import InvalidWorkflowError, StageNotFoundError, WorkflowStateError
from stabilize_celery.messages import (
    CancelStage,
    CancelWorkflow,
    Message,
    PauseWorkflow,
    RestartStage,
    ResumeWorkflow,
    SignalStage,
    SkipStage,
)


@pytest.fixture
def engine() -> Iterator[Stabilize]:
    with Stabilize.embedded("sqlite://", concurrency=1, clock=FakeClock()) as engine:
        engine.registry.register("hold", lambda stage: TaskResult.suspend())
        yield engine


def hold(ref: str, *requires: str, **context: Any) -> StageExecution:
    return StageExecution.single(ref, "hold", context, requires)


def done(ref: str, *requires: str) -> StageExecution:
    return StageExecution.single(ref, "noop", requires=requires)


def run_of(engine: Stabilize, *stages: StageExecution, **options: Any) -> WorkflowRun:
    return engine.run(Workflow.create("tests", "control", stages, **options))


def state_of(engine: Stabilize, run: WorkflowRun) -> Any:
    workflow = run.workflow()
    stages = [(s.ref_id, s.status, s.generation, s.context, s.outputs) for s in workflow.stages]
    return workflow.status, stages, engine.store.count_messages(), len(run.history())


def refuses(engine: Stabilize, run: WorkflowRun, error: type[Exception], match: str, call: Any) -> None:
    before = state_of(engine, run)
    with pytest.raises(error, match=match):
        call()
    assert state_of(engine, run) == before
    assert engine.processor.drain() == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda run: run.cancel(),
        lambda run: run.pause(),
        lambda run: run.resume(),
        lambda run: run.cancel_stage("a"),
        lambda run: run.skip_stage("a"),
        lambda run: run.restart_stage("a"),
        lambda run: run.signal("a", "go"),
        lambda run: run.approve("a"),
        lambda run: run.reject("a"),
    ],
)
def test_there_is_no_such_workflow(engine: Stabilize, call: Any) -> None:
    with pytest.raises(WorkflowNotFoundError, match="01ABC"):
        call(WorkflowRun(engine, "01ABC"))
    assert engine.store.count_messages() == 0


STAGE_CALLS = {
    "cancel_stage": lambda run, ref: run.cancel_stage(ref),
    "skip_stage": lambda run, ref: run.skip_stage(ref),
    "restart_stage": lambda run, ref: run.restart_stage(ref),
    "signal": lambda run, ref: run.signal(ref, "go"),
    "approve": lambda run, ref: run.approve(ref),
    "reject": lambda run, ref: run.reject(ref),
}


@pytest.mark.parametrize("verb", STAGE_CALLS)
def test_there_is_no_such_stage(engine: Stabilize, verb: str) -> None:
    run = run_of(engine, hold("build"))
    refuses(engine, run, StageNotFoundError, "bild.*did you mean", lambda: STAGE_CALLS[verb](run, "bild"))


@pytest.mark.parametrize("verb", sorted(STAGE_CALLS.keys() - {"restart_stage"}))
def test_the_stage_has_ended(engine: Stabilize, verb: str) -> None:
    run = run_of(engine, done("a"), hold("b"))
    refuses(
        engine, run, WorkflowStateError, "stage a: it ended SUCCEEDED", lambda: STAGE_CALLS[verb](run, "a")
    )


@pytest.mark.parametrize("verb", ["cancel", "pause", "resume", "cancel_stage", "skip_stage", "signal"])
def test_the_workflow_has_ended(engine: Stabilize, verb: str) -> None:
    run = run_of(engine, StageExecution.single("a", "shell", {"command": ""}), done("b", "a"))
    assert run.status is S.TERMINAL
    call = STAGE_CALLS.get(verb)
    refuses(
        engine,
        run,
        WorkflowStateError,
        "it ended TERMINAL",
        lambda: call(run, "b") if call else getattr(run, verb)(),
    )


def test_only_a_paused_workflow_is_resumed(engine: Stabilize) -> None:
    run = run_of(engine, hold("a"))
    refuses(engine, run, WorkflowStateError, "RUNNING, not PAUSED", run.resume)


def test_a_workflow_is_paused_once(engine: Stabilize) -> None:
    run = run_of(engine, hold("a"))
    run.pause()
    engine.processor.drain()
    refuses(engine, run, WorkflowStateError, "paused already", run.pause)


@pytest.mark.parametrize("ref", ["a", "b"])
def test_only_a_stage_that_has_ended_is_restarted(engine: Stabilize, ref: str) -> None:
    run = run_of(engine, hold("a"), done("b", "a"))
    refuses(engine, run, WorkflowStateError, "only a stage that has ended", lambda: run.restart_stage(ref))


def test_a_canceled_workflow_is_not_restarted(engine: Stabilize) -> None:
    run = run_of(engine, done("a"), hold("b"))
    run.cancel()
    engine.processor.drain()
    refuses(engine, run, WorkflowStateError, "was canceled", lambda: run.restart_stage("a"))


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("", {}, "needs a name"),
        ("go", {"when": object()}, "when"),
        ("go", {"n": float("nan")}, "n"),
        ("go", [1], "must be a mapping"),
        ("go", "text", "must be a mapping"),
        (5, {}, "signal_name must be str"),
        ("a\x00b", {}, "SignalStage"),
    ],
)
def test_signals_that_cannot_be_stored(engine: Stabilize, name: Any, data: Any, match: str) -> None:
    run = run_of(engine, hold("a"))
    refuses(engine, run, InvalidWorkflowError, match, lambda: run.signal("a", name, data))


@pytest.mark.parametrize("user", [5, b"kim", object(), "k\x00m"])
@pytest.mark.parametrize("verb", ["cancel", "pause", "cancel_stage", "skip_stage", "signal", "approve"])
def test_users_that_cannot_be_stored(engine: Stabilize, verb: str, user: Any) -> None:
    """Found only when the message is handled, it would be a dead letter, and take the workflow with it."""
    run = run_of(engine, hold("a"))
    calls = {
        "cancel": lambda: run.cancel(user=user),
        "pause": lambda: run.pause(user=user),
        "cancel_stage": lambda: run.cancel_stage("a", user=user),
        "skip_stage": lambda: run.skip_stage("a", user=user),
        "signal": lambda: run.signal("a", "go", user=user),
        "approve": lambda: run.approve("a", user=user),
    }
    refuses(engine, run, InvalidWorkflowError, "user", calls[verb])


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"limitConcurrent": True, "maxConcurrentExecutions": -1}, "maxConcurrentExecutions"),
        ({"limitConcurrent": True, "maxConcurrentExecutions": 1.5}, "maxConcurrentExecutions"),
        ({"limitConcurrent": True, "maxConcurrentExecutions": True}, "maxConcurrentExecutions"),
        ({"limitConcurrent": "yes"}, "limitConcurrent"),
        ({"limitConcurrent": True, "keepWaitingPipelines": 1}, "keepWaitingPipelines"),
    ],
)
def test_limits_that_make_no_sense(config: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidWorkflowError, match=match):
        Workflow.create("tests", "limits", [done("a")], config=config)


@pytest.mark.parametrize("jumps", [-1, 1.5, "3", True])
def test_jump_limits_that_make_no_sense(jumps: Any) -> None:
    with pytest.raises(InvalidWorkflowError, match="_max_jumps"):
        Workflow.create("tests", "jumps", [done("a")], context={"_max_jumps": jumps})


# --------------------------------------------------------------------------------------- what comes too late


def late(engine: Stabilize, run: WorkflowRun, message: Message) -> list[dict[str, Any]]:
    """Handle a message that was fine when it was sent; returns what it left in the history."""
    before = len(run.history())
    engine.dispatcher.send(message)
    engine.processor.drain()
    assert engine.store.count_messages() == 0
    return run.history()[before:]


def ids(run: WorkflowRun, ref: str) -> dict[str, Any]:
    stage = run.workflow().stage_by_ref_id(ref)
    assert stage is not None
    return {"workflow_id": run.id, "stage_id": stage.id, "generation": stage.generation}


def test_what_was_overtaken_is_recorded_and_changes_nothing(engine: Stabilize) -> None:
    run = run_of(engine, done("a"), hold("b"))
    workflow, ended, active = {"workflow_id": run.id}, ids(run, "a"), ids(run, "b")
    before = state_of(engine, run)[:2]
    messages: list[tuple[Message, str]] = [
        (ResumeWorkflow(**workflow, user="kim"), "ResumeWorkflow: the workflow is RUNNING"),
        (CancelStage(**ended, user="kim"), "CancelStage: the stage is SUCCEEDED"),
        (SkipStage(**ended, user="kim"), "SkipStage: the stage is SUCCEEDED"),
        (RestartStage(**active, user="kim"), "RestartStage: the stage is SUSPENDED"),
        (SignalStage(**ended, signal_name="go", user="kim"), "signal go lost: the stage is SUCCEEDED"),
        (
            SignalStage(**{**active, "generation": 7}, signal_name="go", user="kim"),
            "SignalStage: it belongs to an older generation of the stage",
        ),
    ]
    for message, reason in messages:
        (told,) = late(engine, run, message)
        assert (told["reason"], told["actor"]) == (reason, "kim")
        assert state_of(engine, run)[:2] == before


def test_what_comes_after_the_end_is_recorded(engine: Stabilize) -> None:
    run = run_of(engine, done("a"))
    for message in (
        CancelWorkflow(workflow_id=run.id, user="kim"),
        PauseWorkflow(workflow_id=run.id, user="kim"),
        ResumeWorkflow(workflow_id=run.id, user="kim"),
    ):
        (told,) = late(engine, run, message)
        assert told["event"] == "refused"
        assert told["reason"] == f"{message.type}: the workflow is SUCCEEDED"
    assert run.status is S.SUCCEEDED
    assert not run.workflow().is_canceled


def test_messages_about_nothing(engine: Stabilize) -> None:
    """Unknown workflows and stages, and a stage of another workflow: logged, without effect."""
    run, other = run_of(engine, hold("a")), run_of(engine, hold("a"))
    before = state_of(engine, run), state_of(engine, other)
    nobody = {"workflow_id": "0" * 26}
    foreign = {**ids(other, "a"), "workflow_id": run.id}
    for message in (
        CancelWorkflow(**nobody),
        PauseWorkflow(**nobody),
        ResumeWorkflow(**nobody),
        CancelStage(**{**ids(run, "a"), "stage_id": "0" * 26}),
        CancelStage(**foreign),
        RestartStage(**foreign),
        SignalStage(**foreign, signal_name="go"),
        SkipStage(**foreign, user="kim"),
    ):
        engine.dispatcher.send(message)
        engine.processor.drain()
    assert (state_of(engine, run), state_of(engine, other)) == before


# -------------------------------------------------------------------------------------------------- builders


class Foreign(StageDefinitionBuilder):
    """Plans what the test says."""

    def __init__(self, plan: Any, tasks: Any = None) -> None:
        self._plan = plan
        self._tasks = tasks

    @property
    def type(self) -> str:
        return "foreign"

    def build_tasks(self, stage: StageExecution) -> list[TaskExecution]:
        return self._tasks() if self._tasks else [TaskExecution.create("t", "noop")]

    def before_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        self._plan(stage, graph)


def synthetic(parent: StageExecution, **values: Any) -> StageExecution:
    return StageExecution.create_synthetic(
        "x",
        "s",
        parent,
        SyntheticStageOwner.STAGE_BEFORE,
        tasks=[TaskExecution.create("t", "noop")],
        **values,
    )


def a_foreign_stage(stage: StageExecution, graph: StageGraphBuilder) -> None:
    graph.add(StageExecution.single("elsewhere", "noop"))


def a_stage_of_another_parent(stage: StageExecution, graph: StageGraphBuilder) -> None:
    graph.add(synthetic(StageExecution.single("other", "noop")))


def a_circle(stage: StageExecution, graph: StageGraphBuilder) -> None:
    one, two = synthetic(stage), synthetic(stage)
    graph.connect(one, two)
    graph.connect(two, one)


def an_unknown_requirement(stage: StageExecution, graph: StageGraphBuilder) -> None:
    graph.add(synthetic(stage, requisite_stage_ref_ids=["nothing"]))


def itself(stage: StageExecution, graph: StageGraphBuilder) -> None:
    one = synthetic(stage)
    graph.connect(one, one)


def no_json(stage: StageExecution, graph: StageGraphBuilder) -> None:
    graph.add(synthetic(stage, context={"handle": object()}))


def a_name_in_use(stage: StageExecution, graph: StageGraphBuilder) -> None:
    one = synthetic(stage)
    one.ref_id = "p"
    graph.add(one)


def no_stage(stage: StageExecution, graph: StageGraphBuilder) -> None:
    graph.add("s")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        (a_foreign_stage, "foreign_stage"),
        (a_stage_of_another_parent, "foreign_stage"),
        (a_circle, "wait for each other"),
        (an_unknown_requirement, "unknown_ref"),
        (itself, "self_edge"),
        (no_json, "handle"),
        (a_name_in_use, "p"),
        (no_stage, "str"),
    ],
)
def test_synthetic_stages_that_make_no_sense(engine: Stabilize, plan: Any, error: str) -> None:
    """A recorded reason on the stage, its policy applied, and nothing of the plan stored."""
    engine.register_builder(Foreign(plan))
    run = run_of(engine, StageExecution.create("foreign", "p", "p"), done("q", "p"))

    stage, following = run.workflow().stages
    assert stage.status is S.TERMINAL
    assert stage.context["beforeStagePlanningFailed"] is True
    assert error in stage.context["error"]
    assert "traceback" in stage.context["exception"]["details"]
    assert following.status is S.NOT_STARTED
    assert run.status is S.TERMINAL
    assert engine.store.count_messages() == 0


@pytest.mark.parametrize("tasks", [lambda: 1 / 0, lambda: None, lambda: ["shell"], lambda: 7])
def test_tasks_that_make_no_sense(engine: Stabilize, tasks: Any) -> None:
    engine.register_builder(Foreign(lambda stage, graph: None, tasks))
    run = run_of(engine, StageExecution.create("foreign", "p", "p"))

    (stage,) = run.workflow().stages
    assert stage.status is S.TERMINAL
    assert stage.context["error"]
    assert run.status is S.TERMINAL
