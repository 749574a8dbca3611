"""Ordinary progress against itself: what ends at the same moment, what is delivered twice.

Each test holds one transaction where it has all its locks (or, at ``TAKEN``, before it has any but the gate), and lets
the other one run into it, in both orders.
"""

from __future__ import annotations

import pytest

from stabilize_celery import WorkflowStatus as S
from tests.concurrency.aftermath import check, stage, statuses, times_started
from tests.concurrency.stage_hands import HANDLED, TAKEN, Scene
from tests.conformance.harness import flow
from tests.conformance.harness import stage as a_stage

ORDERS = [(0, 1), (1, 0)]
BOTH_POINTS = [TAKEN, HANDLED]
orders = pytest.mark.parametrize("order", ORDERS, ids=["one-first", "other-first"])
points = pytest.mark.parametrize("at", BOTH_POINTS)


@points
@pytest.mark.parametrize("kind", ["StartWorkflow", "RunTask a"])
def test_two_deliveries_of_one_message(scene: Scene, kind: str, at: str) -> None:
    run = scene.start(flow(a_stage("a"), a_stage("b", after=["a"])), kind)
    delivery = scene.message(kind)
    first, second = scene.collide(delivery, delivery, at)
    assert first.result is True
    assert second.result is False, "the second delivery was handled too"
    scene.proceed()
    assert run.status is S.SUCCEEDED
    assert times_started(run, "a") == times_started(run, "b") == 1
    check(scene, run)


@orders
@points
def test_the_last_two_arms_of_a_join_end_together(scene: Scene, order: tuple[int, int], at: str) -> None:
    run = scene.start(
        flow(a_stage("a"), a_stage("b"), a_stage("c"), a_stage("join", after=["a", "b", "c"])),
        "RunTask a",
        "RunTask b",
    )
    arms = [scene.message("RunTask a"), scene.message("RunTask b")]
    _, second = scene.collide(arms[order[0]], arms[order[1]], at)
    assert second.waited, "whoever comes second waits for the row of the join"
    scene.proceed()
    assert run.status is S.SUCCEEDED
    assert times_started(run, "join") == 1
    check(scene, run)


@orders
@points
def test_the_last_two_branches_end_together(scene: Scene, order: tuple[int, int], at: str) -> None:
    run = scene.start(flow(a_stage("a"), a_stage("b")), "RunTask")
    ends = [scene.message("RunTask a"), scene.message("RunTask b")]
    _, second = scene.collide(ends[order[0]], ends[order[1]], at)
    assert second.waited is (at == HANDLED), "whoever comes second waits for the row of the workflow"
    scene.proceed()
    assert run.status is S.SUCCEEDED
    ended = [row for row in run.history() if row["event"] == "workflow" and row["to_status"].is_complete]
    assert len(ended) == 1
    check(scene, run)


@orders
@points
@pytest.mark.parametrize("phase", ["before", "after", "on_failure"])
def test_the_last_two_synthetic_stages_end_together(
    scene: Scene, phase: str, order: tuple[int, int], at: str
) -> None:
    plan = {phase: [{"name": "x"}, {"name": "y"}, {"name": "z", "requires": ["x", "y"]}]}
    task = "fail" if phase == "on_failure" else "ok"
    run = scene.start(
        flow(a_stage("parent", task, plan=plan), a_stage("after", after=["parent"])), "RunTask x", "RunTask y"
    )
    ends = [scene.message("RunTask x"), scene.message("RunTask y")]
    scene.collide(ends[order[0]], ends[order[1]], at)
    scene.proceed()
    assert run.status is (S.TERMINAL if phase == "on_failure" else S.SUCCEEDED)
    assert times_started(run, "parent") == 1
    assert times_started(run, "after") == (0 if phase == "on_failure" else 1)
    assert {statuses(run)[name] for name in "xyz"} == {"SUCCEEDED"}
    assert times_started(run, "z") == 1
    check(scene, run)


@orders
@points
def test_arms_of_a_limited_map_end_together(scene: Scene, order: tuple[int, int], at: str) -> None:
    """Each lets the next one start in its place; the last ones let the map go on."""
    shape = {"items": [1, 2, 3, 4], "limit": 2, "stage": {"type": "ok", "name": "arm"}}
    run = scene.start(flow(a_stage("m", None, type="map", context=shape)), "RunTask")
    for pair in ((0, 1), (2, 3)):
        ends = [scene.message(f"RunTask arm [{number}]") for number in pair]
        scene.collide(ends[order[0]], ends[order[1]], at)
        scene.proceed("RunTask")
        begun = [name for name, status in statuses(run).items() if status == "RUNNING" and name != "m"]
        assert len(begun) == (2 if pair == (0, 1) else 0)
    scene.proceed()
    assert run.status is S.SUCCEEDED
    assert stage(run, "m").outputs["failed"] == []
    check(scene, run)


@orders
@points
def test_a_branch_that_fails_and_one_that_ends(scene: Scene, order: tuple[int, int], at: str) -> None:
    run = scene.start(flow(a_stage("a", "fail"), a_stage("b"), a_stage("join", after=["a", "b"])), "RunTask")
    ends = [scene.message("RunTask a"), scene.message("RunTask b")]
    scene.collide(ends[order[0]], ends[order[1]], at)
    scene.proceed()
    assert run.status is S.TERMINAL
    assert times_started(run, "join") == 0
    check(scene, run)


@orders
@points
def test_two_branches_that_stop(scene: Scene, order: tuple[int, int], at: str) -> None:
    """Each blocks the same join; what waits there is given up once."""
    stopped = {"do": [{"return": "stopped"}]}
    run = scene.start(
        flow(
            a_stage("a", "script", context=stopped),
            a_stage("b", "script", context=stopped),
            a_stage("c"),
            a_stage("join", after=["a", "b", "c"]),
        ),
        "RunTask a",
        "RunTask b",
    )
    ends = [scene.message("RunTask a"), scene.message("RunTask b")]
    scene.collide(ends[order[0]], ends[order[1]], at)
    scene.proceed()
    assert run.status.is_complete, statuses(run)
    assert times_started(run, "join") == 0
    check(scene, run)


@orders
@points
@pytest.mark.parametrize("behind", [1, 2])
def test_a_branch_that_stops_and_one_that_goes_on_elsewhere(
    scene: Scene, behind: int, order: tuple[int, int], at: str
) -> None:
    """The stopped one gives up the join, and with it the other's token there, but not what the other has started."""
    more = [a_stage(f"c{i}", after=["b"]) for i in range(behind)]
    stopped = {"do": [{"return": "stopped"}]}
    run = scene.start(
        flow(a_stage("a", "script", context=stopped), a_stage("b"), a_stage("join", after=["a", "b"]), *more),
        "RunTask a",
        "RunTask b",
    )
    ends = [scene.message("RunTask a"), scene.message("RunTask b")]
    scene.collide(ends[order[0]], ends[order[1]], at)
    scene.proceed()
    assert run.status is S.SUCCEEDED
    assert times_started(run, "join") == 0
    assert {statuses(run)[each.ref_id] for each in more} == {"SUCCEEDED"}, "a branch was cut off"
    check(scene, run)
