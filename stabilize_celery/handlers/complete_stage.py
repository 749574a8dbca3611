"""CompleteStage: see what a stage has come to; run what belongs after it; then let others go on."""

from __future__ import annotations

from stabilize_celery.context.sources import exported_sources
from stabilize_celery.dag.outcome import Child, has_failed, phase_ended, stage_outcome
from stabilize_celery.handlers.base import Handler, find_stage
from stabilize_celery.handlers.branches import stage_ended
from stabilize_celery.handlers.planning import PlanningFailedError, begin_phase, planning_failed
from stabilize_celery.handlers.transitions import (
    PLANNING_FAILED,
    TIMED_OUT,
    clear_timers,
    send_hooks,
    sub_workflow_repaired,
    transition,
)
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CompleteStage
from stabilize_celery.models.stage import Phase, StageExecution
from stabilize_celery.models.status import WorkflowStatus as S


class CompleteStageHandler(Handler[CompleteStage]):
    """After-stages on success, on-failure stages on failure, then the final status."""

    message_type = CompleteStage

    def handle(self, message: CompleteStage, unit: Unit) -> None:
        stage = find_stage(message, unit)
        if stage is None or stage.status is not S.RUNNING or stage.execution.status.is_complete:
            return
        children = children_of(unit, stage)
        status, failed = self._assess(stage, children)
        if not status.is_complete:
            return
        if not status.is_halt and _did_its_work(stage, failed) and Phase.AFTER.value not in stage.planned:
            if self._begins(unit, stage, Phase.AFTER):
                return
            status, failed = self._assess(stage, children)
        if failed and status is not S.CANCELED:
            if Phase.ON_FAILURE.value not in stage.planned:
                if self._begins(unit, stage, Phase.ON_FAILURE):
                    return
            elif not phase_ended(children, Phase.ON_FAILURE):
                return
        finish_stage(unit, stage, status, _reason(stage, status, children))

    def _assess(self, stage: StageExecution, children: list[Child]) -> tuple[S, bool]:
        keys = (PLANNING_FAILED[Phase.BEFORE], PLANNING_FAILED[Phase.AFTER], TIMED_OUT)
        failed = any(stage.context.get(key) for key in keys)
        return stage_outcome(stage, children, failed), has_failed(stage.tasks, children, failed)

    def _begins(self, unit: Unit, stage: StageExecution, phase: Phase) -> bool:
        try:
            return begin_phase(unit, stage, phase)
        except PlanningFailedError as error:
            planning_failed(unit, stage, phase, error)
            return False


def _did_its_work(stage: StageExecution, failed: bool) -> bool:
    """Only then the after-stages run: not when a task was canceled or never came to run."""
    return not failed and all(task.status.is_complete and task.failed_as is None for task in stage.tasks)


def _reason(stage: StageExecution, status: S, children: list[Child]) -> str:
    """Why a stage failed, for the history; a success needs no reason."""
    if not status.is_failure and status is not S.CANCELED:
        return ""
    told = str(stage.context.get("error", ""))
    if not told and any(child.status.is_halt or child.status is S.FAILED_CONTINUE for child in children):
        told = "a synthetic stage failed"
    return told[:500]


def children_of(unit: Unit, stage: StageExecution) -> list[Child]:
    """The synthetic stages of a stage as far as its outcome depends on them."""
    if not any(stage.planned.values()):
        return []
    return [
        Child(
            child.phase or Phase.AFTER, child.status, stranded=child.blocked and child.status is S.NOT_STARTED
        )
        for child in unit.children(stage)
    ]


def finish_stage(unit: Unit, stage: StageExecution, status: S, reason: str = "") -> None:
    """Give a stage its final status; what it saw and produced is there for the stages after it."""
    transition(unit, stage, status, reason, end_time=unit.now)
    clear_timers(unit, stage)
    seen = exported_sources(stage)
    if seen != stage.sources:
        unit.change(stage, sources=seen)
    send_hooks(unit, stage, "on_cleanup", stage.tasks)
    stage_ended(unit, stage)
    if (
        stage.status.is_halt
        and "sub_workflow_id" in stage.context
        and (kept := unit.next_signal(stage)) is not None
    ):
        # The sub-workflow was repaired while its failure was on its way through this stage.
        sub_workflow_repaired(unit, stage, kept[1])
