"""Named status changes.  Only :func:`transition` and :func:`reset_stage` write a status anywhere in the code base."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from stabilize_celery.errors import storable_text
from stabilize_celery.handlers.base import stage_ids
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import (
    CancelWorkflow,
    ExpireStage,
    RestartStage,
    RunHook,
    RunTask,
    SignalStage,
    StartWaitingWorkflows,
)
from stabilize_celery.models.stage import DEADLINE_KEY, Phase, StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.status import validate_transition
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import Workflow

logger = logging.getLogger(__name__)

#: The signal a sub-workflow sends when it ends.
SUB_WORKFLOW_ENDED = "_sub_workflow_ended"

#: In a stage's context: the sub-workflow that its task waits for.
SUB_WORKFLOW_KEY = "_sub_workflow_id"

#: In a stage's context: who wants it skipped when its turn comes.
SKIP_KEY = "_skip_requested"

#: In a stage's context: the ref_ids of the stages whose failure canceled it.
CANCELED_BY = "_canceled_by"

#: In a stage's context: which of its synthetic stages could not be planned.
PLANNING_FAILED = {
    Phase.BEFORE: "beforeStagePlanningFailed",
    Phase.AFTER: "afterStagePlanningFailed",
    Phase.ON_FAILURE: "onFailureStagePlanningFailed",
}

#: In a stage's context: it took longer than it may.
TIMED_OUT = "stageTimedOut"

#: What an earlier pass of the workflow leaves in a stage's context that must not meet a later one.
PASS_KEYS = (
    "exception",
    "error",
    *PLANNING_FAILED.values(),
    "_signal_name",
    "_signal_data",
    "_signal_user",
    "jump_error",
    "sub_workflow_id",
    "sub_workflow_status",
    "sub_workflow_outputs",
    SUB_WORKFLOW_KEY,
    SKIP_KEY,
    CANCELED_BY,
    TIMED_OUT,
    DEADLINE_KEY,
)


def transition(
    unit: Unit,
    entity: Workflow | StageExecution,
    status: S,
    reason: str = "",
    *,
    task: TaskExecution | None = None,
    actor: str | None = None,
    **values: Any,
) -> None:
    """Move a workflow, a stage, or (given with its stage) a task to a status: check the table, write it, record it.

    Raises:
        InvalidStateTransitionError: the table does not allow it.
    """
    subject = entity if task is None else task
    old = subject.status
    kind = "task" if task is not None else type(entity).__name__.removesuffix("Execution").lower()
    validate_transition(old, status, kind, subject.id)
    if task is None:
        unit.change(entity, status=status, **values)
    else:
        assert isinstance(entity, StageExecution)
        task.status = status
        for name, value in values.items():
            setattr(task, name, value)
        unit.change(entity, tasks=entity.tasks)
    stage = entity if isinstance(entity, StageExecution) else None
    workflow_id = entity.id if stage is None else stage.execution.id
    unit.record(
        kind,
        workflow_id,
        stage=stage,
        task_id=None if task is None else task.id,
        old=old,
        new=status,
        reason=reason,
        actor=actor,
    )


def start_task(unit: Unit, stage: StageExecution, task: TaskExecution) -> None:
    """A task begins: the workers are told to run it."""
    transition(unit, stage, S.RUNNING, task=task, start_time=unit.now)
    run_task(unit, stage, task)


def run_task(unit: Unit, stage: StageExecution, task: TaskExecution) -> None:
    """Send a running task to the workers."""
    unit.send(RunTask(**stage_ids(stage), task_id=task.id, task_type=task.implementing_class))


def finish_task(
    unit: Unit, stage: StageExecution, task: TaskExecution, status: S, reason: str = "", **values: Any
) -> None:
    """A task ends."""
    transition(unit, stage, status, reason, task=task, end_time=unit.now, **values)


def wake(
    unit: Unit,
    stage: StageExecution,
    task: TaskExecution,
    reason: str,
    actor: str | None = None,
    **values: Any,
) -> None:
    """A suspended or paused task and its stage are running again."""
    if stage.status is not S.RUNNING:
        transition(unit, stage, S.RUNNING, reason, actor=actor)
    transition(unit, stage, S.RUNNING, reason, task=task, actor=actor, **values)


def update_context(
    unit: Unit, stage: StageExecution, changes: dict[str, Any], drop: tuple[str, ...] = ()
) -> None:
    """Merge into the stage's own context, and take keys out of it."""
    if changes or any(key in stage.context for key in drop):
        kept = {key: value for key, value in stage.context.items() if key not in drop}
        unit.change(stage, context={**kept, **changes})


def set_deadline(unit: Unit, stage: StageExecution, deadline: datetime) -> None:
    """A stage may take until then, and a message stands for it."""
    update_context(unit, stage, {DEADLINE_KEY: deadline.isoformat()})
    unit.send(ExpireStage(**stage_ids(stage)), delay=max(0.001, (deadline - unit.now).total_seconds()))


def clear_timers(unit: Unit, stage: StageExecution) -> None:
    """A stage has ended: nothing is left of the messages that stand for its time limits."""
    if stage.deadline is not None or any(task.waits_until is not None for task in stage.tasks):
        unit.drop_timers(stage.execution, stage)


def send_hooks(unit: Unit, stage: StageExecution, hook: str, tasks: list[TaskExecution]) -> None:
    """Have ``on_cancel`` or ``on_cleanup`` of some tasks called, where their types have one.

    A type that this process does not know is left to the worker that gets the message.
    """
    for task in tasks:
        name = task.implementing_class
        if unit.registry.overrides(name, hook) or not unit.registry.knows(name):
            unit.send(RunHook(**stage_ids(stage), task_id=task.id, task_type=name, hook=hook))


def active_tasks(stage: StageExecution) -> list[TaskExecution]:
    """The tasks that have started and not ended."""
    return [task for task in stage.tasks if task.status in (S.RUNNING, S.SUSPENDED, S.PAUSED)]


def cancel_stage(
    unit: Unit, stage: StageExecution, reason: str, actor: str | None = None, force: bool = False
) -> None:
    """A stage that has not ended is canceled, and its worker is asked to stop.  Its synthetic stages are not."""
    active = active_tasks(stage)
    abandon_work(unit, stage, reason, actor, force)
    for task in stage.tasks:
        if not task.status.is_complete:
            finish_task(unit, stage, task, S.CANCELED, reason)
    transition(unit, stage, S.CANCELED, reason, actor=actor, end_time=unit.now)
    send_hooks(unit, stage, "on_cancel", active)
    send_hooks(unit, stage, "on_cleanup", stage.tasks)


def abandon_work(
    unit: Unit, stage: StageExecution, reason: str, actor: str | None = None, force: bool = False
) -> None:
    """The worker and the sub-workflow of a stage learn that it is not wanted any more."""
    unit.stop_running(stage, force=force)
    # Not by the id in its context: that is stored with the result of the task, which may never come.
    for child in unit.inner_workflows(stage) if active_tasks(stage) else ():
        unit.send(CancelWorkflow(workflow_id=child, user=actor or "", reason=reason, force=force))


def reset_stage(unit: Unit, stage: StageExecution, reason: str, actor: str | None = None) -> None:
    """A stage starts again, in a new generation: nothing of its last pass counts any more but its context.

    Messages of the old generation are stale from here on (promise P5).
    """
    abandon_work(unit, stage, reason, actor)
    if not stage.status.is_complete and stage.status is not S.NOT_STARTED:
        # This generation ends; its worker stops and runs on_cleanup.
        send_hooks(unit, stage, "on_cancel", active_tasks(stage))
        send_hooks(unit, stage, "on_cleanup", stage.tasks)
    unit.keep_for_hooks(stage)
    unit.drop_signals(stage)
    old = stage.status
    for task in stage.tasks:
        task.reset()
    unit.change(
        stage,
        status=S.NOT_STARTED,
        generation=stage.generation + 1,
        context={key: value for key, value in stage.context.items() if key not in PASS_KEYS},
        outputs={},
        sources={},
        tasks=stage.tasks,
        planned={},
        open_children=0,
        open_upstreams=stage.upstream_count,
        blocked=False,
        released=False,
        start_time=None,
        end_time=None,
    )
    unit.record(
        "reset", stage.execution.id, stage=stage, old=old, new=S.NOT_STARTED, reason=reason, actor=actor
    )


def sub_workflow_repaired(unit: Unit, stage: StageExecution, told: Mapping[str, Any]) -> bool:
    """A sub-workflow has ended once more whose failure this stage ended with: if it has succeeded, so may the stage.

    Returns:
        Whether the stage is restarted; it then takes the result of the same sub-workflow.
    """
    child = told.get("workflow_id")
    failed = stage.status in (S.TERMINAL, S.STOPPED) and stage.context.get("sub_workflow_id") == child
    # Of a synthetic stage nothing would be left: a restart plans others in its place.
    if (
        not failed
        or stage.is_synthetic
        or told.get("status") != S.SUCCEEDED.name
        or stage.execution.is_canceled
    ):
        return False
    unit.send(
        RestartStage(
            **stage_ids(stage),
            user="system",
            pipeline_config_id=stage.execution.pipeline_config_id,
            sub_workflow_id=child,
        )
    )
    return True


def end_workflow(
    unit: Unit, workflow: Workflow, status: S, reason: str = "", actor: str | None = None
) -> None:
    """A workflow ends, gives its slot back, and tells the task that waits for it."""
    if workflow.status in (S.PAUSED, S.BUFFERED) and status is not S.CANCELED:
        transition(unit, workflow, S.RUNNING, "to be ended", actor=actor)
    transition(unit, workflow, status, reason, actor=actor, end_time=unit.now)
    give_back_slot(unit, workflow)
    # Read under its lock: a stage that begins again with this workflow says so in its row.
    parent = None if workflow.parent is None else unit.waiting_task(workflow)
    if parent is not None:
        unit.send(
            SignalStage(
                workflow_id=parent.workflow_id,
                stage_id=parent.stage_id,
                generation=parent.generation,
                signal_name=SUB_WORKFLOW_ENDED,
                signal_data={"workflow_id": workflow.id, "status": status.name},
                persistent=True,
            )
        )


def revive_workflow(unit: Unit, workflow: Workflow, reason: str, actor: str | None = None) -> None:
    """A workflow that has ended begins again where a restart says: it is not started, and needs a slot."""
    unit.record("revive", workflow.id, old=workflow.status, new=S.NOT_STARTED, reason=reason, actor=actor)
    unit.change(workflow, status=S.NOT_STARTED, end_time=None)


def remove_children(unit: Unit, stage: StageExecution, reason: str, actor: str | None = None) -> None:
    """The synthetic stages of a stage go, to be planned afresh; those that are active are canceled first."""
    for each in descendants(stage):
        if not each.status.is_complete and each.status is not S.NOT_STARTED:
            cancel_stage(unit, each, reason, actor)
    unit.delete_children(stage.synthetic_stages())


def descendants(stage: StageExecution) -> list[StageExecution]:
    """The synthetic stages of a stage and theirs, children before their parent; of a workflow loaded whole."""
    found = []
    for child in stage.synthetic_stages():
        found += [*descendants(child), child]
    return found


def give_back_slot(unit: Unit, workflow: Workflow) -> None:
    """Others may start in its place."""
    if workflow.pipeline_config_id:
        unit.hold_slot(workflow, False)
        unit.send(StartWaitingWorkflows(pipeline_config_id=workflow.pipeline_config_id))


def log_failure(stage: StageExecution, why: str) -> None:
    """Log that a stage fails without an attempt that does, of which the worker would tell; ``why`` tells no secret."""
    workflow = stage.execution
    told = storable_text(why)
    logger.error("stage %s of workflow %s (%s) failed: %s", stage.called, workflow.name, workflow.id, told)
