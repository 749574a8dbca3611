"""The branches that handlers count step by step are those that a look at all stages finds, after every message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stabilize_celery import Stabilize, StageExecution, TaskResult, Workflow, WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.dag.branches import recount
from stabilize_celery.delivery.embedded import LocalPublisher
from tests.property.test_topology_properties import graphs

ENDS = ["success", "success", "success", "skipped", "failed_continue", "stopped", "canceled", "terminal"]


def end(stage: StageExecution) -> TaskResult:
    how = stage.own_context["how"]
    if how in ("failed_continue", "terminal"):
        return getattr(TaskResult, how)("boom")
    result: TaskResult = getattr(TaskResult, how)()
    return result


@dataclass(frozen=True)
class Plan:
    """What a stage requires, and how it ends."""

    requires: set[str]
    how: str
    enabled: bool


@st.composite
def plans(draw: Any) -> dict[str, Plan]:
    return {
        ref: Plan(requires, draw(st.sampled_from(ENDS)), draw(st.integers(0, 5)) < 5)
        for ref, requires in draw(graphs(min_size=1)).items()
    }


def workflow_of(planned: dict[str, Plan]) -> Workflow:
    stages = [
        StageExecution.single(
            ref, "end", requires=plan.requires, context={"how": plan.how, "stageEnabled": plan.enabled}
        )
        for ref, plan in planned.items()
    ]
    return Workflow.create("property", "random", stages)


def check(run: WorkflowRun) -> bool:
    """Compare the counts; returns whether the workflow has ended."""
    workflow = run.workflow()
    if workflow.status.is_complete:
        return True
    stages = workflow.top_level_stages()
    if workflow.status is not S.RUNNING or any(stage.status is S.TERMINAL for stage in stages):
        # Not begun, or about to end for good: nobody counts.
        return False
    count = recount(stages)
    assert workflow.live_branches == count.live
    assert workflow.has_halted == count.halted
    for stage in stages:
        if stage.status is S.NOT_STARTED:
            still_open, blocked = count.arrivals[stage.id]
            assert stage.blocked == blocked
            # What can never start does not count any more who has arrived.
            assert blocked or stage.open_upstreams == still_open
    return False


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "no-inline"])
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(planned=plans(), random=st.randoms(use_true_random=False))
def test_the_count_of_branches_is_right_after_every_message(
    inline: bool, planned: dict[str, Plan], random: Any
) -> None:
    with Stabilize.embedded(concurrency=1, inline=inline) as stabilize:
        stabilize.registry.register("end", end)
        publisher = stabilize.publisher
        assert isinstance(publisher, LocalPublisher)
        run = stabilize.start(workflow_of(planned))
        while publisher.ready:
            # Any of the messages that are ready may be handled next.
            publisher.ready.rotate(random.randrange(len(publisher.ready)))
            assert stabilize.processor.step()
            check(run)

        assert check(run)
        assert stabilize.store.count_messages() == 0
        assert run.workflow().live_branches == 0 or run.status is not S.SUCCEEDED
