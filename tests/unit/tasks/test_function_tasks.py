"""Functions as tasks: parameters by name, filled and checked."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field

from stabilize_celery import Stabilize, StageExecution, TaskResult, Workflow, WorkflowFailedError
from stabilize_celery.tasks.function import CallableTask
from stabilize_celery.tasks.run import TaskRun


class Order(BaseModel):
    id: int
    due: date | None = None


def run(
    function: Any, context: dict[str, Any] | None = None, upstream: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Run a function as the second of two stages and return the outputs of the workflow."""
    with Stabilize.embedded(concurrency=1) as engine:
        engine.task("before")(lambda _: upstream or {})
        engine.task("under_test")(function)
        stages = [
            StageExecution.single("before", "before"),
            StageExecution.single("charge", "under_test", context=context, requires=["before"]),
        ]
        return engine.run(Workflow.create("test", "functions", stages), timeout=10).get(timeout=0)


def test_values_come_from_own_context_and_from_upstream() -> None:
    def charge(order_id: int, amount: float, stage: StageExecution, currency: str = "EUR") -> dict[str, Any]:
        return {"charged": [order_id, amount, currency, stage.ref_id]}

    assert run(charge, {"amount": "9.5"}, {"order_id": "42", "amount": 1})["charged"] == [
        42,
        9.5,
        "EUR",
        "charge",
    ]


def test_models_are_built_and_returned() -> None:
    def charge(order: Order) -> Order:
        assert order.due == date(2026, 1, 2)
        return Order(id=order.id + 1, due=order.due)

    outputs = run(charge, {"order": {"id": 1, "due": "2026-01-02"}})
    assert (outputs["id"], outputs["due"]) == (2, "2026-01-02")


def test_the_run_and_the_rest() -> None:
    def charge(a: int, run: TaskRun, **rest: Any) -> dict[str, Any]:
        return {"seen": [a, run.attempt, sorted(rest)]}

    assert run(charge, {"a": 1, "b": 2}, {"c": 3})["seen"] == [1, 1, ["b", "c"]]


@pytest.mark.parametrize("function", [lambda stage: {"ref": stage.ref_id}, lambda s: {"ref": s.ref_id}])
def test_one_plain_parameter_is_the_stage(function: Any) -> None:
    assert run(function)["ref"] == "charge"


def test_a_wrong_value_names_stage_parameter_and_value() -> None:
    def charge(order_id: Annotated[int, Field(gt=0)]) -> None: ...

    with pytest.raises(WorkflowFailedError) as failure:
        run(charge, {"order_id": "many"})
    message = failure.value.errors["charge"]
    assert "stage charge" in message
    assert "parameter order_id" in message
    assert "'many'" in message


def test_a_missing_value_is_named_with_a_suggestion() -> None:
    def charge(order_id: int) -> None: ...

    with pytest.raises(WorkflowFailedError) as failure:
        run(charge, {"orderid": 1})
    assert "'order_id'" in failure.value.errors["charge"]
    assert "did you mean 'orderid'?" in failure.value.errors["charge"]


def test_a_wrong_value_is_not_tried_again() -> None:
    calls = []

    def charge(timeout_in_retry_connection: int) -> None:
        calls.append(timeout_in_retry_connection)

    with pytest.raises(WorkflowFailedError):
        run(charge, {"timeout_in_retry_connection": "x"})
    assert calls == []


def test_unfillable_parameters_are_a_clear_failure() -> None:
    def charge(*numbers: int) -> None: ...

    with pytest.raises(WorkflowFailedError) as failure:
        run(charge)
    assert "*numbers cannot be filled by name" in failure.value.errors["charge"]


def test_a_result_is_passed_through() -> None:
    task = CallableTask(lambda stage: TaskResult.skipped())
    assert task.execute(StageExecution()) == TaskResult.skipped()
