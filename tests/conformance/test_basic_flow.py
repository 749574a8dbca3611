"""The order of stages, joins, skipping: scenarios 1, 2, 16, 17, 19 to 21 and 23 of the behaviour contract."""

from __future__ import annotations

import pytest

from stabilize_celery import StageExecution, Workflow
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.errors import CircularDependencyError, InvalidStageGraphError
from tests.conformance.harness import ConformanceEngine, flow, stage


def test_stages_of_a_chain_run_in_order(engine: ConformanceEngine) -> None:
    """Scenario 1."""
    result = engine.run(flow(stage("a"), stage("b", after=["a"]), stage("c", after=["b"])))

    assert result.order() == ["a", "b", "c"]
    assert result.statuses() == {"a": "SUCCEEDED", "b": "SUCCEEDED", "c": "SUCCEEDED"}
    assert result.status is S.SUCCEEDED


def test_a_join_runs_once_after_all_its_branches(engine: ConformanceEngine) -> None:
    """Scenario 2."""
    result = engine.run(
        flow(stage("a"), stage("b", after=["a"]), stage("c", after=["a"]), stage("d", after=["b", "c"]))
    )

    assert result.order()[0] == "a"
    assert sorted(result.order()[1:3]) == ["b", "c"]
    assert result.order()[3:] == ["d"]
    assert result.status is S.SUCCEEDED


def test_a_join_waits_for_its_slowest_branch(engine: ConformanceEngine) -> None:
    """Scenario 2, with the branches ending one by one."""
    gate = engine.gate()
    run = engine.start(
        flow(
            stage("fast"),
            stage("slow", "script", do=[{"wait_file": gate.path}]),
            stage("join", after=["fast", "slow"]),
        )
    )
    engine.wait_event(run, "slow")
    waiting = engine.wait_status(run, "fast", "SUCCEEDED")
    assert waiting.statuses()["join"] == "NOT_STARTED"

    gate.open()
    result = engine.settle(run)

    assert result.order()[-1] == "join"
    assert result.executions("join") == 1
    assert result.status is S.SUCCEEDED


def test_tasks_of_a_stage_run_in_list_order(engine: ConformanceEngine) -> None:
    """Scenario 1, within a stage: the order is that of the list, whatever the ids are."""
    made = stage("a", tasks={"first": "ok", "second": "ok", "third": "ok"})
    made.tasks.reverse()

    result = engine.run(flow(made))

    assert [event["task"] for event in result.events("start")] == ["third", "second", "first"]
    assert result.status is S.SUCCEEDED


@pytest.mark.parametrize(
    ("given", "outputs"), [(None, {}), ({}, {}), ({"n": 3}, {"n": 3})], ids=["none", "empty", "outputs"]
)
def test_a_function_gives_its_outputs_or_nothing(
    engine: ConformanceEngine, given: dict[str, int] | None, outputs: dict[str, int]
) -> None:
    """Scenario 1, with a function as the task."""
    result = engine.run(flow(stage("a", "function", give=given)))

    assert result.stage("a").outputs == outputs
    assert result.status is S.SUCCEEDED


def test_a_disabled_stage_is_skipped_and_what_follows_runs(engine: ConformanceEngine) -> None:
    """Scenario 16."""
    result = engine.run(flow(stage("a", stageEnabled=False), stage("b", after=["a"])))

    assert result.statuses() == {"a": "SKIPPED", "b": "SUCCEEDED"}
    assert result.order() == ["b"]
    assert result.status is S.SUCCEEDED


@pytest.mark.parametrize(
    ("expression", "status"),
    [
        ("a.n > 5", "SKIPPED"),
        ("n > 5", "SKIPPED"),
        ("a.n > 2", "SUCCEEDED"),
        ("n > 2", "SUCCEEDED"),
        ("limit > n", "SUCCEEDED"),
        ("missing", "SKIPPED"),
    ],
)
def test_a_condition_is_evaluated_on_what_the_stage_sees(
    engine: ConformanceEngine, expression: str, status: str
) -> None:
    """Scenario 17."""
    condition = {"type": "expression", "expression": expression}
    result = engine.run(
        flow(
            stage("a", outputs={"n": 3}),
            stage("b", after=["a"], limit=4, stageEnabled=condition),
            stage("c", after=["b"]),
        )
    )

    assert result.statuses() == {"a": "SUCCEEDED", "b": status, "c": "SUCCEEDED"}
    assert result.executions("b") == (status == "SUCCEEDED")


def test_a_condition_that_fails_is_false_and_says_so(engine: ConformanceEngine) -> None:
    """Scenario 17 and decision 6: comparing nothing with a number."""
    condition = {"type": "expression", "expression": "missing > 5"}
    result = engine.run(flow(stage("a", stageEnabled=condition), stage("b", after=["a"])))

    assert result.statuses() == {"a": "SKIPPED", "b": "SUCCEEDED"}
    assert "missing > 5" in str(result.stage("a").context) + str(result.run.history())


def test_a_stage_without_tasks_succeeds(engine: ConformanceEngine) -> None:
    """Scenario 19."""
    result = engine.run(flow(stage("a", None, type="never heard of"), stage("b", after=["a"])))

    assert result.statuses() == {"a": "SUCCEEDED", "b": "SUCCEEDED"}
    assert result.order() == ["b"]


def test_a_stage_that_is_skipped_by_hand_succeeds_without_running(engine: ConformanceEngine) -> None:
    """Scenario 23."""
    result = engine.run(flow(stage("a", tasks=["ok", "ok"], manualSkip=True), stage("b", after=["a"])))

    assert result.tasks("a") == ["SKIPPED", "SKIPPED"]
    assert result.statuses() == {"a": "SUCCEEDED", "b": "SUCCEEDED"}
    assert result.order() == ["b"]


@pytest.mark.parametrize(
    ("stages", "error", "starts"),
    [
        ([], InvalidStageGraphError, "no_stages"),
        ([stage("a"), stage("a")], InvalidStageGraphError, "duplicate_ref"),
        ([stage("a", after=["a"])], InvalidStageGraphError, "self_edge"),
        ([stage("a", after=["z"])], InvalidStageGraphError, "unknown_ref"),
        ([stage("a", after=["b"]), stage("b", after=["a"])], CircularDependencyError, ""),
    ],
)
def test_a_bad_graph_is_refused_when_it_is_made(
    stages: list[StageExecution], error: type[Exception], starts: str
) -> None:
    """Scenarios 20 and 21."""
    with pytest.raises(error) as refused:
        Workflow.create("conformance", "bad", stages)

    assert str(refused.value).startswith(starts)
