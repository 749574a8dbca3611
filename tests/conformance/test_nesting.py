"""Stages that run other stages or workflows: ``map`` and ``sub_workflow``."""

from __future__ import annotations

from typing import Any

from stabilize_celery import StageExecution, WorkflowRun
from stabilize_celery import WorkflowStatus as S
from tests.conformance.harness import ConformanceEngine, Result, flow, stage

INNER_ASKS: dict[str, Any] = {"name": "inner", "stages": [{"ref": "ask", "type": "approval"}]}
INNER_COUNTS: dict[str, Any] = {
    "name": "inner",
    "stages": [
        {"ref": "x", "type": "python", "context": {"script": "RESULT = 20"}},
        {
            "ref": "y",
            "type": "python",
            "requires": ["x"],
            "context": {"script": "RESULT = INPUT['result'] + 1"},
        },
    ],
}
SQUARE = {"type": "python", "context": {"script": "RESULT = INPUT['item'] ** 2"}}


def finish(engine: ConformanceEngine, *stages: StageExecution) -> Result:
    """Run to the end: while a sub-workflow works, nothing of the outer one is in flight."""
    return engine.wait_final(engine.start(flow(*stages)))


def inner_of(engine: ConformanceEngine, run: WorkflowRun) -> WorkflowRun:
    """The sub-workflow that a stage of the run waits for."""
    engine.wait_status(run, "outer", "SUSPENDED")
    return engine.stabilize.get(engine.result(run).stage("outer").context["_sub_workflow_id"])


def test_a_map_runs_one_stage_per_item_and_keeps_their_order(engine: ConformanceEngine) -> None:
    make = stage("make", "python", context={"script": "RESULT = [3, 1, 2]"})
    squares = stage(
        "squares", "map", after=["make"], type="map", context={"items": "result", "stage": SQUARE, "limit": 2}
    )
    result = engine.run(flow(make, squares, stage("after", "see", after=["squares"])))

    assert result.status is S.SUCCEEDED
    assert [each["result"] for each in result.stage("squares").outputs["results"]] == [9, 1, 4]
    assert [each["result"] for each in result.seen("after")["results"]] == [9, 1, 4]


def test_a_map_of_a_wide_list(engine: ConformanceEngine) -> None:
    result = engine.run(
        flow(
            stage(
                "m",
                "map",
                type="map",
                context={"items": list(range(60)), "stage": {"type": "noop"}, "limit": 25},
            )
        ),
        timeout=60,
    )

    assert result.status is S.SUCCEEDED
    assert result.stage("m").outputs["results"] == [{}] * 60


def test_a_failed_item_can_be_left_out(engine: ConformanceEngine) -> None:
    halve = {"type": "python", "context": {"script": "RESULT = 4 // INPUT['item']"}}
    options = {"items": [2, 0, 4], "stage": halve, "on_failure": "continue"}
    result = engine.run(flow(stage("m", "map", type="map", context=options)))

    outputs = result.stage("m").outputs
    assert [each and each["result"] for each in outputs["results"]] == [2, None, 1]
    assert outputs["failed"] == [1]


def test_a_failed_item_fails_the_stage(engine: ConformanceEngine) -> None:
    halve = {"type": "python", "context": {"script": "RESULT = 4 // INPUT['item']"}}
    result = engine.run(
        flow(stage("m", "map", type="map", context={"items": [0, 2], "stage": halve, "limit": 1}))
    )

    assert result.status is S.TERMINAL
    assert result.stage("m").tasks[0].status is S.NOT_STARTED


def test_a_sub_workflow_gives_its_outputs(engine: ConformanceEngine) -> None:
    outer = stage("outer", "sub_workflow", context={"workflow": INNER_COUNTS})
    result = finish(engine, outer, stage("after", "see", after=["outer"]))

    assert result.status is S.SUCCEEDED
    assert result.seen("after")["sub_workflow_status"] == "SUCCEEDED"
    assert result.seen("after")["sub_workflow_outputs"]["result"] == 21


def test_a_failed_sub_workflow_fails_its_stage(engine: ConformanceEngine) -> None:
    inner = {"stages": [{"ref": "x", "type": "shell", "context": {"command": "exit 3"}}]}
    result = finish(engine, stage("outer", "sub_workflow", context={"workflow": inner}))

    assert result.status is S.TERMINAL
    assert "exited with code 3" in result.stage("outer").context["error"]


def test_an_approval_within_a_sub_workflow(engine: ConformanceEngine) -> None:
    run = engine.start(
        flow(stage("outer", "sub_workflow", context={"workflow": INNER_ASKS}), stage("b", after=["outer"]))
    )
    inner = inner_of(engine, run)
    engine.wait_status(inner, "ask", "SUSPENDED")
    inner.approve("ask", user="kim")

    assert engine.wait_final(run).status is S.SUCCEEDED


def test_canceling_reaches_the_sub_workflow(engine: ConformanceEngine) -> None:
    run = engine.start(flow(stage("outer", "sub_workflow", context={"workflow": INNER_ASKS})))
    inner = inner_of(engine, run)
    run.cancel(user="kim")

    assert engine.wait_final(run).status is S.CANCELED
    assert engine.wait_final(inner).status is S.CANCELED


def test_pausing_and_resuming_reach_the_sub_workflow(engine: ConformanceEngine) -> None:
    run = engine.start(flow(stage("outer", "sub_workflow", context={"workflow": INNER_ASKS})))
    inner = inner_of(engine, run)
    engine.wait_status(inner, "ask", "SUSPENDED")
    run.pause(user="kim")
    engine.wait_until(lambda: inner.status is S.PAUSED, 30)
    run.resume(user="kim")
    engine.wait_until(lambda: inner.status is S.RUNNING, 30)
    inner.approve("ask", user="kim")

    assert engine.wait_final(run).status is S.SUCCEEDED


def test_a_restart_starts_another_sub_workflow(engine: ConformanceEngine) -> None:
    run = engine.start(flow(stage("outer", "sub_workflow", context={"workflow": INNER_COUNTS})))
    engine.wait_final(run)
    first = engine.result(run).stage("outer").outputs["sub_workflow_id"]
    run.restart_stage("outer", user="kim")
    engine.wait_until(lambda: engine.result(run).stage("outer").generation == 1, 30)

    result = engine.wait_final(run)
    assert result.status is S.SUCCEEDED
    assert result.stage("outer").outputs["sub_workflow_id"] != first
