"""StartStage: a stage is ready; see whether it runs, plan it, and take its first step."""

from __future__ import annotations

from stabilize_celery.context.sources import merge_sources
from stabilize_celery.errors import ExpressionError, InvalidWorkflowError
from stabilize_celery.handlers.base import Handler, find_stage, stage_ids
from stabilize_celery.handlers.planning import (
    PlanningFailedError,
    begin_phase,
    plan_tasks,
    planning_failed,
    seen_by,
)
from stabilize_celery.handlers.transitions import SKIP_KEY, set_deadline, transition, update_context
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CompleteStage, SkipStage, StartStage, StartTask
from stabilize_celery.models.stage import Phase, StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.validation import enabling_condition


class StartStageHandler(Handler[StartStage]):
    """Before-stages first, else the first task, else the end of the stage."""

    message_type = StartStage

    def handle(self, message: StartStage, unit: Unit) -> None:
        stage = find_stage(message, unit)
        if stage is None or stage.status is not S.NOT_STARTED or stage.open_upstreams or stage.blocked:
            return
        if stage.execution.status.is_complete:
            return
        see_upstreams(unit, stage)
        if (request := stage.context.get(SKIP_KEY)) is not None:
            unit.send(SkipStage(**stage_ids(stage), **request))
            return
        if stage.start_time_expiry is not None and stage.start_time_expiry <= unit.now:
            unit.send(SkipStage(**stage_ids(stage), reason="its start time has expired"))
            return
        try:
            if not is_enabled(unit, stage):
                unit.send(SkipStage(**stage_ids(stage), reason="stageEnabled is false"))
                return
            begin(unit, stage)
            plan_tasks(unit, stage)
            if begin_phase(unit, stage, Phase.BEFORE):
                return
        except PlanningFailedError as error:
            begin(unit, stage)
            planning_failed(unit, stage, Phase.BEFORE, error)
            unit.send(CompleteStage(**stage_ids(stage)))
            return
        start_work(unit, stage)


def begin(unit: Unit, stage: StageExecution) -> None:
    """The stage runs from now on."""
    if stage.status is S.NOT_STARTED:
        transition(unit, stage, S.RUNNING, start_time=unit.now, released=False)
        if (limit := stage.time_limit) is not None:
            set_deadline(unit, stage, unit.now + limit)


def start_work(unit: Unit, stage: StageExecution) -> None:
    """Start the first task of a stage whose before-stages have ended; without one the stage completes."""
    first = stage.first_task()
    if first is None:
        unit.send(CompleteStage(**stage_ids(stage)))
    else:
        unit.send(StartTask(**stage_ids(stage), task_id=first.id))


def see_upstreams(unit: Unit, stage: StageExecution) -> None:
    """Take over from the stages directly before where their data is."""
    if stage.upstream_count:
        seen = merge_sources([stage.sources, *(upstream.sources for upstream in unit.upstreams(stage))])
        if seen != stage.sources:
            unit.change(stage, sources=seen)


def is_enabled(unit: Unit, stage: StageExecution) -> bool:
    """Evaluate ``stageEnabled`` on what the stage sees (decision 6); an error counts as false and is recorded.

    Raises:
        PlanningFailedError: a join cannot combine what it gets.
    """
    try:
        condition = enabling_condition(stage.context)
        if isinstance(condition, bool):
            return condition
        names = {**unit.stage_names(stage), **seen_by(unit, stage), **stage.context}
        return bool(condition.evaluate(names))
    except (ExpressionError, InvalidWorkflowError) as error:
        update_context(unit, stage, {"stageEnabledError": str(error)})
        return False
