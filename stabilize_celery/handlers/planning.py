"""Planning a stage: its tasks and its synthetic stages, each phase at most once per generation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from stabilize_celery.context.sources import child_rank
from stabilize_celery.context.view import apply_view
from stabilize_celery.dag.graph import StageGraphBuilder
from stabilize_celery.errors import (
    InvalidStageGraphError,
    StageError,
    UnknownReducerError,
    describe_error,
    described_traceback,
    error_text,
)
from stabilize_celery.handlers.branches import start_all
from stabilize_celery.handlers.transitions import PLANNING_FAILED, log_failure, update_context
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.models.stage import Phase, StageExecution
from stabilize_celery.models.validation import check_stage, check_tasks
from stabilize_celery.redaction import redactor_of
from stabilize_celery.stages.builder import StageDefinitionBuilder


class PlanningFailedError(Exception):
    """A builder raised, or built something that is no graph; the cause says what, ``seen`` what it could see."""

    def __init__(self, message: str, seen: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.seen = seen or {}


def plan_tasks(unit: Unit, stage: StageExecution) -> None:
    """Give a stage without tasks those of its builder.

    Raises:
        PlanningFailedError: the builder raised.
    """
    builder = unit.builders.find(stage.type)
    if builder is not None and not stage.tasks:
        with _planning(unit, stage):
            tasks = list(builder.build_tasks(stage))
            check_tasks(tasks, f"build_tasks of {type(builder).__name__}")
        unit.change(stage, tasks=tasks)
    for index, task in enumerate(stage.tasks):
        task.stage_start = index == 0
        task.stage_end = index == len(stage.tasks) - 1


def begin_phase(unit: Unit, stage: StageExecution, phase: Phase) -> bool:
    """Plan the synthetic stages of a phase and start those that wait for nothing.

    Returns:
        Whether there are any; if not the stage itself goes on.

    Raises:
        PlanningFailedError: the builder raised.
    """
    builder = unit.builders.find(stage.type)
    if builder is None:
        return False
    with _planning(unit, stage):
        children = _ask(builder, stage, phase)
        _check(unit, stage, children)
    for index, child in enumerate(children):
        child.phase = phase
        child.rank = child_rank(stage, phase, index)
        child.upstream_count = max(child.upstream_count, len(child.requisite_stage_ref_ids))
        child.open_upstreams = child.upstream_count
        child.execution = stage.execution
        if phase is not Phase.BEFORE:
            # What comes after the tasks sees their outputs.
            child.sources = {key: [stage.id, *stage.rank] for key in stage.outputs}
    unit.insert_children(stage, children)
    unit.change(stage, planned={**stage.planned, phase.value: len(children)}, open_children=len(children))
    start_all(unit, [child for child in children if child.open_upstreams == 0])
    return bool(children)


def planning_failed(unit: Unit, stage: StageExecution, phase: Phase, error: PlanningFailedError) -> None:
    """Record on the stage why it could not be planned."""
    cause = error.__cause__ or error
    hide = redactor_of(stage, unit.redact_keys, error.seen)
    told = hide.text(error_text(cause))
    described = hide.value(describe_error(cause, transient=False))
    log_failure(stage, f"planning its {phase.value} stages raised\n{described_traceback(described)}")
    changes: dict[str, Any] = {PLANNING_FAILED[phase]: True}
    if phase is not Phase.ON_FAILURE:
        changes |= {"exception": described, "error": told}
    update_context(unit, stage, changes)
    unit.change(stage, planned={**stage.planned, phase.value: 0}, open_children=0)


def _check(unit: Unit, stage: StageExecution, children: list[StageExecution]) -> None:
    for child in children:
        check_stage(child)
    taken = unit.taken_refs(stage.execution, {child.ref_id for child in children})
    if taken:
        raise InvalidStageGraphError(
            f"duplicate_ref: the workflow has a stage {min(taken)!r} already; leave the ref_id of a synthetic "
            "stage as create_synthetic makes it"
        )


def _ask(builder: StageDefinitionBuilder, stage: StageExecution, phase: Phase) -> list[StageExecution]:
    graph = StageGraphBuilder(stage, phase)
    {
        Phase.BEFORE: builder.before_stages,
        Phase.AFTER: builder.after_stages,
        Phase.ON_FAILURE: builder.on_failure_stages,
    }[phase](stage, graph)
    return graph.build()


def seen_by(unit: Unit, stage: StageExecution) -> dict[str, Any]:
    """Everything a stage sees that is not its own.

    Raises:
        PlanningFailedError: a join cannot combine what it gets.
    """
    try:
        return unit.sees(stage)
    except (StageError, UnknownReducerError) as error:
        raise PlanningFailedError(str(error)) from error


@contextmanager
def _planning(unit: Unit, stage: StageExecution) -> Iterator[None]:
    """Show the builder what the stage sees, and turn whatever it raises into one error."""
    apply_view(stage, seen_by(unit, stage))
    try:
        yield
    except BaseException as error:
        # An exit too is the builder's own: signals that end the process wait while a message is handled.
        raise PlanningFailedError(error_text(error), dict(stage.context)) from error
    finally:
        assert stage._own_context is not None
        stage.context, stage._own_context = stage._own_context, None
