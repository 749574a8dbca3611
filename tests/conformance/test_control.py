"""What people do to a running workflow: scenarios 64 to 68."""

from __future__ import annotations

from typing import Any

import pytest

from stabilize_celery import StageExecution
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.persistence.rows import outgoing
from tests.conformance.harness import ConformanceEngine, flow, stage

OK = {"return": "success"}
SUSPEND = {"return": "suspend"}


# ------------------------------------------------------------------------------------------------ signals


def waiting(ref: str = "a", *more: Any, task: str = "script", **context: Any) -> StageExecution:
    """A stage that suspends once, then says what the signal brought."""
    told = [{"copy": {"name": "_signal_name", "data": "_signal_data", "by": "_signal_user"}}, OK]
    return stage(ref, task, do=[SUSPEND, *more, told], **context)


def test_a_signal_runs_the_suspended_task_again(engine: ConformanceEngine) -> None:
    """Scenario 64."""
    run = engine.start(flow(waiting(), stage("b", "see", after=["a"])))
    engine.wait_status(run, "a", "SUSPENDED")
    assert run.status is S.RUNNING
    run.signal("a", "go", {"n": 3}, user="kim")
    result = engine.wait_final(run)

    assert result.executions("a") == 2
    assert result.stage("a").outputs == {"name": "go", "data": {"n": 3}, "by": "kim"}
    assert result.executions("b") == 1
    assert result.stage("a").tasks[0].attempts == 1, "the call that suspends is no attempt"


def test_an_early_signal_is_kept_if_it_is_persistent(engine: ConformanceEngine) -> None:
    """Scenario 64; of several the one that was sent first is taken first."""
    gate = engine.gate()
    run = engine.start(flow(stage("z", "script", do=[{"wait_file": gate.path}]), waiting(after=["z"])))
    engine.wait_event(run, "z")
    run.signal("a", "early", {"n": 1}, persistent=True)
    run.signal("a", "second", {"n": 2}, persistent=True)
    engine.wait_until(lambda: sum(row["event"] == "signal" for row in run.history()) == 2, run=run)
    gate.open()
    result = engine.wait_final(run)

    assert result.stage("a").outputs["name"] == "early"
    assert result.executions("a") == 2


def test_an_early_signal_that_is_not_persistent_is_lost(engine: ConformanceEngine) -> None:
    """Scenario 64; the history tells."""
    gate = engine.gate()
    run = engine.start(flow(stage("z", "script", do=[{"wait_file": gate.path}]), waiting(after=["z"])))
    engine.wait_event(run, "z")
    run.signal("a", "early", persistent=False, user="kim")
    engine.wait_until(lambda: any(row["event"] == "signal" for row in run.history()), run=run)
    gate.open()
    engine.wait_status(run, "a", "SUSPENDED")

    (told,) = [row for row in run.history() if row["event"] == "signal"]
    assert told["reason"] == "signal early lost: the stage is NOT_STARTED"
    assert told["actor"] == "kim"
    run.signal("a", "late")
    assert engine.wait_final(run).stage("a").outputs["name"] == "late"


def test_one_signal_resumes_one_suspension(engine: ConformanceEngine) -> None:
    """Scenario 65; defect 28: the second task took the signal of the first."""
    run = engine.start(
        flow(
            stage(
                "a", tasks={"one": "script", "two": "script"}, do={"one": [SUSPEND, OK], "two": [SUSPEND, OK]}
            )
        )
    )
    engine.wait_status(run, "a", "SUSPENDED")
    run.signal("a", "go")
    engine.wait_until(lambda: engine.result(run).tasks("a") == ["SUCCEEDED", "SUSPENDED"], run=run)
    result = engine.settle(run)
    assert result.status is S.RUNNING
    assert "_signal_name" not in result.stage("a").context
    run.signal("a", "go")
    assert engine.wait_final(run).status is S.SUCCEEDED


def test_a_signal_does_not_outlive_its_pass(engine: ConformanceEngine) -> None:
    """Defect 28: after a jump back the same task must wait again, for signals kept before the jump as well."""
    back = {"return": "jump", "target": "a"}
    run = engine.start(
        flow(
            stage("a", "script", do=[SUSPEND, OK, SUSPEND, OK]),
            stage("b", "script", after=["a"], do=[back, OK]),
        )
    )
    engine.wait_status(run, "a", "SUSPENDED")
    run.signal("a", "go")
    engine.wait_event(run, "a", count=3)
    result = engine.wait_status(run, "a", "SUSPENDED")
    assert result.stage("a").generation == 1
    run.signal("a", "go")
    result = engine.wait_final(run)
    assert result.order() == ["a", "a", "b", "a", "a", "b"]


def test_a_suspension_may_have_a_time_limit(engine: ConformanceEngine) -> None:
    """Decision 14."""
    result = engine.run(flow(stage("a", "hooked", do=[{**SUSPEND, "timeout": 0.2}]), stage("b", after=["a"])))

    assert result.statuses() == {"a": "TERMINAL", "b": "NOT_STARTED"}
    assert "waited for a signal longer than it may" in result.stage("a").context["error"]
    assert result.hooks("a") == ["on_cleanup"]


def test_the_time_limit_of_one_suspension_is_not_that_of_the_next(engine: ConformanceEngine) -> None:
    run = engine.start(flow(stage("a", "script", do=[{**SUSPEND, "timeout": 0.8}, SUSPEND, OK])))
    engine.wait_status(run, "a", "SUSPENDED")
    run.signal("a", "first")
    engine.wait_event(run, "a", count=2)
    # The timer of the first suspension is still there, and falls due.
    result = engine.settle(run)
    assert result.stage("a").status is S.SUSPENDED
    run.signal("a", "second")
    assert engine.wait_final(run).status is S.SUCCEEDED


def test_a_stopped_branch_does_not_end_a_workflow_that_waits(engine: ConformanceEngine) -> None:
    """Defect 26: the workflow was SUCCEEDED with a stage SUSPENDED."""
    run = engine.start(flow(stage("s", "fail", failPipeline=False), waiting()))
    engine.wait_status(run, "a", "SUSPENDED")
    result = engine.settle(run)
    assert result.statuses() == {"s": "STOPPED", "a": "SUSPENDED"}
    assert result.status is S.RUNNING
    run.signal("a", "go")
    assert engine.wait_final(run).status is S.SUCCEEDED


# ---------------------------------------------------------------------------------------------- approvals


@pytest.mark.parametrize("early", [False, True])
def test_somebody_approves(engine: ConformanceEngine, early: bool) -> None:
    run = engine.start(flow(stage("ask", "approval"), stage("b", "see", after=["ask"])))
    if not early:
        engine.wait_status(run, "ask", "SUSPENDED")
    run.approve("ask", user="kim", data={"note": "fine"})
    result = engine.wait_final(run)

    expected = {"approved": True, "approval": {"note": "fine"}, "approved_by": "kim"}
    assert result.stage("ask").outputs == expected
    assert expected.items() <= result.seen("b").items()
    assert any(row["actor"] == "kim" for row in run.history())


@pytest.mark.parametrize("continues", [False, True])
def test_somebody_rejects(engine: ConformanceEngine, continues: bool) -> None:
    context = {"approval_reject_continues": True} if continues else {}
    run = engine.start(flow(stage("ask", "approval", context=context), stage("b", "see", after=["ask"])))
    engine.wait_status(run, "ask", "SUSPENDED")
    run.signal("ask", "hello")
    engine.wait_until(
        lambda: (
            engine.result(run).stage("ask").tasks[0].suspensions == 2
            and engine.result(run).stage("ask").status is S.SUSPENDED
        ),
        run=run,
    )
    run.reject("ask", user="kim", data={"note": "no"})
    result = engine.wait_final(run)

    answer = {"approved": False, "approval": {"note": "no"}, "rejected_by": "kim"}
    asked = result.stage("ask")
    if continues:
        assert asked.status is S.FAILED_CONTINUE
        assert asked.outputs == answer
        assert result.seen("b")["approved"] is False
    else:
        assert result.statuses() == {"ask": "TERMINAL", "b": "NOT_STARTED"}
        assert answer.items() <= asked.context.items()
        assert asked.context["error"] == "Approval rejected"


def test_nobody_answers(engine: ConformanceEngine) -> None:
    result = engine.run(flow(stage("ask", "approval", context={"timeout": 0.2})))

    assert result.statuses() == {"ask": "TERMINAL"}


# ------------------------------------------------------------------------------------------------ waiting


def test_a_wait_waits_at_least_so_long(engine: ConformanceEngine) -> None:
    result = engine.run(flow(stage("w", "wait", context={"waitTime": 0.5}), stage("b", after=["w"])))

    waited = result.stage("w")
    assert waited.outputs == {"waitedSeconds": 0.5}
    assert waited.end_time is not None
    assert waited.start_time is not None
    assert (waited.end_time - waited.start_time).total_seconds() >= 0.49
    assert waited.tasks[0].attempts == 1
    assert result.executions("b") == 1


# ----------------------------------------------------------------------------------------------- canceling


def test_cancel_ends_everything_that_has_not_ended(engine: ConformanceEngine) -> None:
    """Scenario 66."""
    run = engine.start(
        flow(
            stage("c"),
            stage("a", "hooked", after=["c"], do=[SUSPEND]),
            stage("b", after=["a"]),
        )
    )
    engine.wait_status(run, "a", "SUSPENDED")
    run.cancel(user="kim", reason="enough")
    result = engine.wait_final(run)

    assert result.statuses() == {"c": "SUCCEEDED", "a": "CANCELED", "b": "CANCELED"}
    assert result.tasks("a") == ["CANCELED"]
    assert result.status is S.CANCELED
    assert (result.workflow.canceled_by, result.workflow.cancellation_reason) == ("kim", "enough")
    assert sorted(result.hooks("a")) == ["on_cancel", "on_cleanup"]


def test_a_running_task_is_told_and_its_result_does_not_count(engine: ConformanceEngine) -> None:
    """Scenario 66 with a running task; defect 33: what it returned was stored in the canceled stage."""
    never = engine.gate("never")
    late = [{"wait_file": never.path}, {"return": "success", "outputs": {"late": True}}]
    run = engine.start(flow(stage("a", "hooked", do=[late], on_cancel={**OK, "outputs": {"undone": 1}})))
    engine.wait_event(run, "a")
    run.cancel(user="kim")
    # It watches current_run().cancelled, and ends.
    engine.wait_event(run, "a", "end")
    result = engine.wait_final(run)

    assert result.statuses() == {"a": "CANCELED"}
    assert result.stage("a").outputs == {"undone": 1}
    assert result.executions("a") == 1
    assert sorted(result.hooks("a")) == ["on_cancel", "on_cleanup"]


def test_one_stage_is_canceled_and_other_branches_go_on(engine: ConformanceEngine) -> None:
    gate = engine.gate()
    inner = {"name": "s", "task": "hooked", "context": {"do": [SUSPEND]}}
    run = engine.start(
        flow(
            stage("a", plan={"before": [inner]}),
            stage("b", after=["a"]),
            stage("x", "script", do=[{"wait_file": gate.path}]),
            stage("y", after=["x"]),
        )
    )
    engine.wait_status(run, "s", "SUSPENDED")
    run.cancel_stage("a", user="kim", reason="not this one")
    engine.wait_status(run, "a", "CANCELED")
    gate.open()
    result = engine.wait_final(run)

    assert result.statuses() == {
        "a": "CANCELED",
        "s": "CANCELED",
        "b": "NOT_STARTED",
        "x": "SUCCEEDED",
        "y": "SUCCEEDED",
    }
    assert sorted(result.hooks("s")) == ["on_cancel", "on_cleanup"]
    assert result.status is S.CANCELED


def test_a_stage_that_has_not_started_is_canceled(engine: ConformanceEngine) -> None:
    gate = engine.gate()
    run = engine.start(
        flow(
            stage("x", "script", do=[{"wait_file": gate.path}]),
            stage("y", after=["x"]),
            stage("z", after=["y"]),
        )
    )
    engine.wait_event(run, "x")
    run.cancel_stage("y")
    engine.wait_status(run, "y", "CANCELED")
    gate.open()
    result = engine.wait_final(run)

    assert result.statuses() == {"x": "SUCCEEDED", "y": "CANCELED", "z": "NOT_STARTED"}
    assert result.status is S.CANCELED


# ------------------------------------------------------------------------------------------------- pausing


def test_nothing_is_polled_while_the_workflow_is_paused(engine: ConformanceEngine) -> None:
    """Scenario 67."""
    gate = engine.gate()
    polls = [{"return": "running", "after": 0.02}] * 400
    run = engine.start(flow(stage("a", "polling", do=[*polls, OK], backoff=0.02), stage("b", after=["a"])))
    engine.wait_event(run, "a", count=2)
    run.pause(user="kim")
    engine.wait_status(run, "a", "PAUSED")
    paused = engine.settle(run)
    assert paused.status is S.PAUSED
    assert not engine.in_flight(run), "something is due while it is paused"
    before = paused.executions("a")
    details = paused.workflow.paused
    assert details is not None
    assert details.is_paused
    assert details.paused_by == "kim"
    run.resume(user="lee")
    engine.wait_event(run, "a", count=before + 2)
    result = engine.result(run)
    assert result.stage("a").status is S.RUNNING
    assert result.workflow.paused is not None
    assert result.workflow.paused.resume_time is not None
    run.skip_stage("a")
    assert engine.wait_final(run).stage("b").status is S.SUCCEEDED
    gate.open()


def test_paused_time_does_not_count_against_a_time_limit(engine: ConformanceEngine) -> None:
    """The polling task may take three seconds, of which it needs less than one; it is paused for longer."""
    run = engine.start(
        flow(
            stage(
                "a", "polling", do=[{"return": "running"}, {"return": "running"}, OK], total=3.0, backoff=0.3
            )
        )
    )
    engine.wait_event(run, "a")
    run.pause()
    engine.wait_status(run, "a", "PAUSED")
    parked = engine.result(run).stage("a").tasks[0].paused_at
    assert parked is not None
    engine.wait_until(lambda: (engine.stabilize.store.now() - parked).total_seconds() > 3.2)
    run.resume()
    result = engine.wait_final(run)

    assert result.status is S.SUCCEEDED
    assert result.stage("a").tasks[0].paused_seconds >= 3.2


def test_attempts_survive_a_pause(engine: ConformanceEngine) -> None:
    """Defect 19: a resumed task began to count anew."""
    run = engine.start(flow(stage("a", "script", do=[{"raise": "TransientError"}])))
    engine.wait_event(run, "a", count=3)
    run.pause()
    engine.wait_until(lambda: run.status is S.PAUSED, run=run)
    engine.settle(run)
    paused = engine.result(run)
    if paused.stage("a").status is S.PAUSED:
        assert paused.stage("a").tasks[0].attempts == paused.executions("a")
    run.resume()
    result = engine.wait_final(run)

    assert result.executions("a") == 10
    assert result.stage("a").status is S.TERMINAL
    assert result.stage("a").tasks[0].attempts == 10


def test_a_body_that_runs_when_the_pause_begins_ends(engine: ConformanceEngine) -> None:
    gate = engine.gate()
    run = engine.start(
        flow(
            stage("a", "script", do=[[{"wait_file": gate.path}, {**OK, "outputs": {"n": 1}}]]),
            stage("b", "see", after=["a"]),
        )
    )
    engine.wait_event(run, "a")
    run.pause()
    engine.wait_until(lambda: run.status is S.PAUSED, run=run)
    gate.open()
    result = engine.wait_status(run, "b", "PAUSED")
    assert result.executions("b") == 0
    run.resume()
    assert engine.wait_final(run).seen("b")["n"] == 1


def test_a_paused_workflow_may_be_canceled(engine: ConformanceEngine) -> None:
    """Defect 27 for PAUSED stages."""
    run = engine.start(flow(stage("a", "script", do=[{"return": "running", "after": 0.02}])))
    engine.wait_event(run, "a")
    run.pause()
    engine.wait_status(run, "a", "PAUSED")
    run.cancel()
    result = engine.wait_final(run)
    assert result.statuses() == {"a": "CANCELED"}
    assert result.tasks("a") == ["CANCELED"]


# ---------------------------------------------------------------------------------------------- restarting


def test_a_failed_stage_is_restarted(engine: ConformanceEngine) -> None:
    """Scenario 68."""
    run = engine.start(flow(stage("a", "script", do=[{"return": "terminal"}, OK]), stage("b", after=["a"])))
    engine.wait_until(run.ready, run=run)
    engine.settle(run)
    run.restart_stage("a", user="kim")
    engine.wait_until(lambda: engine.result(run).executions("b") == 1, run=run)
    result = engine.wait_final(run)

    assert result.statuses() == {"a": "SUCCEEDED", "b": "SUCCEEDED"}
    assert result.status is S.SUCCEEDED
    details = result.stage("a").context["restartDetails"]
    assert details["restartedBy"] == "kim"
    assert "error" not in result.stage("a").context


def test_the_first_stage_of_a_completed_chain_is_restarted(engine: ConformanceEngine) -> None:
    """Scenario 68; defect 15: the workflow stayed RUNNING for ever, synthetic stages were not reset."""
    run = engine.start(
        flow(
            stage("a", plan={"before": [{"name": "s"}]}),
            stage("b", after=["a"]),
            stage("c", after=["b"]),
            stage("x"),
        )
    )
    engine.wait_final(run)
    run.restart_stage("a")
    engine.wait_until(lambda: engine.result(run).executions("c") == 2, run=run)
    result = engine.wait_final(run)

    assert [ref for ref in result.order() if ref != "x"] == ["s", "a", "b", "c"] * 2
    assert result.executions("x") == 1
    assert len(result.workflow.stages) == 5
    assert result.status is S.SUCCEEDED


def test_a_stage_is_restarted_while_the_workflow_runs(engine: ConformanceEngine) -> None:
    """What is downstream begins anew, also when it is running; its first pass does not count."""
    hold = engine.gate("hold")
    run = engine.start(
        flow(
            stage("a"),
            stage(
                "b", "hooked", after=["a"], do=[[{"wait_file": hold.path}, {**OK, "outputs": {"n": 1}}], OK]
            ),
            stage("c", "see", after=["b"]),
        )
    )
    engine.wait_event(run, "b")
    run.restart_stage("a")
    engine.wait_event(run, "b", count=2)
    hold.open()
    result = engine.wait_final(run)

    assert result.executions("a") == result.executions("b") == 2
    assert result.executions("c") == 1
    assert "n" not in result.seen("c")
    assert result.hooks("b").count("on_cancel") == 1
    assert result.status is S.SUCCEEDED


# ------------------------------------------------------------------------------------------------ skipping


def test_a_running_stage_is_skipped(engine: ConformanceEngine) -> None:
    inner = {"name": "s", "plan": {"before": [{"name": "t", "task": "hooked", "context": {"do": [SUSPEND]}}]}}
    run = engine.start(flow(stage("a", plan={"before": [inner]}), stage("b", after=["a"])))
    engine.wait_status(run, "t", "SUSPENDED")
    run.skip_stage("a", user="kim", reason="known to be broken")
    result = engine.wait_final(run)

    assert result.statuses() == {"a": "SKIPPED", "s": "CANCELED", "t": "CANCELED", "b": "SUCCEEDED"}
    assert sorted(result.hooks("t")) == ["on_cancel", "on_cleanup"]
    assert result.status is S.SUCCEEDED


def test_a_stage_that_waits_is_skipped_when_its_turn_comes(engine: ConformanceEngine) -> None:
    """What follows it must not overtake what comes before it."""
    gate = engine.gate()
    run = engine.start(
        flow(
            stage("a", "script", do=[[{"wait_file": gate.path}, {**OK, "outputs": {"n": 1}}]]),
            stage("b", after=["a"]),
            stage("c", "see", after=["b"]),
        )
    )
    engine.wait_event(run, "a")
    run.skip_stage("b", user="kim", reason="not today")
    engine.wait_until(lambda: any(row["event"] == "skip" for row in run.history()), run=run)
    assert engine.result(run).stage("c").status is S.NOT_STARTED
    gate.open()
    result = engine.wait_final(run)

    assert result.statuses() == {"a": "SUCCEEDED", "b": "SKIPPED", "c": "SUCCEEDED"}
    assert result.order() == ["a", "c"]
    assert result.seen("c")["n"] == 1
    (skipped,) = [row for row in run.history() if row["to_status"] is S.SKIPPED and row["task_id"] is None]
    assert (skipped["reason"], skipped["actor"]) == ("not today", "kim")


# ------------------------------------------------------------------------------------------- what is kept


def test_a_message_that_is_delivered_again_does_not_fork_a_polling_task(engine: ConformanceEngine) -> None:
    """Defect 29: every duplicate of RunTask became a second, permanent poll."""
    polls = [{"return": "running", "after": 0.1}] * 4
    run = engine.start(flow(stage("a", "script", do=[*polls, OK])))
    for count in range(1, 5):
        engine.wait_event(run, "a", count=count)
        rows = [row for row in engine.in_flight(run) if row["type"] == "RunTask"]
        engine.stabilize.publisher.publish([outgoing(row) for row in rows] * 5)
    result = engine.wait_final(run)
    assert result.executions("a") == 5


def test_the_history_tells_who_did_what_when_and_why(engine: ConformanceEngine) -> None:
    run = engine.start(flow(stage("a", "script", do=[SUSPEND, OK]), stage("b", after=["a"])))
    engine.wait_status(run, "a", "SUSPENDED")
    run.pause(user="kim")
    engine.wait_until(lambda: run.status is S.PAUSED, run=run)
    run.resume(user="lee")
    engine.wait_until(lambda: run.status is S.RUNNING, run=run)
    run.signal("a", "go", user="pat")
    engine.wait_final(run)

    history = run.history()
    assert all(row["worker"] for row in history)
    assert all(row["at"].utcoffset() is not None for row in history)
    moves = [
        (row["event"], str(row["from_status"]), str(row["to_status"]), row["actor"])
        for row in history
        if row["stage_id"] is None and row["to_status"] is not None
    ]
    assert moves == [
        ("workflow", "NOT_STARTED", "RUNNING", None),
        ("workflow", "RUNNING", "PAUSED", "kim"),
        ("workflow", "PAUSED", "RUNNING", "lee"),
        ("workflow", "RUNNING", "SUCCEEDED", None),
    ]
    woken = [row for row in history if row["from_status"] is S.SUSPENDED]
    assert {(row["reason"], row["actor"]) for row in woken} == {("signal go", "pat")}


def test_the_history_tells_why_a_stage_failed(engine: ConformanceEngine) -> None:
    failing = {"name": "s", "task": "fail", "context": {"error": "no room"}}
    run = engine.start(
        flow(
            stage("a", "fail", context={"error": "no luck", "failPipeline": False}),
            stage("p", plan={"before": [failing]}, context={"continuePipelineOnFailure": True}),
        )
    )
    engine.wait_final(run)

    refs = {entry.id: entry.name for entry in run.workflow().stages}
    reasons = {
        refs[row["stage_id"]]: row["reason"]
        for row in run.history()
        if row["event"] == "stage" and row["to_status"].is_failure
    }
    assert reasons == {"a": "no luck", "s": "no room", "p": "a synthetic stage failed"}
