"""CancelStage: one stage, with its synthetic stages, is canceled; its branch ends."""

from __future__ import annotations

from stabilize_celery.handlers.base import Handler, find_stage, refused
from stabilize_celery.handlers.branches import resume_progress, stage_ended
from stabilize_celery.handlers.transitions import cancel_stage, descendants
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CancelStage


class CancelStageHandler(Handler[CancelStage]):
    """A stage that has ended stays as it is."""

    message_type = CancelStage

    def handle(self, message: CancelStage, unit: Unit) -> None:
        stage = find_stage(message, unit)
        if stage is None:
            return
        if stage.status.is_complete or stage.execution.status.is_complete:
            refused(message, unit, f"the stage is {stage.status}", stage)
            return
        workflow = unit.whole(stage.execution.id)
        assert workflow is not None
        reason = message.reason or "canceled"
        for each in [*descendants(stage), stage]:
            if not each.status.is_complete:
                cancel_stage(unit, each, reason, message.user or None, force=message.force)
        if stage.is_synthetic:
            stage_ended(unit, stage)
        else:
            resume_progress(unit, workflow)
