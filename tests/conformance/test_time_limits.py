"""Time limits of stages and suspensions: kept while nothing runs, and not counted while the workflow is paused."""

from __future__ import annotations

from typing import Any

import pytest

from stabilize_celery import StageExecution
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.persistence import tables
from tests.conformance.harness import ConformanceEngine, flow, stage

OK = {"return": "success"}
LONG = 60.0
INNER = {"stages": [{"ref": "ask", "type": "approval"}]}
MAPPED = {"type": "wait", "context": {"seconds": LONG}}
#: Stages that would take a minute, or for ever.
IDLE: dict[str, dict[str, Any]] = {
    "retry": {"task": "script", "do": [{"raise": "TransientError", "retry_after": LONG}]},
    "poll": {"task": "script", "do": [{"return": "running", "after": LONG}]},
    "suspension": {"task": "script", "do": [{"return": "suspend"}]},
    "approval": {"task": "approval", "timeout": LONG},
    "wait": {"task": "wait", "seconds": LONG},
    "sub-workflow": {"task": "sub_workflow", "workflow": INNER},
    "map": {"task": None, "type": "map", "context": {"items": [1, 2, 3], "stage": MAPPED, "limit": 2}},
    "before-stage": {
        "plan": {"before": [{"name": "s", "task": "approval"}, {"name": "t", "requires": ["s"]}]}
    },
    "after-stage": {"plan": {"after": [{"name": "s", "task": "approval"}]}},
}


def limited(kind: str, **more: Any) -> StageExecution:
    own = {**IDLE[kind], **more}
    return stage("a", own.pop("task", "ok"), context={"stageTimeoutMs": 400, **own.pop("context", {})}, **own)


def timers_of(engine: ConformanceEngine, workflow_id: str) -> list[str]:
    with engine.stabilize.store.database.autocommit() as connection:
        rows = connection.execute(
            tables.messages.select().where(tables.messages.c.workflow_id == workflow_id)
        ).all()
    return [row.type for row in rows if row.type.startswith("Expire")]


@pytest.mark.parametrize("kind", IDLE)
def test_a_stage_ends_when_its_time_is_over_though_nothing_runs(engine: ConformanceEngine, kind: str) -> None:
    run = engine.start(flow(limited(kind), stage("b", after=["a"])))
    result = engine.wait_final(run)

    assert result.status is S.TERMINAL
    assert result.stage("a").status is S.TERMINAL
    assert "stageTimeoutMs" in result.error("a")
    assert result.stage("b").status is S.NOT_STARTED
    assert not [
        ref for ref, status in result.statuses().items() if status in ("RUNNING", "SUSPENDED", "PAUSED")
    ]
    inner = engine.stabilize.find(name="sub-workflow") if kind == "sub-workflow" else ()
    for sub in inner:
        engine.wait_until(engine.stabilize.get(sub.id).ready)


@pytest.mark.parametrize(
    ("policy", "ended", "workflow"),
    [
        ({"continuePipelineOnFailure": True}, S.FAILED_CONTINUE, S.SUCCEEDED),
        ({"failPipeline": False}, S.STOPPED, S.SUCCEEDED),
    ],
    ids=["continue", "stop"],
)
@pytest.mark.parametrize("runs", [True, False], ids=["at work", "idle"])
def test_the_failure_policy_applies_after_the_on_failure_stages(
    engine: ConformanceEngine, policy: dict[str, Any], ended: S, workflow: S, runs: bool
) -> None:
    never = engine.gate("never")
    body = [{"wait_file": never.path}, OK] if runs else {"return": "suspend"}
    run = engine.start(
        flow(
            stage(
                "a",
                "script",
                do=[body],
                stageTimeoutMs=400,
                plan={"on_failure": [{"name": "undo"}], "after": [{"name": "after"}]},
                **policy,
            ),
            stage("b", after=["a"]),
        )
    )
    result = engine.wait_final(run)

    assert result.stage("a").status is ended
    assert result.stage("undo").status is S.SUCCEEDED
    assert "after" not in result.statuses()
    assert result.stage("b").status is (S.SUCCEEDED if ended is S.FAILED_CONTINUE else S.NOT_STARTED)
    assert result.status is workflow


def test_time_in_a_pause_is_not_counted(engine: ConformanceEngine) -> None:
    run = engine.start(
        flow(
            stage("limited", "approval", stageTimeoutMs=900),
            stage("asked", "approval", timeout=0.9),
            stage("script", "script", do=[{"return": "suspend", "timeout": 0.9}, OK]),
        )
    )
    for ref in ("limited", "asked", "script"):
        engine.wait_status(run, ref, "SUSPENDED")
    begun = engine.stabilize.store.now()
    run.pause(user="kim")
    engine.wait_until(lambda: run.status is S.PAUSED, run=run)
    if (engine.stabilize.store.now() - begun).total_seconds() > 0.7:
        pytest.skip("the machine was too slow to pause it in time")
    engine.wait_until(lambda: (engine.stabilize.store.now() - begun).total_seconds() > 1.5)
    engine.wait_until(lambda: not timers_of(engine, run.id), run=run)
    paused = engine.result(run)
    assert set(paused.statuses().values()) == {"SUSPENDED"}
    assert not engine.stabilize.audit(run.id).problems

    run.resume(user="kim")
    engine.wait_until(lambda: run.status is not S.PAUSED, run=run)
    assert not engine.stabilize.audit(run.id).problems
    # They go on counting where they were.
    result = engine.wait_final(run)
    assert result.status is S.TERMINAL
    ended = max(s.end_time for s in result.workflow.stages if s.status is S.TERMINAL)
    resumed = result.workflow.paused.resume_time
    assert ended > resumed


def test_nothing_is_left_of_a_time_limit_when_a_stage_has_ended(engine: ConformanceEngine) -> None:
    run = engine.start(
        flow(
            stage("asked", "approval", timeout=LONG),
            stage("both", "approval", timeout=LONG, stageTimeoutMs=LONG * 1000),
            stage("quick", stageTimeoutMs=LONG * 1000),
            stage("jumps", "script", do=[{"return": "jump", "target": "end"}], stageTimeoutMs=LONG * 1000),
            stage("end", after=["jumps"]),
            stage("skipped", "approval", stageTimeoutMs=LONG * 1000),
        )
    )
    for ref in ("asked", "both", "skipped"):
        engine.wait_status(run, ref, "SUSPENDED")
    run.approve("asked", user="kim")
    run.approve("both", user="kim")
    run.skip_stage("skipped", user="kim")
    result = engine.wait_final(run)

    assert result.status is S.SUCCEEDED
    assert timers_of(engine, run.id) == []


def test_the_limit_of_one_pass_is_not_that_of_the_next(engine: ConformanceEngine) -> None:
    run = engine.start(flow(stage("a", "approval", stageTimeoutMs=400), stage("b", after=["a"])))
    engine.wait_until(run.ready, run=run)
    engine.settle(run)
    run.restart_stage("a", user="kim")
    engine.wait_until(lambda: engine.result(run).stage("a").generation == 1, run=run)
    restarted = engine.result(run).stage("a")
    assert "stageTimedOut" not in restarted.context or restarted.status is S.TERMINAL
    result = engine.wait_final(run)
    assert result.stage("a").status is S.TERMINAL
    taken = result.stage("a").end_time - result.stage("a").start_time
    assert taken.total_seconds() >= 0.39, "the second pass has a time of its own"
