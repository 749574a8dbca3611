"""What a stage sees of those before it: scenarios 24 to 28 and 37, and decision 3."""

from __future__ import annotations

from typing import Any

import pytest

from stabilize_celery import StageExecution, Workflow
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.errors import UnknownReducerError
from tests.conformance.harness import ConformanceEngine, flow, stage


def out(ref: str, after: list[str] | None = None, **outputs: Any) -> StageExecution:
    """A stage with these outputs."""
    return stage(ref, after=after or [], outputs=outputs)


@pytest.mark.parametrize(
    ("reducers", "seen"),
    [
        pytest.param({}, {"l": [2, 3], "s": "b"}, id="last-wins"),
        pytest.param({"l": "extend"}, {"l": [1, 2, 2, 3], "s": "b"}, id="extend"),
        pytest.param({"l": "collect"}, {"l": [[1, 2], [2, 3]], "s": "b"}, id="collect"),
        pytest.param({"s": "first", "l": "last"}, {"l": [2, 3], "s": "a"}, id="first-and-last"),
    ],
)
def test_a_join_sees_the_last_value_unless_it_declares_a_reducer(
    engine: ConformanceEngine, reducers: dict[str, str], seen: dict[str, Any]
) -> None:
    """Scenario 24."""
    result = engine.run(
        flow(
            out("a", l=[1, 2], s="a"),
            out("b", l=[2, 3], s="b"),
            stage("j", "see", ["a", "b"], output_reducers=reducers),
        )
    )

    assert result.seen("j") == seen


def test_last_means_last_in_topological_order_not_in_time(engine: ConformanceEngine) -> None:
    """Scenario 24: the smaller ref_id ends later and still comes first."""
    gate = engine.gate()
    run = engine.start(
        flow(
            stage(
                "a", "script", do=[[{"wait_file": gate.path}, {"return": "success", "outputs": {"s": "a"}}]]
            ),
            out("b", s="b"),
            stage("j", "see", ["a", "b"]),
        )
    )
    engine.wait_status(run, "b", "SUCCEEDED")
    gate.open()

    assert engine.settle(run).seen("j") == {"s": "b"}


def test_a_stage_later_in_topological_order_beats_a_greater_ref_id(engine: ConformanceEngine) -> None:
    """Scenario 25."""
    result = engine.run(flow(out("z", s="z"), out("a", ["z"], s="a"), stage("j", "see", ["z", "a"])))

    assert result.seen("j") == {"s": "a"}


@pytest.mark.parametrize(
    ("upstream", "own"),
    [("up", "own"), ([1, 2], [3]), ({"a": 1}, {"b": 2}), ("up", None)],
    ids=["text", "list", "mapping", "null"],
)
def test_own_context_beats_what_comes_from_upstream(
    engine: ConformanceEngine, upstream: Any, own: Any
) -> None:
    """Scenario 26."""
    result = engine.run(flow(out("a", k=upstream), stage("b", "see", ["a"], k=own)))

    assert result.seen("b") == {"k": own}


def test_outputs_of_every_ancestor_are_seen(engine: ConformanceEngine) -> None:
    """Scenario 27; the stage between saw a value and did not take it over."""
    result = engine.run(
        flow(out("a", x=1, y=1), out("b", ["a"], y=2), stage("c", "see", ["b"]), out("other", z=9))
    )

    assert result.seen("c") == {"x": 1, "y": 2}
    assert result.stage("c").context == {}
    assert result.stage("b").outputs == {"y": 2}


def test_the_next_task_sees_the_context_and_the_outputs_of_the_one_before(engine: ConformanceEngine) -> None:
    """Scenario 28."""
    step = {"return": "success", "context": {"c": "context"}, "outputs": {"o": "output"}}
    result = engine.run(
        flow(stage("a", tasks={"first": "script", "second": "outputs"}, do=[step]), stage("b", "see", ["a"]))
    )

    assert result.stage("a").outputs["second saw"] == {
        "context": "context",
        "outputs": {"o": "output"},
        "o": None,
    }
    # The context of a stage is its own: only outputs go on.
    assert "c" not in result.seen("b")
    assert result.seen("b")["o"] == "output"


@pytest.mark.parametrize(
    ("reducer", "values", "reduced"),
    [
        ("sum", [1, 2, 3], 6),
        ("collect", ["x", "y", "z"], ["x", "y", "z"]),
        ("extend", [["x"], ["y", "x"], []], ["x", "y", "x"]),
        ("max", [2, 3, 1], 3),
        ("min", [2, 3, 1], 1),
        ("merge", [{"a": 1}, {"b": 2}, {"a": 3}], {"a": 3, "b": 2}),
        ("first", [1, 2, 3], 1),
        ("last", [1, 2, 3], 3),
    ],
)
def test_a_join_combines_what_it_declares(
    engine: ConformanceEngine, reducer: str, values: list[Any], reduced: Any
) -> None:
    """Scenario 37."""
    refs = ["a", "b", "c"]
    result = engine.run(
        flow(
            *(out(ref, k=value) for ref, value in zip(refs, values, strict=True)),
            out("without"),
            stage("j", "see", [*refs, "without"], output_reducers={"k": reducer}),
        )
    )

    assert result.seen("j") == {"k": reduced}


def test_synthetic_stages_of_a_join_see_what_it_combined(engine: ConformanceEngine) -> None:
    """Scenario 37 and decision 5: they see everything their parent sees."""
    plan = {phase: [{"name": phase, "task": "see"}] for phase in ("before", "after")}
    result = engine.run(
        flow(
            out("a", n=1),
            out("b", n=2),
            stage("j", "see", ["a", "b"], output_reducers={"n": "sum"}, plan=plan),
        )
    )

    assert [result.seen(ref)["n"] for ref in ("before", "j", "after")] == [3, 3, 3]


def test_what_a_join_combined_is_not_an_output_of_its_own(engine: ConformanceEngine) -> None:
    """Scenario 37: the stage after the join sees the last value again, as nobody produced the sum."""
    result = engine.run(
        flow(
            out("a", n=1),
            out("b", n=2),
            stage("j", "see", ["a", "b"], output_reducers={"n": "sum"}),
            stage("after", "see", ["j"]),
        )
    )

    assert result.seen("j") == {"n": 3}
    assert result.seen("after")["n"] in (2, 3)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="seen-by-a-task"),
        pytest.param({"plan": {"before": [{"name": "b1"}]}}, id="seen-by-a-builder"),
        pytest.param(
            {"stageEnabled": {"type": "expression", "expression": "n > 1"}}, id="seen-by-a-condition"
        ),
    ],
)
def test_a_value_that_cannot_be_combined_fails_the_join(
    engine: ConformanceEngine, options: dict[str, Any]
) -> None:
    """Scenario 37."""
    join = stage("j", "see", ["a", "b"], output_reducers={"n": "sum"}, **options)
    result = engine.run(flow(out("a", n=1), out("b", n="two"), join))

    assert result.statuses() == {"a": "SUCCEEDED", "b": "SUCCEEDED", "j": "TERMINAL"}
    assert result.executions("j") == 0
    assert "'sum' cannot combine the values of key 'n'" in result.error("j")
    assert result.status is S.TERMINAL


def test_an_unknown_reducer_is_refused_when_the_workflow_is_made() -> None:
    """Decision 3."""
    with pytest.raises(UnknownReducerError, match="average"):
        Workflow.create(
            "conformance", "bad", [out("a"), stage("j", "see", ["a"], output_reducers={"n": "average"})]
        )


def test_an_upstream_output_configures_nothing(engine: ConformanceEngine) -> None:
    """Decision 4: engine options are read from the stage's own context only."""
    result = engine.run(
        flow(
            out(
                "a",
                continuePipelineOnFailure=True,
                failPipeline=False,
                stageEnabled=False,
                manualSkip=True,
                stageTimeoutMs=1,
            ),
            stage("b", "fail", ["a"]),
        )
    )

    assert result.statuses() == {"a": "SUCCEEDED", "b": "TERMINAL"}
    assert result.executions("b") == 1


@pytest.mark.parametrize(
    ("step", "names"),
    [
        pytest.param({"return": "bytes"}, "blob", id="not-json"),
        pytest.param({"return": "huge", "size": 2_000_000}, "outputs", id="too-large"),
        pytest.param({"return": "nan"}, "n", id="not-a-number"),
    ],
)
def test_outputs_that_cannot_be_stored_fail_the_task_and_say_which(
    engine: ConformanceEngine, step: dict[str, Any], names: str
) -> None:
    """A value that is not JSON names its key; one that is too large the limit."""
    result = engine.run(flow(stage("a", "script", do=[step]), stage("b", after=["a"])))

    assert result.statuses() == {"a": "TERMINAL", "b": "NOT_STARTED"}
    assert result.executions("a") == 1
    assert names in result.error("a")
    assert "stage a" in result.error("a")
    assert result.stage("a").outputs == {}
    assert result.status is S.TERMINAL


def test_a_running_task_sees_the_stages_around_it(engine: ConformanceEngine) -> None:
    result = engine.run(
        flow(
            stage("a", outputs={"n": 1}),
            stage("b", outputs={"n": 2}, after=["a"]),
            stage("c", after=["a"]),
            stage("d", "around", after=["b", "c"]),
            stage("e", after=["d"]),
        )
    )

    wanted = {
        "requires": ["b", "c"],
        "join": True,
        "initial": False,
        "upstream": ["b", "c"],
        "downstream": ["e"],
        "ancestors": ["a", "b", "c"],
        "all": {"a": "SUCCEEDED", "b": "SUCCEEDED", "c": "SUCCEEDED", "d": "RUNNING", "e": "NOT_STARTED"},
        "itself": True,
        "all of n": [2, 1],
        "n": 2,
    }
    assert result.status is S.SUCCEEDED
    assert result.stage("d").outputs["around"] == wanted
    hook = engine.wait_event(result.run, "d", "on_cleanup").events("on_cleanup", "d")[0]["around"]
    assert {**hook, "all": {}} == {**wanted, "all": {}}


def test_a_synthetic_stage_sees_its_parent_and_what_is_before_it(engine: ConformanceEngine) -> None:
    plan = {"before": [{"name": "x", "task": "around"}]}
    result = engine.run(flow(stage("a", outputs={"n": 1}), stage("b", after=["a"], plan=plan)))

    around = result.stage("x").outputs["around"]
    assert around["ancestors"] == ["a", "b"]
    assert around["all"]["b"] == "RUNNING"
    assert around["itself"] is True
