"""SkipStage: a stage ends as SKIPPED, and what comes after it goes on."""

from __future__ import annotations

from stabilize_celery.handlers.base import Handler, find_stage, refused
from stabilize_celery.handlers.branches import resume_progress, stage_ended, waits
from stabilize_celery.handlers.start_stage import see_upstreams
from stabilize_celery.handlers.transitions import (
    SKIP_KEY,
    abandon_work,
    active_tasks,
    cancel_stage,
    descendants,
    finish_task,
    send_hooks,
    transition,
    update_context,
)
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import SkipStage
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S


class SkipStageHandler(Handler[SkipStage]):
    """The engine skips a stage that is ready to start; a person any that has not ended.

    One that still waits for the stages it requires is skipped when its turn comes, so that what follows it keeps its
    place in the order.
    """

    message_type = SkipStage

    def handle(self, message: SkipStage, unit: Unit) -> None:
        stage = find_stage(message, unit)
        if stage is None:
            return
        if stage.status.is_complete or stage.execution.status.is_complete:
            refused(message, unit, f"the stage is {stage.status}", stage)
            return
        if message.user is None:
            if stage.status is S.NOT_STARTED:
                self._end(unit, stage, message.reason, None)
                stage_ended(unit, stage)
            return
        reason = message.reason or "skipped"
        if waits(stage):
            update_context(unit, stage, {SKIP_KEY: {"user": message.user, "reason": reason}})
            unit.record("skip", message.workflow_id, stage=stage, reason=reason, actor=message.user or None)
            return
        self._skip_for(message.user or None, reason, stage, unit)

    def _skip_for(self, user: str | None, reason: str, stage: StageExecution, unit: Unit) -> None:
        workflow = unit.whole(stage.execution.id)
        assert workflow is not None
        for each in descendants(stage):
            if not each.status.is_complete:
                cancel_stage(unit, each, f"stage {stage.called} was skipped", user)
        if stage.status is S.NOT_STARTED:
            see_upstreams(unit, stage)
        self._end(unit, stage, reason, user)
        if stage.is_synthetic:
            stage_ended(unit, stage)
        else:
            resume_progress(unit, workflow)

    def _end(self, unit: Unit, stage: StageExecution, reason: str, user: str | None) -> None:
        started = stage.status is not S.NOT_STARTED
        active = active_tasks(stage)
        abandon_work(unit, stage, reason, user)
        for task in stage.tasks:
            if task.status not in (S.NOT_STARTED, S.RUNNING) and not task.status.is_complete:
                transition(unit, stage, S.RUNNING, "to be skipped", task=task, actor=user)
            if not task.status.is_complete:
                finish_task(unit, stage, task, S.SKIPPED, reason)
        if stage.status in (S.SUSPENDED, S.PAUSED):
            transition(unit, stage, S.RUNNING, "to be skipped", actor=user)
        transition(unit, stage, S.SKIPPED, reason, actor=user, end_time=unit.now, released=False)
        if started:
            send_hooks(unit, stage, "on_cancel", active)
            send_hooks(unit, stage, "on_cleanup", stage.tasks)
