"""What is refused when a workflow is created, and what is set on the stages of one that is not."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from stabilize_celery.errors import (
    CircularDependencyError,
    ExpressionError,
    InvalidStageGraphError,
    InvalidWorkflowError,
    UnknownReducerError,
)
from stabilize_celery.models.stage import StageExecution, SyntheticStageOwner
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.validation import validate_workflow
from stabilize_celery.models.workflow import Trigger, Workflow


def stage(ref: str = "a", *requires: str, **kwargs: Any) -> StageExecution:
    return StageExecution.single(ref, "noop", requires=requires, **kwargs)


def create(*stages: StageExecution, **kwargs: Any) -> Workflow:
    return Workflow.create("app", "flow", stages, **kwargs)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], r"^no_stages: workflow 'flow'"),
        ([StageExecution(name="x")], r"^empty_ref: stage 1 \(x\)"),
        ([stage("a"), stage(" ")], r"^empty_ref: stage 2"),
        ([StageExecution(ref_id=7)], r"^empty_ref: stage 1 needs text as ref_id, not 7"),  # type: ignore[arg-type]
        ([stage("a"), stage("b"), stage("b"), stage("a")], r"^duplicate_ref: a, b occurs"),
        ([stage("a", "a")], r"^self_edge: stage a requires itself"),
        (
            [stage("build"), stage("b", "zz", "biuld")],
            r"^unknown_ref: stage b requires biuld, zz, .*did you mean 'build'\?",
        ),
    ],
)
def test_stages_that_form_no_graph(stages, message) -> None:
    with pytest.raises(InvalidStageGraphError, match=message):
        create(*stages)


def test_problems_are_reported_in_a_fixed_order() -> None:
    with pytest.raises(InvalidStageGraphError, match=r"^duplicate_ref"):
        create(stage("a", "a"), stage("a", "ghost"))
    with pytest.raises(InvalidStageGraphError, match=r"^self_edge"):
        create(stage("a", "a", "ghost"))


def test_a_circle_names_its_members_only() -> None:
    with pytest.raises(CircularDependencyError, match="b -> c -> b") as caught:
        create(stage("a"), stage("b", "a", "c"), stage("c", "b"), stage("d", "c"))
    assert caught.value.stages == ["b", "c"]


def test_a_synthetic_stage_is_for_builders() -> None:
    parent = stage("a")
    child = StageExecution.create_synthetic("noop", "check", parent, SyntheticStageOwner.STAGE_BEFORE)
    with pytest.raises(InvalidStageGraphError, match=r"^synthetic_stage: stage 2 \(check\)"):
        create(parent, child)


def test_a_task_in_two_stages_is_refused() -> None:
    task = TaskExecution.create("t", "noop")
    with pytest.raises(InvalidStageGraphError, match=r"^duplicate_id: .* use every TaskExecution once"):
        create(StageExecution(ref_id="a", tasks=[task]), StageExecution(ref_id="b", tasks=[task]))


def test_an_unknown_reducer_is_named_with_the_known_ones() -> None:
    message = r"stage j: output_reducers\['total'\]: .*'summ', did you mean 'sum'\?; known are append, .*sum"
    with pytest.raises(UnknownReducerError, match=message):
        create(stage("j", output_reducers={"total": "summ"}))


@pytest.mark.parametrize("option", [True, False, None, {}, {"type": "expression", "expression": "a.n > 5"}])
def test_accepted_forms_of_stage_enabled(option) -> None:
    assert create(stage(context={"stageEnabled": option})).stages[0].rank == [0, 0]


@pytest.mark.parametrize("condition", ["a.n >", "open('x')", 5, None])
def test_a_condition_that_cannot_be_parsed(condition) -> None:
    option = {"type": "expression", "expression": condition}
    with pytest.raises(ExpressionError, match="stage a: stageEnabled: "):
        create(stage(context={"stageEnabled": option}))


@pytest.mark.parametrize("option", ["a.n > 5", 1, {"type": "expression"}, {"expression": "x"}, []])
def test_a_stage_enabled_of_another_shape(option) -> None:
    with pytest.raises(InvalidWorkflowError, match="stage a: stageEnabled must be true, false or"):
        create(stage(context={"stageEnabled": option}))


def test_values_that_are_not_json_are_named_with_their_place() -> None:
    with pytest.raises(InvalidWorkflowError, match=r"stage a: context\.k\[1\]: a value of type set"):
        create(stage(context={"k": [1, {2}]}))
    with pytest.raises(InvalidWorkflowError, match=r"workflow flow: context\.x: nan"):
        create(stage(), context={"x": float("nan")})
    with pytest.raises(InvalidWorkflowError, match=r"workflow flow: trigger\.payload\.at: .*isoformat"):
        create(stage(), trigger=Trigger(payload={"at": datetime.now(UTC)}))
    with pytest.raises(InvalidWorkflowError, match="stage a: context must be a mapping, not of type list"):
        create(StageExecution(ref_id="a", context=[1]))  # type: ignore[arg-type]


def test_nul_is_fine_in_values_and_refused_in_names() -> None:
    assert create(stage(context={"k": "a\0b"})).stages[0].context == {"k": "a\0b"}
    for broken in ("a\0", "\ud800"):
        with pytest.raises(InvalidWorkflowError, match="cannot be stored"):
            create(stage(broken))
        with pytest.raises(InvalidWorkflowError, match="stage a: name has characters"):
            create(stage(name=broken))


@pytest.mark.parametrize("jumps", [-1, True, 1.0, "3", None])
def test_max_jumps_is_a_whole_number_from_zero(jumps) -> None:
    with pytest.raises(InvalidWorkflowError, match="_max_jumps must be a whole number from 0"):
        create(stage(), context={"_max_jumps": jumps})
    assert create(stage(), context={"_max_jumps": 0}).context == {"_max_jumps": 0}


@pytest.mark.parametrize("expiry", [datetime(2030, 1, 1), 1_900_000_000_000])  # noqa: DTZ001
def test_times_have_a_timezone(expiry) -> None:
    with pytest.raises(InvalidWorkflowError, match=r"stage a: start_time_expiry .* timezone"):
        create(StageExecution(ref_id="a", start_time_expiry=expiry))
    with pytest.raises(InvalidWorkflowError, match="workflow flow: start_time_expiry"):
        create(stage(), start_time_expiry=expiry)


def test_a_task_type_is_text_and_not_a_class() -> None:
    with pytest.raises(InvalidWorkflowError, match="stage a: type of task 't' must be text"):
        create(StageExecution(ref_id="a", tasks=[TaskExecution.create("t", TaskExecution)]))  # type: ignore[arg-type]


def test_stages_are_numbered_in_topological_order() -> None:
    workflow = create(stage("join", "b", "c"), stage("c", "a"), stage("b", "a"), stage("a"))
    placed = {s.ref_id: (s.rank, s.upstream_count, s.open_upstreams) for s in workflow.stages}
    assert placed == {
        "a": ([0, 0], 0, 0),
        "b": ([1, 0], 1, 1),
        "c": ([2, 0], 1, 1),
        "join": ([3, 0], 2, 2),
    }


def test_first_and_last_tasks_are_marked_by_their_place_in_the_list() -> None:
    tasks = [TaskExecution.create(name, "noop", stage_start=True, stage_end=True) for name in "abc"]
    create(StageExecution(ref_id="a", tasks=tasks))
    assert [(t.stage_start, t.stage_end) for t in tasks] == [(True, False), (False, False), (False, True)]


def test_validation_can_be_repeated() -> None:
    workflow = create(stage("a"), stage("b", "a"))
    before = repr(workflow)
    validate_workflow(workflow)
    assert repr(workflow) == before


@pytest.mark.parametrize("milliseconds", ["200", True, -1, 1e300, [1]])
def test_a_time_limit_of_a_stage_that_is_none(milliseconds: Any) -> None:
    with pytest.raises(InvalidWorkflowError, match="stage a: stageTimeoutMs is a number of milliseconds"):
        create(stage(context={"stageTimeoutMs": milliseconds}))
    assert create(stage(context={"stageTimeoutMs": 0.5})).stages[0].context == {"stageTimeoutMs": 0.5}
