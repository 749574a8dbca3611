"""SkipStage: a stage ends as SKIPPED, and what comes after it goes on."""

from __future__ import annotations

from stabilize_celery.handlers.base import Handler, find_stage
from stabilize_celery.handlers.branches import resume_progress, stage_ended
from stabilize_celery.handlers.lifecycle import (
    abandon_work,
    cancel_stage,
    finish_task,
    send_hooks,
    transition,
)
from stabilize_celery.handlers.start_stage import see_upstreams
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import SkipStage
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S


class SkipStageHandler(Handler[SkipStage]):
    """One that is ready to start is just marked; a person may skip any that has not ended."""

    message_type = SkipStage

    def handle(self, message: SkipStage, unit: Unit) -> None:
        stage = find_stage(message, unit)
        if stage is None or stage.status.is_complete or stage.execution.status.is_complete:
            return
        if message.user is not None:
            self._skip_for(message.user, message.reason, stage, unit)
        elif stage.status is S.NOT_STARTED:
            self._end(unit, stage, message.reason, None)
            stage_ended(unit, stage)

    def _skip_for(self, user: str, reason: str, stage: StageExecution, unit: Unit) -> None:
        workflow = unit.whole(stage.execution.id)
        assert workflow is not None
        was_started = stage.status is not S.NOT_STARTED
        for child in stage.synthetic_stages():
            if not child.status.is_complete:
                cancel_stage(unit, child, f"stage {stage.ref_id} was skipped", user)
        abandon_work(unit, stage, reason or "skipped", user)
        if stage.status in (S.SUSPENDED, S.PAUSED):
            transition(unit, stage, S.RUNNING, "to be skipped", actor=user)
        if not was_started:
            see_upstreams(unit, stage)
        self._end(unit, stage, reason or f"skipped by {user}", user)
        if stage.is_synthetic:
            stage_ended(unit, stage)
        else:
            resume_progress(unit, workflow)

    def _end(self, unit: Unit, stage: StageExecution, reason: str, user: str | None) -> None:
        active = [task for task in stage.tasks if task.status is not S.NOT_STARTED]
        for task in stage.tasks:
            if task.status in (S.SUSPENDED, S.PAUSED):
                transition(unit, stage, S.RUNNING, "to be skipped", task=task)
            if not task.status.is_complete:
                finish_task(unit, stage, task, S.SKIPPED, reason)
        transition(unit, stage, S.SKIPPED, reason, actor=user, end_time=unit.now, released=False)
        if active:
            send_hooks(unit, stage, "on_cancel", active)
            send_hooks(unit, stage, "on_cleanup", stage.tasks)
