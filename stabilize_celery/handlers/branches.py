"""What follows when a stage has ended: its successors start, or its branch ends.

See ``dag/branches.py`` for what a branch is.
"""

from __future__ import annotations

from stabilize_celery.dag.branches import recount
from stabilize_celery.handlers.base import stage_ids
from stabilize_celery.handlers.transitions import run_task, wake
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CompleteWorkflow, ContinueParentStage, StartStage, StartStages
from stabilize_celery.models.stage import Phase, StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.workflow import Workflow


def stage_ended(unit: Unit, stage: StageExecution) -> None:
    """A stage has reached its final status: go on from there."""
    if stage.is_synthetic:
        _child_ended(unit, stage)
    elif stage.status.is_continuable:
        _pass_on(unit, stage)
    else:
        _halt_branch(unit, stage)


def _pass_on(unit: Unit, stage: StageExecution) -> None:
    """Hand a branch on to each stage after this one."""
    waiting = []
    for following in unit.downstream(stage):
        if waits(following):
            waiting.append(following)
        elif following.blocked and following.status is S.NOT_STARTED:
            # It can never start, but a recount must find the same.
            _arrive(unit, following)
    ready = [following for following in waiting if _arrive(unit, following)]
    start_all(unit, ready)
    swallowed = sum(following.upstream_count - 1 for following in ready)
    _account(unit, stage.execution, len(waiting) - 1 - swallowed)


def start_all(unit: Unit, stages: list[StageExecution]) -> None:
    """Start stages that are ready: as many as fit into this transaction, the others after it."""
    batch = unit.batch or len(stages)
    for stage in stages[:batch]:
        unit.send(StartStage(**stage_ids(stage)))
    rest = [[stage.id, stage.generation] for stage in stages[batch:]]
    if rest:
        unit.send(StartStages(workflow_id=stages[0].execution.id, stages=rest))


def waits(stage: StageExecution) -> bool:
    """Whether a stage still waits for the stages it requires, and can ever start."""
    return stage.status is S.NOT_STARTED and stage.open_upstreams > 0 and not stage.blocked


def _arrive(unit: Unit, stage: StageExecution) -> bool:
    """One of the stages it waits for is there; returns whether that was the last."""
    unit.change(stage, open_upstreams=stage.open_upstreams - 1)
    return stage.open_upstreams == 0


def _account(unit: Unit, workflow: Workflow, balance: int) -> None:
    """Add or end branches; when the last one ends, so does the workflow."""
    if balance > 0:
        unit.add_branches(workflow, balance)
    elif balance < 0 and unit.release_branches(workflow, -balance) == 0:
        unit.send(CompleteWorkflow(workflow_id=workflow.id))


def _halt_branch(unit: Unit, stage: StageExecution) -> None:
    """Nothing downstream of a halted stage starts.  A TERMINAL one ends the whole workflow."""
    if stage.status is S.TERMINAL:
        unit.send(CompleteWorkflow(workflow_id=stage.execution.id, halted=True))
        return
    ended = 1 + sum(s.upstream_count - s.open_upstreams for s in _block_downstream(unit, stage))
    left = unit.release_branches(stage.execution, ended)
    unit.change(stage.execution, has_halted=True)
    if left == 0:
        unit.send(CompleteWorkflow(workflow_id=stage.execution.id))


def _block_downstream(unit: Unit, stage: StageExecution) -> list[StageExecution]:
    """Mark everything that can never start because of this stage; returns what was marked."""
    blocked: list[StageExecution] = []
    reached = {stage.ref_id}
    for following in unit.behind(stage):
        if waits(following) and not reached.isdisjoint(following.requisite_stage_ref_ids):
            unit.change(following, blocked=True)
            blocked.append(following)
            reached.add(following.ref_id)
    return blocked


def _child_ended(unit: Unit, child: StageExecution) -> None:
    """A synthetic stage has ended: its siblings go on, and the last of its phase lets the parent go on."""
    strands = child.status is S.FAILED_CONTINUE and not child.own_context.get(
        "allowSiblingStagesToContinueOnFailure"
    )
    # One that could not start any more was settled when that became clear.
    settled = 0 if child.blocked else 1
    if child.status.is_continuable and not strands:
        waiting = [sibling for sibling in unit.downstream(child) if waits(sibling)]
        start_all(unit, [sibling for sibling in waiting if _arrive(unit, sibling)])
    else:
        settled += len(_block_downstream(unit, child))
    assert child.parent_stage_id is not None
    parent = unit.stage(child.parent_stage_id)
    if parent is None or parent.status.is_complete:
        return
    unit.change(parent, open_children=max(0, parent.open_children - settled))
    if child.status.is_continuable and not strands and child.phase is Phase.BEFORE:
        _start_next_in_turn(unit, parent)
    if parent.open_children == 0 or child.status.is_halt:
        unit.send(ContinueParentStage(**stage_ids(parent), phase=child.phase or Phase.AFTER))


def _start_next_in_turn(unit: Unit, parent: StageExecution) -> None:
    """A synthetic stage that waited for any other to end may start."""
    builder = unit.builders.find(parent.type)
    ref = None if builder is None else builder.next_in_turn(parent)
    following = None if ref is None else unit.stage_by_ref(parent.execution, ref)
    if following is not None and waits(following) and _arrive(unit, following):
        start_all(unit, [following])


def resume_progress(unit: Unit, workflow: Workflow) -> None:
    """After a workflow, given with all its stages, was rewired: count its branches, start what is ready, end it if
    nothing is left or a failure ends it.
    """
    count = recount(workflow.top_level_stages())
    for stage in workflow.top_level_stages():
        if stage.id in count.arrivals:
            still_open, blocked = count.arrivals[stage.id]
            if (stage.open_upstreams, stage.blocked) != (still_open, blocked):
                unit.change(stage, open_upstreams=still_open, blocked=blocked)
    if (workflow.live_branches, workflow.has_halted) != (count.live, count.halted):
        unit.change(workflow, live_branches=count.live, has_halted=count.halted)
    if workflow.status is not S.RUNNING:
        return
    start_all(unit, count.ready)
    failed = any(stage.ends_workflow for stage in workflow.top_level_stages())
    if failed or count.live == 0:
        unit.send(CompleteWorkflow(workflow_id=workflow.id, halted=failed))


def accept_failures(unit: Unit, workflow: Workflow) -> None:
    """What has failed so far ends the workflow, given with all its stages, when its branches have ended, not before."""
    for stage in workflow.top_level_stages():
        if stage.ends_workflow:
            unit.change(stage, released=True)


def wake_paused(unit: Unit, workflow: Workflow, actor: str | None) -> None:
    """Tasks that were parked by a pause run again."""
    for stage in workflow.stages:
        for task in stage.tasks:
            if task.status is S.PAUSED:
                paused = (unit.now - task.paused_at).total_seconds() if task.paused_at else 0.0
                wake(
                    unit,
                    stage,
                    task,
                    "resumed",
                    actor,
                    paused_at=None,
                    paused_seconds=task.paused_seconds + paused,
                )
                run_task(unit, stage, task)
