"""ContinueParentStage: the synthetic stages of a phase have ended, or one has failed; go on with their parent."""

from __future__ import annotations

from stabilize_celery.context.sources import merge_sources
from stabilize_celery.handlers.base import Handler, find_stage, stage_ids
from stabilize_celery.handlers.start_stage import start_work
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CancelStage, CompleteStage, ContinueParentStage
from stabilize_celery.models.stage import Phase, StageExecution
from stabilize_celery.models.status import WorkflowStatus as S


class ContinueParentStageHandler(Handler[ContinueParentStage]):
    """After the before-stages come the tasks; after the others, the end of the stage."""

    message_type = ContinueParentStage

    def handle(self, message: ContinueParentStage, unit: Unit) -> None:
        parent = find_stage(message, unit)
        if parent is None or parent.status is not S.RUNNING or parent.execution.status.is_complete:
            return
        children = [child for child in unit.children(parent) if child.phase is message.phase]
        waiting = [c for c in children if not c.status.is_complete and not c.blocked]
        if waiting:
            if any(child.status.is_halt for child in children):
                self._stop(unit, parent, waiting)
            return
        seen = merge_sources([parent.sources, *(child.sources for child in children)])
        if seen != parent.sources:
            unit.change(parent, sources=seen)
        stranded = any(child.blocked and child.status is S.NOT_STARTED for child in children)
        halted = any(child.status.is_halt for child in children)
        if message.phase is not Phase.BEFORE or halted or stranded:
            unit.send(CompleteStage(**stage_ids(parent)))
        elif not any(task.status is not S.NOT_STARTED for task in parent.tasks):
            start_work(unit, parent)

    def _stop(self, unit: Unit, parent: StageExecution, children: list[StageExecution]) -> None:
        """One has failed: the others are not wanted, and the last of them to end comes back here."""
        for child in children:
            unit.send(
                CancelStage(
                    workflow_id=parent.execution.id,
                    stage_id=child.id,
                    generation=child.generation,
                    user="system",
                    reason="another synthetic stage of the same phase failed",
                )
            )
