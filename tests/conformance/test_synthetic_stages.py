"""Stages before, after and on failure of another: scenarios 39 to 49."""

from __future__ import annotations

from typing import Any

import pytest

from stabilize_celery import WorkflowStatus as S
from tests.conformance.harness import ConformanceEngine, Result, flow, stage


def planned(ref: str = "p", task: str | None = "ok", **plan: Any) -> Any:
    """A stage with synthetic stages; names ending in ``!`` fail."""
    options = plan.pop("options", {})
    phases = {
        phase: entries if isinstance(entries, str) else [_entry(entry) for entry in entries]
        for phase, entries in plan.items()
    }
    return stage(ref, task, context={**options, "plan": phases})


def _entry(entry: Any) -> dict[str, Any]:
    if isinstance(entry, dict):
        return entry
    return {"name": entry.rstrip("!"), "task": "fail" if entry.endswith("!") else "ok"}


def happened(result: Result, *refs: str) -> None:
    """Each of these ran after all of those before it; a group of names in one string may run in any order."""
    order = result.order()
    place = 0
    for group in refs:
        names = set(group.split())
        assert set(order[place : place + len(names)]) == names, (order, group)
        place += len(names)
    assert len(order) == place, order


@pytest.mark.parametrize("chained", [False, True])
def test_before_stages_then_tasks_then_after_stages_then_downstream(
    engine: ConformanceEngine, chained: bool
) -> None:
    """Scenario 39; defect 16: each synthetic stage is planned once."""
    after_first = {"requires": ["b1"]} if chained else {}
    after_f1 = {"requires": ["f1"]} if chained else {}
    result = engine.run(
        flow(
            planned(before=["b1", {"name": "b2", **after_first}], after=["f1", {"name": "f2", **after_f1}]),
            stage("q", after=["p"]),
        )
    )
    if chained:
        happened(result, "b1", "b2", "p", "f1", "f2", "q")
    else:
        happened(result, "b1 b2", "p", "f1 f2", "q")
    assert set(result.statuses().values()) == {"SUCCEEDED"}
    assert result.status is S.SUCCEEDED


def test_a_before_stage_that_fails_runs_the_rollback(engine: ConformanceEngine) -> None:
    """Scenario 40."""
    result = engine.run(flow(planned(before=["b1!"], on_failure=["r1"]), stage("q", after=["p"])))

    happened(result, "b1", "r1")
    assert result.statuses() == {
        "p": "TERMINAL",
        "b1": "TERMINAL",
        "r1": "SUCCEEDED",
        "q": "NOT_STARTED",
    }
    assert result.tasks("p") == ["NOT_STARTED"]
    assert result.status is S.TERMINAL


def test_a_parallel_before_stage_does_not_keep_the_rollback_from_running(engine: ConformanceEngine) -> None:
    """Scenario 40 with a second before-stage; defect 35: its end canceled the rollback."""
    fails, never = engine.gate("fails"), engine.gate("never")
    first = {"task": "script", "context": {"do": [[{"wait_file": fails.path}, {"return": "terminal"}]]}}
    other = {"task": "hooked", "context": {"do": [{"wait_file": never.path}]}}
    run = engine.start(
        flow(planned(before=[{"name": "b1", **first}, {"name": "b2", **other}], on_failure=["r1"]))
    )
    engine.wait_event(run, "b2")
    fails.open()
    result = engine.wait_final(run)

    assert result.statuses() == {"p": "TERMINAL", "b1": "TERMINAL", "b2": "CANCELED", "r1": "SUCCEEDED"}
    assert result.hooks("b2").count("on_cancel") == 1


@pytest.mark.parametrize("rollback", ["r1", "r1!"])
@pytest.mark.parametrize(
    ("policy", "status", "downstream", "workflow"),
    [
        pytest.param({}, "TERMINAL", "NOT_STARTED", S.TERMINAL, id="41"),
        pytest.param({"failPipeline": False}, "STOPPED", "NOT_STARTED", S.SUCCEEDED, id="41-stopped"),
        pytest.param(
            {"continuePipelineOnFailure": True}, "FAILED_CONTINUE", "SUCCEEDED", S.SUCCEEDED, id="42"
        ),
    ],
)
def test_a_task_that_fails_runs_the_rollback_and_not_the_after_stages(
    engine: ConformanceEngine,
    rollback: str,
    policy: dict[str, Any],
    status: str,
    downstream: str,
    workflow: S,
) -> None:
    """Scenarios 41 and 42: whatever comes of the rollback, it never turns the failure into a success."""
    result = engine.run(
        flow(
            planned("p", "fail", after=["f1"], on_failure=[rollback], options=policy),
            stage("q", after=["p"]),
        )
    )
    assert result.order()[:2] == ["p", "r1"]
    assert "f1" not in result.statuses()
    assert result.stage("p").status.name == status
    assert result.stage("q").status.name == downstream
    assert result.status is workflow


def test_on_failure_stages_run_one_after_the_other_and_see_the_failure(engine: ConformanceEngine) -> None:
    """Decisions 5 and 9."""
    gate = engine.gate()
    slow = {"name": "r1", "task": "script", "context": {"do": [{"wait_file": gate.path}]}}
    run = engine.start(
        flow(
            stage(
                "p",
                "script",
                do=[{"raise": "ValueError", "message": "no room"}],
                plan={"on_failure": [slow, {"name": "r2", "task": "see"}]},
            )
        )
    )
    engine.wait_event(run, "r1")
    assert engine.result(run).stage("r2").status is S.NOT_STARTED
    gate.open()
    result = engine.wait_final(run)

    assert result.order() == ["p", "r1", "r2"]
    assert result.seen("r2")["exception"]["details"]["error"] == "no room"


def test_an_after_stage_that_fails_runs_the_rollback(engine: ConformanceEngine) -> None:
    """Scenario 43."""
    result = engine.run(flow(planned(after=["f1!"], on_failure=["r1"]), stage("q", after=["p"])))

    happened(result, "p", "f1", "r1")
    assert result.stage("p").status is S.TERMINAL
    assert result.status is S.TERMINAL


def test_an_after_stage_that_fails_follows_the_policy_of_its_parent(engine: ConformanceEngine) -> None:
    """Decision 8."""
    result = engine.run(
        flow(planned(after=["f1!"], options={"continuePipelineOnFailure": True}), stage("q", after=["p"]))
    )
    assert result.statuses() == {"p": "FAILED_CONTINUE", "f1": "TERMINAL", "q": "SUCCEEDED"}
    assert result.status is S.SUCCEEDED


CONTINUES = {"continuePipelineOnFailure": True}


def test_a_before_stage_that_fails_and_continues_lets_the_task_run(engine: ConformanceEngine) -> None:
    """Scenario 44."""
    first = {"name": "b1", "task": "fail", "context": CONTINUES}
    result = engine.run(flow(planned(before=[first], after=["f1"]), stage("q", after=["p"])))

    happened(result, "b1", "p", "f1", "q")
    assert result.stage("p").status is S.FAILED_CONTINUE
    assert result.status is S.SUCCEEDED


def test_a_before_stage_that_continues_strands_the_one_chained_to_it(engine: ConformanceEngine) -> None:
    """Scenario 44 with a second before-stage; defect 10: it took an hour, and was TERMINAL then."""
    first = {"name": "b1", "task": "fail", "context": CONTINUES}
    result = engine.run(
        flow(
            planned(before=[first, {"name": "b2", "requires": ["b1"]}], after=["f1"]),
            stage("q", after=["p"]),
        )
    )
    happened(result, "b1", "q")
    assert result.statuses() == {
        "p": "FAILED_CONTINUE",
        "b1": "FAILED_CONTINUE",
        "b2": "NOT_STARTED",
        "q": "SUCCEEDED",
    }
    assert result.status is S.SUCCEEDED


def test_siblings_may_be_allowed_to_continue(engine: ConformanceEngine) -> None:
    """Scenario 44 with allowSiblingStagesToContinueOnFailure."""
    allowed = {**CONTINUES, "allowSiblingStagesToContinueOnFailure": True}
    first = {"name": "b1", "task": "fail", "context": allowed}
    result = engine.run(flow(planned(before=[first, {"name": "b2", "requires": ["b1"]}])))

    happened(result, "b1", "b2", "p")
    assert result.stage("p").status is S.FAILED_CONTINUE


def test_an_after_stage_that_continues_strands_the_one_chained_to_it(engine: ConformanceEngine) -> None:
    """Scenario 45; defect 10: the parent stayed RUNNING for ever."""
    first = {"name": "f1", "task": "fail", "context": CONTINUES}
    result = engine.run(
        flow(planned(after=[first, {"name": "f2", "requires": ["f1"]}]), stage("q", after=["p"]))
    )
    happened(result, "p", "f1", "q")
    assert result.statuses() == {
        "p": "FAILED_CONTINUE",
        "f1": "FAILED_CONTINUE",
        "f2": "NOT_STARTED",
        "q": "SUCCEEDED",
    }


def test_synthetic_stages_may_have_synthetic_stages(engine: ConformanceEngine) -> None:
    """Scenario 46."""
    inner = {"name": "inner", "plan": {"before": [{"name": "ib"}], "after": [{"name": "ia"}]}}
    result = engine.run(flow(planned(before=[inner]), stage("q", after=["p"])))

    happened(result, "ib", "inner", "ia", "p", "q")
    assert result.status is S.SUCCEEDED


def test_a_failure_deep_inside_reaches_the_workflow(engine: ConformanceEngine) -> None:
    """Scenario 46 with a failure: each level rolls back, from the inside."""
    inner = {
        "name": "inner",
        "plan": {"before": [{"name": "ib", "task": "fail"}], "on_failure": [{"name": "ir"}]},
    }
    result = engine.run(flow(planned(before=[inner], on_failure=["r1"])))

    happened(result, "ib", "ir", "r1")
    assert result.statuses() == {
        "p": "TERMINAL",
        "inner": "TERMINAL",
        "ib": "TERMINAL",
        "ir": "SUCCEEDED",
        "r1": "SUCCEEDED",
    }


@pytest.mark.parametrize("before", [["b1"], []])
def test_a_parent_without_tasks(engine: ConformanceEngine, before: list[str]) -> None:
    """Scenario 47."""
    result = engine.run(flow(planned("p", None, before=before, after=["f1"]), stage("q", after=["p"])))

    happened(result, *before, "f1", "q")
    assert result.stage("p").status is S.SUCCEEDED


def test_synthetic_stages_without_tasks(engine: ConformanceEngine) -> None:
    """Scenario 47, inside: they end in the transaction that plans them."""
    result = engine.run(
        flow(
            planned(
                before=[{"name": "b1", "task": None}, {"name": "b2", "task": None, "requires": ["b1"]}],
                after=[{"name": "f1", "task": None}],
            )
        )
    )
    assert set(result.statuses().values()) == {"SUCCEEDED"}
    assert result.order() == ["p"]


@pytest.mark.parametrize(
    ("policy", "status"),
    [({}, S.TERMINAL), (CONTINUES, S.FAILED_CONTINUE), ({"failPipeline": False}, S.STOPPED)],
)
@pytest.mark.parametrize("task", ["ok", None])
def test_before_stages_that_cannot_be_planned(
    engine: ConformanceEngine, task: str | None, policy: dict[str, Any], status: S
) -> None:
    """Scenario 48; defect 9: with tasks of its own the stage stayed RUNNING for ever."""
    result = engine.run(flow(planned("p", task, before="raise", on_failure=["r1"], options=policy)))

    happened(result, "r1")
    parent = result.stage("p")
    assert parent.status is status
    assert parent.context["beforeStagePlanningFailed"] is True
    assert result.error("p") == "no before stages today"
    assert "RuntimeError" in parent.context["exception"]["details"]["traceback"]


def test_after_stages_that_cannot_be_planned(engine: ConformanceEngine) -> None:
    """Scenario 48, after."""
    result = engine.run(flow(planned(after="raise", on_failure=["r1"]), stage("q", after=["p"])))

    happened(result, "p", "r1")
    assert result.statuses() == {"p": "TERMINAL", "r1": "SUCCEEDED", "q": "NOT_STARTED"}
    assert result.error("p") == "no after stages today"


def test_on_failure_stages_that_cannot_be_planned(engine: ConformanceEngine) -> None:
    """Scenario 48, on failure: the first failure is the one that is told."""
    result = engine.run(flow(planned("p", "fail", on_failure="raise")))

    assert result.statuses() == {"p": "TERMINAL"}
    assert result.stage("p").context["error"] == "boom"


def test_data_flows_into_and_out_of_synthetic_stages(engine: ConformanceEngine) -> None:
    """Scenario 49 and decision 5; defect 23."""
    see = {"task": "see"}
    result = engine.run(
        flow(
            stage("u", outputs={"up": 1}),
            stage(
                "p",
                tasks=["see", "ok"],
                after=["u"],
                outputs={"made": 3},
                mine=2,
                plan={
                    "before": [{"name": "b", "context": {"outputs": {"x": 4}}}, {"name": "bs", **see}],
                    "after": [{"name": "fs", **see}, {"name": "f", "context": {"outputs": {"late": 5}}}],
                },
            ),
            stage("q", "see", after=["p"]),
        )
    )
    assert result.status is S.SUCCEEDED
    before, task, after, downstream = (result.seen(ref) for ref in ("bs", "p", "fs", "q"))
    assert (before["up"], before["mine"]) == (1, 2)
    assert (task["up"], task["x"]) == (1, 4)
    assert (after["up"], after["mine"], after["x"], after["made"]) == (1, 2, 4, 3)
    assert (downstream["up"], downstream["x"], downstream["made"], downstream["late"]) == (1, 4, 3, 5)
    assert "mine" not in downstream


def test_an_option_of_the_parent_is_no_option_of_its_synthetic_stages(engine: ConformanceEngine) -> None:
    """Decision 4 and defect 21: what a synthetic stage sees does not configure it."""
    result = engine.run(
        flow(planned(before=["b1!"], options={"continuePipelineOnFailure": True}), stage("q", after=["p"]))
    )
    assert result.statuses() == {"p": "FAILED_CONTINUE", "b1": "TERMINAL", "q": "SUCCEEDED"}


@pytest.mark.parametrize("phase", ["before", "after"])
def test_a_failure_elsewhere_cancels_synthetic_stages_too(engine: ConformanceEngine, phase: str) -> None:
    """Defect 27: a suspended synthetic stage was left SUSPENDED when the workflow ended."""
    gate = engine.gate()
    waits = {"name": "s", "task": "hooked", "context": {"do": [{"return": "suspend"}]}}
    run = engine.start(
        flow(
            planned(**{phase: [waits]}),
            stage("x", "script", do=[[{"wait_file": gate.path}, {"return": "terminal"}]]),
        )
    )
    engine.wait_status(run, "s", "SUSPENDED")
    gate.open()
    result = engine.wait_final(run)

    assert result.statuses() == {"p": "CANCELED", "s": "CANCELED", "x": "TERMINAL"}
    assert result.stage("s").tasks[0].status is S.CANCELED
    assert sorted(result.hooks("s")) == ["on_cancel", "on_cleanup"]
