"""ResumeWorkflow: go on after a pause, or after waiting for a slot with work already started."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from stabilize_celery.handlers.base import Handler, refused, stage_ids
from stabilize_celery.handlers.branches import resume_progress, wake_paused
from stabilize_celery.handlers.pause_workflow import is_stale
from stabilize_celery.handlers.slots import admit
from stabilize_celery.handlers.transitions import active_tasks, set_deadline, transition
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import ExpireSuspension, InvalidWorkflowId, ResumeWorkflow, StartWorkflow
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import Workflow


class ResumeWorkflowHandler(Handler[ResumeWorkflow]):
    """It needs a slot again (decision 12); what was parked runs, what became ready starts."""

    message_type = ResumeWorkflow

    def handle(self, message: ResumeWorkflow, unit: Unit) -> None:
        slots = unit.slots(message.pipeline_config_id) if message.pipeline_config_id else None
        workflow = unit.whole(message.workflow_id)
        if workflow is None:
            unit.send(InvalidWorkflowId(workflow_id=message.workflow_id, detail=message.type))
            return
        waits = workflow.status is S.BUFFERED and unit.holds_slot(workflow)
        if not (waits if message.admitted else workflow.status is S.PAUSED):
            if not message.admitted:
                refused(message, unit, f"the workflow is {workflow.status}")
            return
        if not message.admitted and is_stale(message, workflow, unit):
            return
        actor = message.user or None
        self._end_pause(unit, workflow)
        for child in unit.sub_workflows(workflow):
            unit.send(ResumeWorkflow(workflow_id=child, user=message.user))
        if workflow.start_time is None:
            transition(unit, workflow, S.NOT_STARTED, "resumed", actor=actor)
            unit.send(StartWorkflow(workflow_id=workflow.id, pipeline_config_id=workflow.pipeline_config_id))
        elif message.admitted or slots is None or admit(unit, workflow, slots):
            transition(unit, workflow, S.RUNNING, "resumed", actor=actor)
            wake_paused(unit, workflow, actor)
            resume_progress(unit, workflow)

    def _end_pause(self, unit: Unit, workflow: Workflow) -> None:
        paused = workflow.paused
        if paused is None or not paused.is_paused or paused.pause_time is None:
            return
        milliseconds = int((unit.now - paused.pause_time).total_seconds() * 1000)
        self._go_on_counting(unit, workflow, paused.pause_time)
        unit.change(
            workflow,
            paused=replace(paused, resume_time=unit.now, paused_ms=paused.paused_ms + milliseconds),
        )

    def _go_on_counting(self, unit: Unit, workflow: Workflow, since: datetime) -> None:
        """Time limits of stages and suspensions are put off by as long as they stood still."""
        unit.drop_timers(workflow)
        for stage in workflow.stages:
            if stage.status.is_complete or stage.start_time is None:
                continue
            if stage.deadline is not None:
                set_deadline(unit, stage, stage.deadline + (unit.now - max(since, stage.start_time)))
            for task in active_tasks(stage):
                # Of those that were parked, see wake_paused.
                if task.status is not S.PAUSED:
                    _put_off(unit, stage, task, since)


def _put_off(unit: Unit, stage: StageExecution, task: TaskExecution, since: datetime) -> None:
    paused = unit.now - (task.paused_at or max(since, task.start_time or since))
    task.paused_at, task.paused_seconds = None, task.paused_seconds + paused.total_seconds()
    unit.change(stage, tasks=stage.tasks)
    if task.status is S.SUSPENDED and task.waits_until is not None:
        task.waits_until += paused
        unit.send(
            ExpireSuspension(**stage_ids(stage), task_id=task.id, suspension=task.suspensions),
            delay=max(0.001, (task.waits_until - unit.now).total_seconds()),
        )
