"""Carrying out remedies, in a transaction that has the workflow for itself."""

from __future__ import annotations

from collections.abc import Callable

from stabilize_celery.handlers.base import stage_ids
from stabilize_celery.handlers.branches import resume_progress, start_all, wake_paused
from stabilize_celery.handlers.transitions import (
    PLANNING_FAILED,
    TIMED_OUT,
    active_tasks,
    cancel_stage,
    give_back_slot,
    run_task,
    transition,
)
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CompleteStage, ContinueParentStage, Message, StartTask
from stabilize_celery.models.stage import Phase, StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.recovery.findings import Family, Problem, Remedy, current_phase


def mend(unit: Unit, workflow: Workflow, problem: Problem, actor: str) -> None:
    """Carry out the remedy of a problem, and say so in the history.

    Args:
        unit: has the workflow for itself.
        workflow: whole.
        problem: of this workflow as it is now, with a remedy.
        actor: on whose behalf.
    """
    stage = None if problem.stage_id is None else workflow.stage_by_id(problem.stage_id)
    if problem.remedy is Remedy.SEND:
        assert problem.message is not None
        unit.send(problem.message, delay=problem.delay)
    elif stage is None:
        _OF_WORKFLOWS[problem.remedy or Remedy.RECOUNT](unit, workflow, actor)
    else:
        _OF_STAGES[problem.remedy or Remedy.RECOUNT](unit, stage, actor)
    unit.record("repair", workflow.id, stage=stage, reason=problem.what, actor=actor or None)


def _recount(unit: Unit, workflow: Workflow, actor: str) -> None:
    resume_progress(unit, workflow)


def _take_slot(unit: Unit, workflow: Workflow, actor: str) -> None:
    unit.hold_slot(workflow, True)


def _release_slot(unit: Unit, workflow: Workflow, actor: str) -> None:
    give_back_slot(unit, workflow)


def _drive(unit: Unit, stage: StageExecution, actor: str) -> None:
    """Let a running stage take its next step again."""
    running = [task for task in active_tasks(stage) if task.status is S.RUNNING]
    redirected = [task for task in stage.tasks if task.status is S.REDIRECT]
    for task in redirected:
        # Where to it wanted to jump was in the message: it has to say so again.
        transition(unit, stage, S.RUNNING, "its jump was lost", task=task, actor=actor or None)
    for task in running + redirected:
        run_task(unit, stage, task)
    if not running and not redirected:
        unit.send(next_message(stage))


def next_message(stage: StageExecution) -> Message:
    """What takes a running stage further that has no task at work and waits for no synthetic stage."""
    ids = stage_ids(stage)
    phase = current_phase(stage)
    waiting = next((task for task in stage.tasks if task.status is S.NOT_STARTED), None)
    started = any(task.status is not S.NOT_STARTED for task in stage.tasks)
    if any(stage.own_context.get(key) for key in (*PLANNING_FAILED.values(), TIMED_OUT)):
        return CompleteStage(**ids)
    if phase is Phase.BEFORE and not started:
        return ContinueParentStage(**ids, phase=Phase.BEFORE)
    if waiting is not None and phase in (None, Phase.BEFORE):
        return StartTask(**ids, task_id=waiting.id)
    if phase in (Phase.AFTER, Phase.ON_FAILURE):
        return ContinueParentStage(**ids, phase=phase)
    return CompleteStage(**ids)


def _recount_children(unit: Unit, stage: StageExecution, actor: str) -> None:
    """Count again among the synthetic stages of a stage, or among the siblings of a synthetic one."""
    family = Family(stage.execution)
    parent = (
        stage
        if stage.planned and family.children.get(stage.id)
        else family.by_id[stage.parent_stage_id or ""]
    )
    counted = family.arrivals(parent)
    ready = []
    for child in family.children[parent.id]:
        if child.id not in counted:
            continue
        still_open, blocked = counted[child.id]
        if (child.open_upstreams, child.blocked) != (still_open, blocked):
            unit.change(child, open_upstreams=still_open, blocked=blocked)
        if still_open == 0 and not blocked:
            ready.append(child)
    start_all(unit, ready)
    left = family.open_children(parent) or 0
    unit.change(parent, open_children=left)
    if left == 0 and parent.status is S.RUNNING:
        unit.send(ContinueParentStage(**stage_ids(parent), phase=current_phase(parent) or Phase.AFTER))


def _wake(unit: Unit, stage: StageExecution, actor: str) -> None:
    wake_paused(unit, stage.execution, actor or None)


def _recount_of_stage(unit: Unit, stage: StageExecution, actor: str) -> None:
    resume_progress(unit, stage.execution)


def _cancel(unit: Unit, stage: StageExecution, actor: str) -> None:
    cancel_stage(unit, stage, f"the workflow is {stage.execution.status}", actor or "system")


_OF_WORKFLOWS: dict[Remedy, Callable[[Unit, Workflow, str], None]] = {
    Remedy.RECOUNT: _recount,
    Remedy.TAKE_SLOT: _take_slot,
    Remedy.RELEASE_SLOT: _release_slot,
}
_OF_STAGES: dict[Remedy, Callable[[Unit, StageExecution, str], None]] = {
    Remedy.RECOUNT: _recount_of_stage,
    Remedy.RECOUNT_CHILDREN: _recount_children,
    Remedy.DRIVE: _drive,
    Remedy.WAKE: _wake,
    Remedy.CANCEL: _cancel,
}
