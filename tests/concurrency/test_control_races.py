"""What a person orders against what happens by itself at the same moment, in every order."""

from __future__ import annotations

import pytest

from stabilize_celery import WorkflowStatus as S
from tests.concurrency.aftermath import check, stage, statuses, times_started
from tests.concurrency.stage_hands import HANDLED, TAKEN, Scene
from tests.conformance.harness import flow
from tests.conformance.harness import stage as a_stage

#: Which one is held, and where: the order or the progress, with all its locks or with the gate only.
MOMENTS = [(first, at) for first in ("order", "progress") for at in (HANDLED, TAKEN)]
moments = pytest.mark.parametrize(("first", "at"), MOMENTS, ids=[f"{f}-{a[8:]}" for f, a in MOMENTS])


def collide(scene: Scene, order, progress, first: str, at: str, *, gated: bool = True) -> None:
    """The order needs the workflow for itself, so whoever comes second waits at its gate."""
    pair = (order, progress) if first == "order" else (progress, order)
    _, second = scene.collide(*pair, at=at)
    if gated:
        assert second.waited, "nobody waited at the gate"


@moments
def test_cancel_against_the_result_of_a_task(scene: Scene, first: str, at: str) -> None:
    run = scene.start(flow(a_stage("a"), a_stage("b"), a_stage("c", after=["a"])), "RunTask")
    result = scene.message("RunTask a")
    collide(scene, scene.ordered(run.cancel), result, first, at)
    scene.proceed()
    assert run.status is S.CANCELED
    assert statuses(run)["a"] == ("CANCELED" if first == "order" else "SUCCEEDED")
    assert statuses(run)["b"] == "CANCELED"
    check(scene, run)


@moments
def test_cancel_against_the_result_that_ends_the_workflow(scene: Scene, first: str, at: str) -> None:
    run = scene.start(flow(a_stage("a")), "RunTask")
    result = scene.message("RunTask a")
    collide(scene, scene.ordered(run.cancel), result, first, at)
    scene.proceed()
    assert run.status is (S.CANCELED if first == "order" else S.SUCCEEDED)
    check(scene, run)


@moments
def test_pause_against_a_fan_out(scene: Scene, first: str, at: str) -> None:
    arms = [a_stage(f"arm{n}", after=["a"]) for n in range(5)]
    run = scene.start(
        flow(a_stage("a"), *arms, a_stage("join", after=[arm.ref_id for arm in arms])), "RunTask"
    )
    fan_out = scene.message("RunTask a")
    collide(scene, scene.ordered(run.pause), fan_out, first, at)
    scene.proceed()
    assert run.status is S.PAUSED
    assert {str(stage(run, arm.ref_id).status) for arm in arms} == {"PAUSED"}
    run.resume()
    scene.proceed()
    assert run.status is S.SUCCEEDED
    assert all(times_started(run, arm.ref_id) == 1 for arm in arms)
    check(scene, run)


@moments
def test_pause_against_the_end_of_the_last_branch(scene: Scene, first: str, at: str) -> None:
    run = scene.start(flow(a_stage("a")), "RunTask")
    end = scene.message("RunTask a")
    collide(scene, scene.ordered(run.pause), end, first, at)
    scene.proceed()
    if first == "order":
        assert run.status is S.PAUSED
        run.resume()
        scene.proceed()
    assert run.status is S.SUCCEEDED
    check(scene, run)


@moments
def test_restart_against_a_result_of_the_generation_before(scene: Scene, first: str, at: str) -> None:
    """The result is on its way when the stage begins anew: it must change nothing of the new pass."""
    run = scene.start(flow(a_stage("a"), a_stage("b", after=["a"])), "RunTask b")
    result = scene.message("RunTask b")
    collide(scene, scene.ordered(lambda: run.restart_stage("a")), result, first, at)
    scene.proceed()
    assert run.status is S.SUCCEEDED
    assert (stage(run, "a").generation, times_started(run, "a")) == (1, 2)
    # Restarted before its result it ends once more than it is recorded to have ended.
    assert stage(run, "b").generation == 1
    check(scene, run)


@moments
def test_jump_against_a_result_of_the_generation_before(scene: Scene, first: str, at: str) -> None:
    jumps = {"do": [{"return": "jump", "target": "a"}, {"return": "success"}]}
    run = scene.start(
        flow(a_stage("a"), a_stage("back", "script", ["a"], context=jumps), a_stage("side", after=["a"])),
        "RunTask back",
        "RunTask side",
        "JumpToStage",
    )
    held_back = scene.contender(scene.message("RunTask back"), "message.committed").until_held()
    result = scene.message("RunTask side")
    collide(scene, scene.message("JumpToStage"), result, first, at)
    held_back.join()
    scene.proceed()
    assert run.status is S.TERMINAL or run.status is S.SUCCEEDED, statuses(run)
    assert stage(run, "side").generation == 1
    check(scene, run)


def test_two_restarts_of_one_stage(scene: Scene) -> None:
    run = scene.start(flow(a_stage("a"), a_stage("b", after=["a"])))
    orders = [scene.ordered(lambda: run.restart_stage("a")) for _ in range(2)]
    _, second = scene.collide(*orders)
    assert second.waited
    scene.proceed()
    assert run.status is S.SUCCEEDED
    assert times_started(run, "a") == times_started(run, "b") == 2, (
        "the second meant what had begun anew already"
    )
    check(scene, run)


@pytest.mark.parametrize("first", ["a", "b"])
def test_restarts_of_a_stage_and_of_one_after_it(scene: Scene, first: str) -> None:
    run = scene.start(flow(a_stage("a"), a_stage("b", after=["a"]), a_stage("c", after=["b"])))
    orders = {ref: scene.ordered(lambda ref=ref: run.restart_stage(ref)) for ref in "ab"}
    _, second = scene.collide(orders.pop(first), *orders.values())
    assert second.waited
    scene.proceed()
    assert run.status is S.SUCCEEDED
    assert stage(run, "a").generation == 1
    check(scene, run)


@moments
def test_skip_against_the_start_of_the_same_stage(scene: Scene, first: str, at: str) -> None:
    run = scene.start(flow(a_stage("a"), a_stage("b", after=["a"]), a_stage("c", after=["b"])), "RunTask a")
    start = scene.message("RunTask a")
    collide(scene, scene.ordered(lambda: run.skip_stage("b", reason="not today")), start, first, at)
    scene.proceed()
    assert run.status is S.SUCCEEDED
    assert statuses(run) == {"a": "SUCCEEDED", "b": "SKIPPED", "c": "SUCCEEDED"}
    assert times_started(run, "c") == 1
    check(scene, run)


@pytest.mark.parametrize("at", [HANDLED, TAKEN])
@pytest.mark.parametrize("first", ["signal", "suspend"])
@pytest.mark.parametrize("persistent", [True, False], ids=["persistent", "transient"])
def test_signal_against_suspend(scene: Scene, persistent: bool, first: str, at: str) -> None:
    waits = {"do": [{"return": "suspend"}, {"return": "success", "outputs": {"woken": True}}]}
    run = scene.start(flow(a_stage("a", "script", context=waits)), "RunTask")
    suspend = scene.message("RunTask a")
    signal = scene.ordered(lambda: run.signal("a", "go", {"n": 1}, persistent=persistent))
    pair = (signal, suspend) if first == "signal" else (suspend, signal)
    scene.collide(*pair, at=at)
    scene.proceed()
    # A signal that is held at TAKEN has not locked the stage yet; the result of a task has.
    came_first = "signal" if (first, at) == ("signal", HANDLED) else "suspend"
    if persistent or came_first == "suspend":
        assert run.status is S.SUCCEEDED
        assert stage(run, "a").outputs == {"woken": True}
    else:
        assert statuses(run)["a"] == "SUSPENDED", "a transient signal that nobody waits for is lost"
        assert any("lost" in (row["reason"] or "") for row in run.history())
    check(scene, run)


@pytest.mark.parametrize("at", [HANDLED, TAKEN])
@pytest.mark.parametrize("first", ["order", "progress"])
def test_the_end_of_a_sub_workflow_against_cancel_of_its_parent(scene: Scene, first: str, at: str) -> None:
    inner = {"name": "inner", "stages": [{"ref": "x", "type": "ok"}]}
    run = scene.start(flow(a_stage("outer", "sub_workflow", context={"workflow": inner})), "RunTask x")
    child = scene.engine.get(stage(run, "outer").context["_sub_workflow_id"])
    end = scene.message("RunTask x")
    # They are two workflows, each with a gate of its own: nobody waits.
    collide(scene, scene.ordered(run.cancel), end, first, at, gated=False)
    scene.proceed()
    assert run.status is S.CANCELED
    assert child.status in (S.SUCCEEDED, S.CANCELED)
    check(scene, run, child)


@moments
def test_the_message_of_a_sub_workflow_that_ended_against_cancel_of_its_parent(
    scene: Scene, first: str, at: str
) -> None:
    inner = {"name": "inner", "stages": [{"ref": "x", "type": "ok"}]}
    run = scene.start(flow(a_stage("outer", "sub_workflow", context={"workflow": inner})), "RunTask x")
    child = scene.engine.get(stage(run, "outer").context["_sub_workflow_id"])
    # Whoever ends the child would handle the message right after; it goes somewhere else.
    ender = scene.contender(scene.message("RunTask x"), "message.committed").until_held()
    assert child.status is S.SUCCEEDED
    told = scene.message("SignalStage")
    collide(scene, scene.ordered(run.cancel), told, first, at)
    ender.join()
    scene.proceed()
    assert run.status is S.CANCELED
    check(scene, run, child)


def test_a_sub_workflow_that_is_made_while_its_parent_is_canceled(scene: Scene) -> None:
    """The cancel has looked for it before it was there; so its own start waits, and sees that it is not wanted."""
    inner = {"name": "inner", "stages": [{"ref": "x", "type": "ok"}]}
    outer = flow(a_stage("outer", "sub_workflow", context={"workflow": inner}))
    run = scene.start(outer, "RunTask outer")
    making = scene.contender(scene.message("RunTask outer"), "task.claimed").until_held()
    cancel = scene.contender(scene.ordered(run.cancel), HANDLED).until_held()
    making.let_go()
    scene.until(lambda: any(row["type"] == "StartWorkflow" for row in scene.messages()))
    start = scene.contender(scene.message("StartWorkflow"), HANDLED).until_stuck()
    assert start.waited, "it looked at its parent's stage beside the cancel"
    cancel.join()
    # The task that made it waits for its row, which the start has locked.
    start.join()
    making.join()
    scene.proceed()
    assert run.status is S.CANCELED
    (child,) = [other for other in scene.engine.find() if other.id != run.id]
    assert child.status is S.CANCELED
    assert times_started(child, "x") == 0
    check(scene, run, child)
