"""Concurrency limits: the last slot goes to one, and whoever waits hears of a free one."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from stabilize_celery import Workflow, WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.persistence import tables
from tests.concurrency.aftermath import check
from tests.concurrency.stage_hands import HANDLED, TAKEN, Action, Scene
from tests.conformance.harness import stage as a_stage

points = pytest.mark.parametrize("at", [HANDLED, TAKEN])


def limited(name: str, *, keep: bool = True) -> Workflow:
    config = {
        "id": "shop",
        "limitConcurrent": True,
        "maxConcurrentExecutions": 1,
        "keepWaitingPipelines": keep,
    }
    return Workflow.create("tests", name, [a_stage("a")], config=config)


def holders(scene: Scene) -> set[str]:
    workflows = tables.workflows
    return {row.id for row in scene.execute(select(workflows.c.id).where(workflows.c.holds_slot))}


def start_of(scene: Scene, workflow: Workflow) -> tuple[list[WorkflowRun], Action]:
    """A start that is written, and handling it."""
    runs: list[WorkflowRun] = []
    return runs, scene.ordered(lambda: runs.append(scene.engine.start(workflow)))


@points
@pytest.mark.parametrize("swapped", [False, True])
def test_two_starts_for_the_last_slot(scene: Scene, at: str, swapped: bool) -> None:
    (one, first), (two, second) = (start_of(scene, limited(name)) for name in ("one", "two"))
    pair = (second, first) if swapped else (first, second)
    scene.collide(*pair, at=at)
    runs = [*one, *two]
    assert sorted(str(run.status) for run in runs) == ["BUFFERED", "RUNNING"]
    assert len(holders(scene)) == 1
    scene.proceed()
    assert {run.status for run in runs} == {S.SUCCEEDED}
    assert not holders(scene)
    check(scene, *runs)


@points
@pytest.mark.parametrize("first", ["end", "start"])
@pytest.mark.parametrize("keep", [True, False], ids=["keep", "replace"])
def test_a_slot_is_given_back_while_somebody_comes_for_it(
    scene: Scene, keep: bool, first: str, at: str
) -> None:
    """Whoever comes second must see what the first one did, or there is nobody left to wake it."""
    holder = scene.start(limited("holder", keep=keep), "RunTask")
    end = scene.message("RunTask a")
    new, start = start_of(scene, limited("new", keep=keep))
    pair = (end, start) if first == "end" else (start, end)
    scene.collide(*pair, at=at)
    scene.proceed()
    assert holder.status is S.SUCCEEDED
    assert new[0].status is S.SUCCEEDED, "it waits for a slot that is free"
    assert not holders(scene)
    check(scene, holder, *new)


@points
@pytest.mark.parametrize("first", ["wake", "cancel"])
def test_somebody_who_waits_is_canceled_while_it_is_let_in(scene: Scene, first: str, at: str) -> None:
    holder = scene.start(limited("holder"), "RunTask")
    waiting = scene.start(limited("waiting"), "RunTask")
    last = scene.start(limited("last"), "RunTask")
    assert (waiting.status, last.status) == (S.BUFFERED, S.BUFFERED)
    ender = scene.contender(scene.message("RunTask a"), "message.committed").until_held()
    wake = scene.message("StartWaitingWorkflows")
    cancel = scene.ordered(waiting.cancel)
    pair = (wake, cancel) if first == "wake" else (cancel, wake)
    scene.collide(*pair, at=at)
    ender.join()
    scene.proceed()
    assert (holder.status, waiting.status, last.status) == (S.SUCCEEDED, S.CANCELED, S.SUCCEEDED)
    assert not holders(scene)
    check(scene, holder, waiting, last)


@points
@pytest.mark.parametrize("first", ["resume", "start"])
def test_a_resume_and_a_start_for_the_last_slot(scene: Scene, first: str, at: str) -> None:
    paused = scene.start(limited("paused"), "RunTask")
    paused.pause()
    scene.proceed("RunTask")
    resume = scene.ordered(paused.resume)
    new, start = start_of(scene, limited("new"))
    pair = (resume, start) if first == "resume" else (start, resume)
    scene.collide(*pair, at=at)
    assert len(holders(scene)) == 1
    scene.proceed()
    assert (paused.status, new[0].status) == (S.SUCCEEDED, S.SUCCEEDED)
    assert not holders(scene)
    check(scene, paused, *new)
