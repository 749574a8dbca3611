"""What must be true of every workflow once nothing happens any more, whatever ran into whatever."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import func, select

from stabilize_celery import WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.dag.branches import recount
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.persistence import tables
from tests.concurrency.stage_hands import Scene
from tests.conformance.behaviours import ref_of


def statuses(run: WorkflowRun) -> dict[str, str]:
    """How all stages of a workflow stand, synthetic ones by name."""
    return {ref_of(stage): str(stage.status) for stage in run.workflow().stages}


def stage(run: WorkflowRun, ref: str) -> StageExecution:
    """A stage by its ref_id, a synthetic one by name."""
    (found,) = [each for each in run.workflow().stages if ref_of(each) == ref]
    return found


def times_started(run: WorkflowRun, ref: str) -> int:
    """How often a stage has begun to run, in all its generations."""
    wanted = {each.id for each in run.workflow().stages if ref_of(each) == ref}
    return sum(
        row["event"] == "stage" and row["stage_id"] in wanted and row["from_status"] is S.NOT_STARTED
        and row["to_status"] is S.RUNNING
        for row in run.history()
    )  # fmt: skip


def check(scene: Scene, *runs: WorkflowRun) -> None:
    """Nothing is left over, nothing was counted wrong, nothing happened twice."""
    assert scene.deadlocks() == 0
    letters = scene.execute(select(tables.dead_letters.c.type, tables.dead_letters.c.error))
    assert not letters, letters
    for run in runs:
        check_branches(run)
        check_history(run)
        _check_messages(scene, run)


def check_branches(run: WorkflowRun) -> None:
    workflow = run.workflow()
    for each in workflow.stages:
        children = [child for child in workflow.stages if child.parent_stage_id == each.id]
        open_now = sum(not c.status.is_complete and not c.blocked for c in children)
        if each.status is S.RUNNING:
            assert each.open_children == open_now, f"open children of {ref_of(each)}"
    if workflow.status is S.RUNNING:
        assert workflow.live_branches == recount(workflow.top_level_stages()).live
    elif workflow.status is S.SUCCEEDED:
        assert workflow.live_branches == 0
        assert all(each.status.is_complete or each.blocked for each in workflow.stages), statuses(run)
    elif workflow.status.is_complete:
        active = (S.RUNNING, S.SUSPENDED, S.PAUSED)
        assert not any(each.status in active for each in workflow.stages), statuses(run)


def check_history(run: WorkflowRun) -> None:
    """Every transition goes on where the one before it ended, so none was lost, repeated or made on old knowledge."""
    known: dict[Any, S] = {}
    moves: Counter[Any] = Counter()
    for row in run.history():
        if row["to_status"] is None:
            continue
        subject = (row["stage_id"], row["task_id"]) if row["stage_id"] else run.id
        if row["event"] == "reset":
            # Its tasks begin anew with it.
            for other in [key for key in known if isinstance(key, tuple) and key[0] == row["stage_id"]]:
                if other != subject:
                    del known[other]
        before = known.get(subject, S.NOT_STARTED)
        assert row["from_status"] is before, (
            f"{subject}: {row['from_status']} -> {row['to_status']} after {before}\n{_told(run)}"
        )
        known[subject] = row["to_status"]
        if row["event"] == "stage" and row["to_status"].is_complete:
            moves[row["stage_id"], row["generation"]] += 1
    repeated = {key: count for key, count in moves.items() if count > 1}
    assert not repeated, f"ended more than once in one generation: {repeated}\n{_told(run)}"
    for each in run.workflow().stages:
        assert known.get((each.id, None), S.NOT_STARTED) is each.status, (
            f"{ref_of(each)} moved without a record"
        )


def _check_messages(scene: Scene, run: WorkflowRun) -> None:
    messages = tables.messages
    left = scene.execute(
        select(messages.c.type, func.count())
        .where(messages.c.workflow_id == run.id, messages.c.due_at <= scene.engine.store.now())
        .group_by(messages.c.type)
    )
    assert not left, f"messages are left: {left}"


def _told(run: WorkflowRun) -> str:
    names = {each.id: ref_of(each) for each in run.workflow().stages}
    return "\n".join(
        f"{row['at']:%H:%M:%S.%f} {row['event']} {names.get(row['stage_id'], '')} "
        f"{row['from_status']} -> {row['to_status']} {row['reason'] or ''}"
        for row in run.history()
    )
