"""Counting branches from the statuses alone, by examples; the incremental count has a property of its own."""

from __future__ import annotations

import pytest

from stabilize_celery.dag.branches import recount
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S


def stages_of(text: str) -> list[StageExecution]:
    """Stages from lines such as ``join:NOT_STARTED < a b``; a star releases one."""
    stages = []
    for line in text.split(";"):
        head, _, requires = line.strip().partition(" < ")
        ref, _, status = head.partition(":")
        stage = StageExecution(
            id=ref, ref_id=ref, status=S[status.rstrip("*")], requisite_stage_ref_ids=set(requires.split())
        )
        stage.released = status.endswith("*")
        stages.append(stage)
    return stages


@pytest.mark.parametrize(
    ("text", "live", "ready", "halted"),
    [
        pytest.param("a:RUNNING; b:NOT_STARTED < a", 1, "", False, id="one-at-work"),
        pytest.param("a:NOT_STARTED; b:NOT_STARTED", 2, "a b", False, id="two-to-start"),
        pytest.param("a:SUCCEEDED; b:NOT_STARTED < a", 1, "b", False, id="handed-on"),
        pytest.param("a:SUCCEEDED; b:SUCCEEDED < a", 0, "", False, id="all-done"),
        pytest.param(
            "a:SUCCEEDED; b:RUNNING < a; c:RUNNING < a; d:NOT_STARTED < b c", 2, "", False, id="split"
        ),
        pytest.param("b:SUCCEEDED; c:RUNNING; d:NOT_STARTED < b c", 2, "", False, id="one-waits-in-the-join"),
        pytest.param("b:SUCCEEDED; c:SKIPPED; d:NOT_STARTED < b c", 1, "d", False, id="the-join-swallows"),
        pytest.param("a:STOPPED; b:NOT_STARTED < a; c:NOT_STARTED < b", 0, "", True, id="nothing-follows"),
        pytest.param("a:STOPPED; b:SUCCEEDED; j:NOT_STARTED < a b", 0, "", True, id="waited-in-vain"),
        pytest.param("a:STOPPED; b:RUNNING; j:NOT_STARTED < a b", 1, "", True, id="other-branch-goes-on"),
        pytest.param("a:SUSPENDED; b:PAUSED", 2, "", False, id="waiting-counts"),
        pytest.param("a:FAILED_CONTINUE; b:NOT_STARTED < a", 1, "b", False, id="failed-and-goes-on"),
        pytest.param("a:RUNNING; b:NOT_STARTED* < a", 2, "b", False, id="jumped-to-before-its-time"),
        pytest.param("a:STOPPED; b:NOT_STARTED* < a", 1, "b", True, id="jumped-to-past-a-failure"),
    ],
)
def test_how_many_branches_there_are(text: str, live: int, ready: str, halted: bool) -> None:
    count = recount(stages_of(text))

    assert count.live == live
    assert sorted(stage.ref_id for stage in count.ready) == ready.split()
    assert count.halted is halted


def test_what_each_stage_still_waits_for() -> None:
    count = recount(
        stages_of(
            "a:SUCCEEDED; b:RUNNING; s:STOPPED; j:NOT_STARTED < a b; k:NOT_STARTED < a s; l:NOT_STARTED < k"
        )
    )

    assert count.arrivals == {"j": (1, False), "k": (1, True), "l": (1, True)}
