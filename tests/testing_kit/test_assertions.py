"""What the assertions let pass, what they refuse, and what they say then."""

from __future__ import annotations

import pytest

from stabilize_celery import StageExecution, TaskResult, Workflow
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.testing import (
    assert_failed,
    assert_order,
    assert_stage,
    assert_status,
    assert_succeeded,
    draw,
)


@pytest.fixture
def run(stabilize):
    stabilize.stub("charge", returns={"charge_id": 7})
    stabilize.stub("ship", raises=ValueError("no parcels left"))
    return stabilize.run(
        Workflow.create(
            "shop",
            "order",
            [
                StageExecution.single("charge", "charge", {"order": 42}),
                StageExecution.single("ship", "ship", requires={"charge"}),
                StageExecution.single("thank", "noop", requires={"ship"}),
            ],
        )
    )


def refused(*expected, check):
    with pytest.raises(AssertionError) as caught:
        check()
    told = str(caught.value)
    for text in expected:
        assert text in told
    return told


def test_what_is_so_passes(run):
    assert_status(run, "TERMINAL")
    assert_status(run, S.TERMINAL)
    assert_failed(run)
    assert_failed(run, "ship", "parcels")
    assert_stage(
        run, "charge", status="SUCCEEDED", outputs={"charge_id": 7}, context={"order": 42}, attempts=1
    )
    assert_stage(run, "ship", status=S.TERMINAL, error="no parcels left", outputs={})
    assert assert_stage(run, "thank", status="NOT_STARTED").ref_id == "thank"
    assert_order(run, "charge", "ship")


def test_whoever_is_wrong_is_shown_the_workflow(run):
    told = refused("the workflow is TERMINAL, not SUCCEEDED", check=lambda: assert_succeeded(run))
    assert draw(run) in told
    for text in ("shop/order", "charge", "ship", "thank", "no parcels left", "NOT_STARTED", run.id):
        assert text in told


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (lambda run: assert_failed(run, "charge"), "stage charge is SUCCEEDED and has not failed"),
        (
            lambda run: assert_failed(run, "ship", "fire"),
            "no error contains 'fire'; ship: ValueError: no parcels left",
        ),
        (
            lambda run: assert_failed(run, error="fire"),
            "no error contains 'fire'; ship: ValueError: no parcels left",
        ),
        (lambda run: assert_stage(run, "shipp"), "there is no stage 'shipp', did you mean 'ship'"),
        (lambda run: assert_stage(run, "ship", status="STOPPED"), "stage ship is TERMINAL, not STOPPED"),
        (lambda run: assert_stage(run, "charge", attempts=2), "stage charge took 1 attempts, not 2"),
        (
            lambda run: assert_stage(run, "charge", outputs={"charge_id": 8, "x": 1}),
            "the outputs of stage charge: 'charge_id' is 7, not 8; 'x' is missing, not 1\n  they are {'charge_id': 7}",
        ),
        (
            lambda run: assert_stage(run, "charge", context={"order": 43}),
            "the context of stage charge: 'order' is 42, not 43",
        ),
        (
            lambda run: assert_stage(run, "charge", error="x"),
            "the error of stage charge is '' and does not contain 'x'",
        ),
        (lambda run: assert_order(run, "ship", "charge"), "stage ship had not ended when charge started"),
        (lambda run: assert_order(run, "ship", "charge"), "in the order charge < ship"),
        (lambda run: assert_order(run, "ship", "thank"), "stage thank has not started"),
        (lambda run: assert_order(run, "ship", "tank"), "there is no stage 'tank'"),
    ],
)
def test_what_is_not_so_is_refused(run, check, message):
    refused(message, draw(run), check=lambda: check(run))


def test_outputs_of_the_workflow_are_compared(stabilize):
    stabilize.stub("charge", returns={"charge_id": 7, "more": 1})
    run = stabilize.run(Workflow.create("shop", "order", [StageExecution.single("charge", "charge")]))
    assert_succeeded(run, {"charge_id": 7})
    refused(
        "the workflow's outputs: 'charge_id' is 7, not 8",
        check=lambda: assert_succeeded(run, {"charge_id": 8}),
    )


def test_side_by_side_is_no_order(stabilize):
    ask = StageExecution.single("ask", "approval")
    run = stabilize.run(Workflow.create("shop", "order", [ask, StageExecution.single("other", "noop")]))
    refused("stage ask had not ended when other started", check=lambda: assert_order(run, "ask", "other"))


def test_an_order_is_that_of_the_first_pass(stabilize):
    stabilize.stub("write", returns={})
    stabilize.stub("review", results=[TaskResult.jump_to("write"), {}])
    review = StageExecution.single("review", "review", requires={"write"})
    run = stabilize.run(Workflow.create("docs", "jump", [StageExecution.single("write", "write"), review]))
    assert_succeeded(run)
    assert_order(run, "write", "review")


def test_stages_of_the_same_name_are_not_told_apart(stabilize):
    pair = [StageExecution.single(ref, "noop", name="Pack") for ref in ("a", "b")]
    run = stabilize.run(Workflow.create("shop", "order", pair))
    assert_stage(run, "a", status="SUCCEEDED")
    refused("2 stages are called 'Pack'", check=lambda: assert_stage(run, "Pack"))


def test_mistakes_of_the_test_itself_are_no_failures_of_the_workflow(run):
    with pytest.raises(ValueError, match="no status 'TERMINATED', did you mean 'TERMINAL'"):
        assert_status(run, "TERMINATED")
    with pytest.raises(ValueError, match="two stages at least"):
        assert_order(run, "charge")
