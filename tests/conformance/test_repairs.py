"""What people do to a workflow in which something failed, and in which order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stabilize_celery import WorkflowRun
from stabilize_celery import WorkflowStatus as S
from tests.conformance.harness import ConformanceEngine, flow, stage

OK = {"return": "success"}


# ------------------------------------------------------------------------------------- an earlier failure


def failed_with_another_restarted(engine: ConformanceEngine) -> WorkflowRun:
    """``x`` has failed and stays so; ``a`` was restarted and the stage after it waits for an answer."""
    hold = engine.gate()
    run = engine.start(
        flow(
            stage("x", "script", do=[[{"wait_file": hold.path}, {"return": "terminal"}]]),
            stage("a"),
            stage("ask", "approval", ["a"]),
            stage("b", after=["ask"]),
            stage("other"),
        )
    )
    engine.wait_status(run, "ask", "SUSPENDED")
    engine.wait_status(run, "other", "SUCCEEDED")
    hold.open()
    engine.wait_until(run.ready, run=run)
    engine.settle(run)
    assert run.status is S.TERMINAL
    run.restart_stage("a", user="kim")
    engine.wait_until(lambda: engine.result(run).stage("a").generation == 1, run=run)
    engine.wait_status(run, "ask", "SUSPENDED")
    return run


def pause_and_resume(engine: ConformanceEngine, run: WorkflowRun) -> None:
    run.pause(user="kim")
    engine.wait_until(lambda: run.status is S.PAUSED, run=run)
    run.resume(user="kim")
    engine.wait_until(lambda: run.status is not S.PAUSED, run=run)


def skip(engine: ConformanceEngine, run: WorkflowRun) -> None:
    run.skip_stage("ask", user="kim")
    engine.wait_until(lambda: engine.result(run).stage("ask").status is S.SKIPPED, run=run)


def restart_elsewhere(engine: ConformanceEngine, run: WorkflowRun) -> None:
    run.restart_stage("other", user="kim")
    engine.wait_until(lambda: engine.result(run).stage("other").generation == 1, run=run)
    engine.settle(run)


def cancel_a_stage(engine: ConformanceEngine, run: WorkflowRun) -> None:
    run.restart_stage("other", user="kim")
    engine.wait_until(lambda: engine.result(run).stage("other").generation == 1, run=run)
    run.cancel_stage("b", user="kim")
    engine.wait_until(lambda: engine.result(run).stage("b").status is S.CANCELED, run=run)


@pytest.mark.parametrize("control", [pause_and_resume, skip, restart_elsewhere, cancel_a_stage])
def test_an_earlier_failure_ends_nothing_at_once_whatever_control_comes_next(
    engine: ConformanceEngine, control: Callable[[ConformanceEngine, WorkflowRun], None]
) -> None:
    run = failed_with_another_restarted(engine)
    control(engine, run)
    if control is not skip:
        assert run.status is S.RUNNING
        run.approve("ask", user="kim")
    result = engine.wait_final(run)

    assert result.stage("ask").status is (S.SKIPPED if control is skip else S.SUCCEEDED)
    assert result.stage("b").status is (S.CANCELED if control is cancel_a_stage else S.SUCCEEDED)
    assert result.status is S.TERMINAL
    assert result.stage("x").status is S.TERMINAL
    assert not engine.stabilize.audit(run.id).problems


def test_a_later_failure_ends_it_at_once(engine: ConformanceEngine) -> None:
    run = failed_with_another_restarted(engine)
    run.reject("ask", user="kim")
    result = engine.wait_final(run)

    assert result.status is S.TERMINAL
    assert run.history()[-1]["reason"] == "stage ask failed"


# ------------------------------------------------------------------------------- what a failure canceled


def test_a_restart_takes_back_what_the_failure_canceled(engine: ConformanceEngine) -> None:
    hold = engine.gate()
    run = engine.start(
        flow(
            stage("a"),
            stage("b", "script", ["a"], do=[[{"wait_file": hold.path}, {"return": "terminal"}], OK]),
            stage("c", "approval", ["a"], plan={"before": [{"name": "c-before"}]}),
            stage("inner", "sub_workflow", ["a"], workflow={"stages": [{"ref": "ask", "type": "approval"}]}),
            stage("person", "approval", ["a"]),
            stage("d", "see", ["b", "c", "inner"]),
            stage("e", after=["person"]),
        )
    )
    engine.wait_status(run, "c", "SUSPENDED")
    engine.wait_status(run, "person", "SUSPENDED")
    engine.wait_status(run, "inner", "SUSPENDED")
    run.cancel_stage("person", user="kim", reason="stage b failed")
    engine.wait_status(run, "person", "CANCELED")
    hold.open()
    engine.wait_until(run.ready, run=run)
    engine.settle(run)
    failed = engine.result(run)
    assert [failed.statuses()[ref] for ref in ("b", "c", "inner")] == ["TERMINAL", "CANCELED", "CANCELED"]
    first = failed.stage("inner").context["_sub_workflow_id"]

    run.restart_stage("b", user="kim")
    engine.wait_until(lambda: engine.result(run).stage("c").generation == 1, run=run)
    engine.wait_status(run, "c", "SUSPENDED")
    run.approve("c", user="kim")
    engine.wait_status(run, "inner", "SUSPENDED")
    second = engine.stabilize.get(engine.result(run).stage("inner").context["_sub_workflow_id"])
    assert second.id != first
    engine.wait_status(second, "ask", "SUSPENDED")
    second.approve("ask", user="kim")
    result = engine.wait_final(run)

    assert [result.statuses()[ref] for ref in ("b", "c", "inner", "d")] == ["SUCCEEDED"] * 4
    assert [result.statuses()[ref] for ref in ("person", "e")] == ["CANCELED", "NOT_STARTED"]
    assert result.status is S.CANCELED, "what a person canceled stays so"
    assert not engine.stabilize.audit(run.id).problems


def test_a_restart_of_another_stage_leaves_what_a_failure_canceled(engine: ConformanceEngine) -> None:
    hold = engine.gate()
    run = engine.start(
        flow(
            stage("first"),
            stage("b", "script", ["first"], do=[[{"wait_file": hold.path}, {"return": "terminal"}], OK]),
            stage("c", "approval"),
            stage("d", after=["b", "c"]),
            stage("other"),
        )
    )
    engine.wait_status(run, "c", "SUSPENDED")
    engine.wait_status(run, "other", "SUCCEEDED")
    hold.open()
    engine.wait_until(run.ready, run=run)
    engine.settle(run)
    run.restart_stage("other", user="kim")
    engine.wait_until(lambda: engine.result(run).stage("other").generation == 1, run=run)
    result = engine.wait_final(run)
    assert result.stage("c").status is S.CANCELED
    assert result.status is S.TERMINAL

    # What failed runs again with the stage before it, and so does what it canceled; the second time it is not canceled.
    for generation in (1, 2):
        run.restart_stage("first", user="kim")
        engine.wait_until(
            lambda generation=generation: engine.result(run).stage("b").generation == generation, run=run
        )
        engine.wait_status(run, "b", "SUCCEEDED")
    engine.wait_status(run, "c", "SUSPENDED")
    run.approve("c", user="kim")
    result = engine.wait_final(run)
    assert result.stage("c").generation == 1
    assert result.stage("d").status is S.SUCCEEDED
    assert result.status is S.SUCCEEDED


# ----------------------------------------------------------------------------------- repaired sub-workflows


def inner_of(engine: ConformanceEngine, run: WorkflowRun) -> WorkflowRun:
    return engine.stabilize.get(engine.result(run).stage("sub").context["sub_workflow_id"])


def definition(file: str, *, nested: bool = False) -> dict[str, object]:
    part = {"type": "shell", "context": {"command": f"test -e {file} && echo repaired"}}
    if nested:
        part = {"type": "sub_workflow", "context": {"workflow": definition(file)}}
    return {"stages": [{"ref": "x", **part}, {"ref": "y", "type": "noop", "requires": ["x"]}]}


@pytest.mark.parametrize("nested", [False, True], ids=["child", "grandchild"])
@pytest.mark.parametrize("fails_again", [False, True], ids=["at once", "the second time"])
def test_a_repaired_sub_workflow_restarts_the_stage_that_it_failed(
    engine: ConformanceEngine, nested: bool, fails_again: bool
) -> None:
    file = engine.gate("cause")
    run = engine.start(
        flow(
            stage("sub", "sub_workflow", workflow=definition(file.path, nested=nested)),
            stage("beside", "approval"),
            stage("b", "see", ["sub", "beside"]),
        )
    )
    engine.wait_until(run.ready, run=run)
    engine.settle(run)
    child = inner_of(engine, run)
    failed = engine.stabilize.get(child.workflow().stages[0].context["sub_workflow_id"]) if nested else child
    if fails_again:
        failed.restart_stage("x", user="kim")
        engine.wait_until(lambda: failed.workflow().stages[0].generation == 1 and failed.ready())
        assert run.status is S.TERMINAL
    file.open()
    failed.restart_stage("x", user="kim")
    engine.wait_until(lambda: engine.result(run).stage("sub").status is S.SUCCEEDED, run=run)
    if engine.result(run).stage("beside").status is not S.NOT_STARTED:
        engine.wait_status(run, "beside", "SUSPENDED")
    run.approve("beside", user="kim")
    result = engine.wait_final(run)

    assert result.status is S.SUCCEEDED
    assert result.stage("sub").outputs["sub_workflow_id"] == child.id, "the same one, not another"
    assert result.stage("sub").outputs["sub_workflow_status"] == "SUCCEEDED"
    assert "error" not in result.stage("sub").context
    assert result.stage("b").status is S.SUCCEEDED
    assert not engine.stabilize.audit(run.id).problems


def test_a_sub_workflow_that_was_replaced_changes_nothing(engine: ConformanceEngine) -> None:
    cause = engine.gate("cause")
    run = engine.start(
        flow(stage("sub", "sub_workflow", workflow=definition(cause.path)), stage("b", after=["sub"]))
    )
    engine.wait_until(run.ready, run=run)
    engine.settle(run)
    child = inner_of(engine, run)
    cause.open()
    run.restart_stage("sub", user="kim")
    engine.wait_until(lambda: engine.result(run).stage("b").status is S.SUCCEEDED, run=run)
    child.restart_stage("x", user="kim")
    engine.wait_until(lambda: child.status is S.SUCCEEDED)
    engine.settle(child)
    result = engine.wait_final(run)
    assert result.stage("sub").generation == 1
    assert result.stage("sub").outputs["sub_workflow_id"] != child.id
    assert result.status is S.SUCCEEDED
