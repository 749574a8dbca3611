"""Jumps: scenarios 50 to 57."""

from __future__ import annotations

from typing import Any

import pytest

from stabilize_celery import WorkflowStatus as S
from tests.conformance.harness import ConformanceEngine, flow, stage

OK = {"return": "success"}


def jump(target: str, **parts: Any) -> dict[str, Any]:
    return {"return": "jump", "target": target, **parts}


def test_a_jump_back_runs_everything_between_again(engine: ConformanceEngine) -> None:
    """Scenario 50; defect 38: times carry a timezone."""
    result = engine.run(
        flow(
            stage("a"),
            stage("b", after=["a"]),
            stage("c", "script", after=["b"], do=[jump("a", context={"why": "again"}), OK]),
            stage("d", after=["c"]),
        )
    )
    assert result.order() == ["a", "b", "c", "a", "b", "c", "d"]
    assert result.status is S.SUCCEEDED
    target = result.stage("a")
    assert target.context["why"] == "again"
    assert target.context["_jump_count"] == 1
    (entry,) = target.context["_jump_history"]
    assert {key: entry[key] for key in ("jump_number", "from_stage", "to_stage", "context_keys")} == {
        "jump_number": 1,
        "from_stage": "c",
        "to_stage": "a",
        "context_keys": ["why"],
    }
    assert entry["time"].endswith("+00:00")
    assert result.workflow.context["_jump_history"] == [entry]
    assert {stage.generation for stage in result.workflow.stages} == {1}


def test_a_jump_to_itself(engine: ConformanceEngine) -> None:
    """Scenario 51."""
    result = engine.run(flow(stage("b", "script", do=[jump("b"), OK])))

    assert result.order() == ["b", "b"]
    assert result.status is S.SUCCEEDED


def test_a_jump_forward_passes_over_what_lies_between(engine: ConformanceEngine) -> None:
    """Scenario 52."""
    leap = jump("d", context={"why": "late"}, outputs={"found": 7})
    result = engine.run(
        flow(
            stage("a", "script", do=[leap]),
            stage("b", after=["a"]),
            stage("c", after=["b"]),
            stage("d", "see", after=["c"]),
            stage("e", after=["d"]),
        )
    )
    assert result.order() == ["a", "d", "e"]
    assert result.statuses() == {
        "a": "SUCCEEDED",
        "b": "SKIPPED",
        "c": "SKIPPED",
        "d": "SUCCEEDED",
        "e": "SUCCEEDED",
    }
    assert result.seen("d")["why"] == "late"
    assert result.seen("d")["found"] == 7
    assert result.status is S.SUCCEEDED


@pytest.mark.parametrize(("limit", "executions"), [(None, 11), (2, 3), (0, 1)])
def test_jumps_are_limited(engine: ConformanceEngine, limit: int | None, executions: int) -> None:
    """Scenario 53; the failure policy of the source does not count."""
    context = {} if limit is None else {"_max_jumps": limit}
    result = engine.run(
        flow(stage("a", "script", do=[jump("a")], continuePipelineOnFailure=True), context=context)
    )
    most = 10 if limit is None else limit
    assert result.executions("a") == executions
    assert result.stage("a").status is S.TERMINAL
    assert result.tasks("a") == ["TERMINAL"]
    assert result.stage("a").context["jump_error"] == f"Max jump count exceeded: {most}/{most}"
    assert len(result.workflow.context.get("_jump_history", [])) == most
    assert result.status is S.TERMINAL


def test_the_limit_is_that_of_the_execution(engine: ConformanceEngine) -> None:
    """Decision 11: two stages that jump share it."""
    result = engine.run(
        flow(
            stage("a", "script", do=[jump("a")]),
            stage("b", "script", do=[jump("b")]),
            context={"_max_jumps": 4},
        )
    )
    assert result.status is S.TERMINAL
    history = result.workflow.context["_jump_history"]
    assert [entry["jump_number"] for entry in history] == [1, 2, 3, 4]


@pytest.mark.parametrize("target", ["nope", ""])
def test_a_jump_to_an_unknown_stage(engine: ConformanceEngine, target: str) -> None:
    """Scenario 54."""
    result = engine.run(flow(stage("a", "script", do=[jump(target)]), stage("b", after=["a"])))

    assert result.statuses() == {"a": "TERMINAL", "b": "NOT_STARTED"}
    assert result.stage("a").context["jump_error"] == f"Target stage not found: {target or '(none)'}"
    assert result.status is S.TERMINAL


def test_a_join_that_is_fed_from_outside_waits_and_runs_once(engine: ConformanceEngine) -> None:
    """Scenario 55."""
    gate = engine.gate()
    run = engine.start(
        flow(
            stage("a"),
            stage("b", "script", after=["a"], do=[jump("a"), OK]),
            stage("x", "script", do=[{"wait_file": gate.path}]),
            stage("j", after=["b", "x"]),
        )
    )
    engine.wait_until(lambda: engine.result(run).statuses()["b"] == "SUCCEEDED", run=run)
    assert engine.result(run).stage("j").status is S.NOT_STARTED
    gate.open()
    result = engine.wait_final(run)

    assert [ref for ref in result.order() if ref != "x"] == ["a", "b", "a", "b", "j"]
    assert result.status is S.SUCCEEDED


def test_a_join_on_the_way_back_runs_again(engine: ConformanceEngine) -> None:
    """No result of an earlier pass counts for a later one, though the join is fed from outside as well."""
    result = engine.run(
        flow(
            stage("a"),
            stage("x"),
            stage("j", after=["a", "x"]),
            stage("k", "script", after=["j"], do=[jump("a"), OK]),
            stage("z", after=["k"]),
        )
    )
    order = result.order()
    assert set(order[:2]) == {"a", "x"}
    assert order[2:] == ["j", "k", "a", "j", "k", "z"]
    assert result.status is S.SUCCEEDED


def test_before_stages_run_once_in_each_pass(engine: ConformanceEngine) -> None:
    """Scenario 56; defect 16: they ran two times, three times, four times."""
    result = engine.run(
        flow(
            stage("a", plan={"before": [{"name": "b1"}], "after": [{"name": "f1"}]}),
            stage("c", "script", after=["a"], do=[jump("a"), jump("a"), jump("a"), OK]),
        )
    )
    assert result.order() == ["b1", "a", "f1", "c"] * 4
    assert len(result.workflow.stages) == 4, "synthetic stages of earlier passes are left"
    assert result.status is S.SUCCEEDED


def test_a_jump_into_a_join_whose_other_branch_still_runs(engine: ConformanceEngine) -> None:
    """Scenario 57; defect 12: the workflow stayed RUNNING with nothing left to do."""
    gate = engine.gate()
    run = engine.start(
        flow(
            stage("a", "script", do=[jump("j")]),
            stage("b", after=["a"]),
            stage("slow", "script", do=[{"wait_file": gate.path}]),
            stage("j", after=["b", "slow"]),
            stage("k", after=["j"]),
        )
    )
    engine.wait_status(run, "k", "SUCCEEDED")
    assert run.status is S.RUNNING
    gate.open()
    result = engine.wait_final(run)

    assert [ref for ref in result.order() if ref in "jk"] == ["j", "k"]
    assert result.stage("b").status is S.SKIPPED
    assert result.status is S.SUCCEEDED


@pytest.mark.parametrize("phase", ["before", "after"])
def test_a_jump_out_of_a_synthetic_stage_resets_its_parent(engine: ConformanceEngine, phase: str) -> None:
    """Defect 11: the parent stayed RUNNING for ever."""
    leaper = {"name": "s", "task": "script", "context": {"do": [jump("a"), OK]}}
    result = engine.run(
        flow(stage("a"), stage("p", after=["a"], plan={phase: [leaper]}), stage("q", after=["p"]))
    )
    passes = ["a", "s", "a", "s", "p", "q"] if phase == "before" else ["a", "p", "s", "a", "p", "s", "q"]
    assert result.order() == passes
    assert len(result.workflow.stages) == 4
    assert result.status is S.SUCCEEDED


def test_a_jump_forward_out_of_a_synthetic_stage_passes_over_its_parent(engine: ConformanceEngine) -> None:
    """Defect 11, forward; another synthetic stage that still runs is canceled, and told."""
    never = engine.gate("never")
    leaper = {"name": "s", "task": "script", "context": {"do": [jump("z")]}}
    other = {"name": "o", "task": "hooked", "context": {"do": [{"wait_file": never.path}]}}
    ready = engine.gate("ready")
    leaper["context"]["do"] = [[{"wait_file": ready.path}, jump("z")]]
    run = engine.start(
        flow(
            stage("p", plan={"before": [leaper, other]}),
            stage("q", after=["p"]),
            stage("z", after=["q"]),
        )
    )
    engine.wait_event(run, "o")
    ready.open()
    result = engine.wait_final(run)

    assert result.statuses() == {"p": "SKIPPED", "q": "SKIPPED", "z": "SUCCEEDED"}
    assert sorted(result.hooks("o")) == ["on_cancel", "on_cleanup"], "hooks of a stage that is gone"
    assert result.status is S.SUCCEEDED


def test_a_rollback_may_jump_back_to_the_stage_that_failed(engine: ConformanceEngine) -> None:
    """Error recovery: an on-failure stage sends its parent round again."""
    retry = {"name": "r", "task": "script", "context": {"do": [jump("p")]}}
    result = engine.run(
        flow(
            stage("p", "script", do=[{"return": "terminal"}, OK], plan={"on_failure": [retry]}),
            stage("q", after=["p"]),
        )
    )
    assert result.order() == ["p", "r", "p", "q"]
    assert result.statuses() == {"p": "SUCCEEDED", "q": "SUCCEEDED"}
    assert "exception" not in result.stage("p").context
    assert "error" not in result.stage("p").context
    assert result.status is S.SUCCEEDED


def test_a_result_of_an_earlier_pass_does_not_count(engine: ConformanceEngine) -> None:
    """Defect 17: the result of a task that was reset while it ran was taken for that of the new pass."""
    hold, leap = engine.gate("hold"), engine.gate("leap")
    run = engine.start(
        flow(
            stage("a"),
            stage(
                "slow",
                "hooked",
                after=["a"],
                do=[
                    [{"wait_file": hold.path}, {"return": "success", "outputs": {"pass": 1}}],
                    {"return": "success", "outputs": {"pass": 2}},
                ],
            ),
            stage("c", "script", after=["a"], do=[[{"wait_file": leap.path}, jump("a")], OK]),
            stage("j", "see", after=["slow", "c"]),
        )
    )
    engine.wait_event(run, "slow")
    leap.open()
    engine.wait_event(run, "slow", count=2)
    hold.open()
    result = engine.wait_final(run)

    assert result.executions("slow") == 2
    assert result.executions("j") == 1
    assert result.seen("j")["pass"] == 2
    assert result.stage("slow").outputs == {"pass": 2}
    assert result.hooks("slow").count("on_cancel") == 1
    assert result.status is S.SUCCEEDED


def test_what_an_earlier_pass_put_out_is_not_seen(engine: ConformanceEngine) -> None:
    """A stage that gives an output only in its first pass has none after the second."""
    first = {"return": "success", "outputs": {"once": 1}}
    result = engine.run(
        flow(
            stage("a", "script", do=[first, OK]),
            stage("b", "script", after=["a"], do=[jump("a"), OK]),
            stage("c", "see", after=["b"]),
        )
    )
    assert "once" not in result.seen("c")


def test_every_pass_is_cleaned_up_after_with_what_it_left(engine: ConformanceEngine) -> None:
    """A hook of a pass that was reset sees that pass."""
    result = engine.run(
        flow(
            stage("a", "hooked", do=[{"return": "success", "outputs": {"n": 1}}]),
            stage("b", "hooked", after=["a"], do=[jump("a"), OK]),
        )
    )
    assert result.hooks("a") == ["on_cleanup", "on_cleanup"]
    assert result.hooks("b") == ["on_cleanup", "on_cleanup"]
    assert [entry["generation"] for entry in result.events("on_cleanup", "b")] == [0, 1]
