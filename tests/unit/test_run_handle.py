"""The handle on a run: what get() waits for and gives, and how its verbs are called."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from stabilize_celery import (
    FakeClock,
    QueueProcessor,
    SqliteQueue,
    Stabilize,
    StageDefinitionBuilder,
    StageExecution,
    SyntheticStageOwner,
    TaskExecution,
    TaskResult,
    Workflow,
    WorkflowRun,
    WorkflowStatus,
    WorkflowTimeoutError,
)
from stabilize_celery.dag.graph import StageGraphBuilder
from stabilize_celery.errors import RecoveryError

single = StageExecution.single
#: What a verb acts on, which may be given by position.
ACTED_ON = {"self", "workflow_id", "ref_id", "name", "data"}
VERBS = [
    "cancel",
    "cancel_stage",
    "pause",
    "resume",
    "restart_stage",
    "skip_stage",
    "signal",
    "approve",
    "reject",
]


@pytest.fixture
def engine() -> Iterator[Stabilize]:
    with Stabilize.embedded() as engine:
        yield engine


def flow(*stages: StageExecution) -> Workflow:
    return Workflow.create("test", "handle", list(stages))


@pytest.mark.parametrize("concurrency", [1, 4])
def test_get_works_in_an_embedded_engine(concurrency: int) -> None:
    with Stabilize.embedded(concurrency=concurrency) as engine:
        engine.task("give")(lambda stage: {"n": 3})
        run = engine.start(flow(single("a", "give"), single("b", "noop", requires={"a"})))
        assert run.status is WorkflowStatus.NOT_STARTED, "asking for the status drives nothing"
        assert not run.ready()
        assert run.get() == {"n": 3}


def test_get_goes_on_after_an_approval(engine: Stabilize) -> None:
    run = engine.start(flow(single("ask", "approval")))
    engine.processor.drain()
    with pytest.raises(WorkflowTimeoutError):
        run.get(timeout=0)
    assert run.workflow().stages[0].status is WorkflowStatus.SUSPENDED
    run.approve("ask", user="kim")
    assert run.get()["approved_by"] == "kim"


def test_get_waits_for_what_another_thread_does(engine: Stabilize) -> None:
    run = engine.start(flow(single("ask", "approval")))
    waiting = threading.Event()

    def approve() -> None:
        waiting.wait(30)
        run.approve("ask", user="lee")

    thread = threading.Thread(target=approve)
    thread.start()
    engine.processor.drain()
    waiting.set()
    assert run.get(timeout=60)["approved_by"] == "lee"
    thread.join()


def test_get_of_a_task_within_another_task() -> None:
    with Stabilize.embedded(concurrency=1) as engine:
        engine.task("give")(lambda stage: {"n": 3})

        @engine.task("outer")
        def outer(stage: StageExecution) -> dict[str, Any]:
            return {"inner": engine.start(flow(single("a", "give"))).get(timeout=60)}

        assert engine.start(flow(single("o", "outer"))).get(timeout=60) == {"inner": {"n": 3}}


def test_get_moves_a_clock_that_stands_still() -> None:
    with Stabilize.embedded(clock=FakeClock()) as engine:
        run = engine.start(flow(single("w", "wait", {"seconds": 86400})))
        assert run.get(timeout=60) == {"waitedSeconds": 86400}


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), "3", True])
def test_a_timeout_that_is_none(engine: Stabilize, timeout: Any) -> None:
    run = engine.start(flow(single("ask", "approval")))
    with pytest.raises((TypeError, ValueError), match="timeout is a number of seconds"):
        run.get(timeout=timeout)
    with pytest.raises(WorkflowTimeoutError):
        run.get(timeout=-1)


ODD = pytest.mark.parametrize(
    "odd", [float("nan"), float("inf"), -1, -0.5, "3", True, timedelta(seconds=3)], ids=repr
)


@ODD
@pytest.mark.parametrize("method", ["drain", "run", "audit", "step on", "stop"])
def test_a_time_that_is_none_is_refused_where_it_is_given(engine: Stabilize, method: str, odd: Any) -> None:
    given: dict[str, Callable[[], Any]] = {
        "drain": lambda: engine.processor.drain(odd),
        "run": lambda: engine.run(flow(single("a", "noop")), odd),
        "audit": lambda: engine.audit(overdue=odd),
        "step on": lambda: FakeClock().advance(odd),
        "stop": lambda: QueueProcessor(SqliteQueue("sqlite://")).stop(timeout=odd),
    }
    names = {"audit": "overdue", "step on": "the time to advance by"}
    with pytest.raises(
        (TypeError, ValueError), match=f"{names.get(method, 'timeout')} is a number of seconds"
    ):
        given[method]()
    assert not engine.find(), "it was started"


@pytest.mark.parametrize("odd", [5, 0.5, "30d", None, timedelta.max, timedelta(days=-1)], ids=repr)
def test_an_age_that_is_none_is_refused(engine: Stabilize, odd: Any) -> None:
    with pytest.raises(RecoveryError, match=r"older_than|say how old"):
        engine.prune(odd)


@pytest.mark.parametrize("odd", [0, -1, 1.5, float("nan"), "many", True], ids=repr)
def test_a_batch_that_is_none_is_refused(engine: Stabilize, odd: Any) -> None:
    with pytest.raises(RecoveryError, match="batch has at least one workflow, a whole number"):
        engine.prune(timedelta(days=1), batch=odd)


class Before(StageDefinitionBuilder):
    type = "with_before"

    def before_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        task = TaskExecution.create("look", "look")
        graph.add(
            StageExecution.create_synthetic(
                "plain", "look", stage, SyntheticStageOwner.STAGE_BEFORE, tasks=[task]
            )
        )


def test_get_gives_no_outputs_of_synthetic_stages(engine: Stabilize) -> None:
    engine.register_builder(Before())
    engine.task("look")(lambda stage: {"found": 1, "secretly": 2})
    engine.task("take")(lambda stage: TaskResult.success(outputs={"took": stage.context["found"]}))
    stage = single("a", "take")
    stage.type = "with_before"
    assert engine.run(flow(stage)).get() == {"took": 1}


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_take_by_position_only_what_they_act_on(verb: str) -> None:
    parameters = inspect.signature(getattr(WorkflowRun, verb)).parameters.values()
    by_position = {p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY}
    assert by_position <= (ACTED_ON if verb == "signal" else ACTED_ON - {"name", "data"})


def test_a_reason_is_not_taken_for_a_user(engine: Stabilize) -> None:
    run = engine.start(flow(single("ask", "approval")))
    with pytest.raises(TypeError):
        run.cancel("out of stock")  # type: ignore[misc]
    run.cancel(reason="out of stock")
    engine.processor.drain()
    assert run.workflow().cancellation_reason == "out of stock"


def test_models_show_themselves_in_a_line() -> None:
    stages = [single(str(n), "noop", {"big": "x" * 10_000}) for n in range(500)]
    workflow = flow(*stages)
    assert repr(workflow) == f"<Workflow handle {workflow.id} NOT_STARTED, 500 stages>"
    assert repr(stages[0]) == "<StageExecution 0 (noop) NOT_STARTED>"
    assert repr(stages[0].tasks[0]) == "<TaskExecution 0 (noop) NOT_STARTED>"
