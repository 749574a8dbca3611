"""Before a task's code is called: is it still wanted, and may it run now?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from stabilize_celery.errors import (
    MAX_STORED_ERROR_BYTES,
    InvalidOutputError,
    describe_error,
    error_text,
)
from stabilize_celery.json_values import dumps_json
from stabilize_celery.messages import RunTask
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.persistence.rows import UNKNOWN
from stabilize_celery.tasks.outcome import LONGEST_REASON, Outcome, Verdict
from stabilize_celery.tasks.result import TaskResult

#: Seconds until a task that a worker does not know is taken again: the first time, doubling, and at most.
_FIRST_DELAY, _LONGEST_DELAY = 2.0, 60.0
#: Keys of a stage's context under which the engine keeps an error.
_ERROR_KEYS = ("exception", "error")
#: Its parts are texts cut to a hundred KiB, of which JSON may make six characters for each.
_LARGEST_ERROR = 25 * MAX_STORED_ERROR_BYTES


def judge(
    message: RunTask, stage: StageExecution | None, attempts: int, max_attempts: int, last_error: Any
) -> Outcome | None:
    """The verdict on a claimed task that is not to be run; ``None`` if it is."""
    task = None if stage is None else stage.task_by_id(message.task_id)
    if stage is None or task is None or stage.execution.id != message.workflow_id:
        return Outcome(Verdict.DROP, reason="there is no such task")
    if (
        stage.generation != message.generation
        or task.status is not S.RUNNING
        or stage.status is not S.RUNNING
    ):
        return Outcome(Verdict.DROP, reason="stale")
    workflow = stage.execution
    if workflow.status.is_complete:
        return Outcome(Verdict.CANCELED, reason=f"the workflow is {workflow.status}")
    if workflow.status in (S.PAUSED, S.BUFFERED):
        return Outcome(Verdict.PARK, reason=f"the workflow is {workflow.status}")
    if stage.own_context.get("manualSkip"):
        return Outcome(Verdict.RETURNED, TaskResult.skipped(), reason="manualSkip")
    if attempts > max_attempts:
        error = (
            f"task {task.name} was started {max_attempts} times and its worker was lost each time"
            if last_error is None
            else f"task {task.name} failed {max_attempts} times"
        )
        return failure(RuntimeError(error), last_error or None)
    return None


def failure(
    error: BaseException,
    described: dict[str, Any] | None = None,
    *,
    unmapped: bool = False,
    context: Mapping[str, Any] | None = None,
) -> Outcome:
    """The outcome of an attempt that failed for good; the error goes into the stage's context."""
    described = described or describe_error(error)
    return Outcome(
        Verdict.RETURNED,
        TaskResult(S.TERMINAL, {**(context or {}), "exception": described, "error": error_text(error)}),
        error=described,
        reason=error_text(error)[:LONGEST_REASON],
        unmapped=unmapped,
        exception=error,
    )


def period(value: Any, hook: str, stage: StageExecution, *, positive: bool = False) -> timedelta:
    """What a hook of a task returned, if it is a span of time.

    Raises:
        TypeError: it is none: a number says no unit.
        ValueError: it is negative, or zero where that makes no sense.
    """
    where = f"stage {stage.called}: {hook} of its task returned"
    if not isinstance(value, timedelta):
        raise TypeError(f"{where} {value!r:.80}; return a timedelta, such as timedelta(seconds=30)")
    if value < timedelta() or (positive and not value):
        raise ValueError(f"{where} {value}; return a timedelta above zero")
    return value


def unknown(error: Exception, row: Mapping[str, Any], grace: float, now: datetime) -> Outcome:
    """The outcome for a task that this worker does not know: put off for as long as another may know it.

    Args:
        error: what it fails with in the end.
        row: the message; its last error holds since when no worker knew the task.
        grace: seconds from then until it fails.
        now: the time.
    """
    old = row["last_error"]
    seen = (old or {}).get(UNKNOWN) or {"since": now.isoformat(), "times": 0, "before": old}
    left = grace - (now - datetime.fromisoformat(seen["since"])).total_seconds()
    if left <= 0:
        return failure(error, unmapped=True)
    delay = min(_FIRST_DELAY * 2.0 ** min(seen["times"], 16), _LONGEST_DELAY, left)
    told = {"details": {"error": str(error)}, UNKNOWN: {**seen, "times": seen["times"] + 1}}
    return Outcome(Verdict.PUT_OFF, error=told, delay=delay, reason=str(error)[:LONGEST_REASON])


def stage_time_left(stage: StageExecution, now: datetime) -> timedelta | None:
    """What is left of ``stageTimeoutMs``; ``None`` without one."""
    return None if stage.deadline is None else stage.deadline - now


def running_time(task: TaskExecution, now: datetime) -> timedelta:
    """How long a task has been running, without the time it was paused."""
    started = task.start_time or now
    return now - started - timedelta(seconds=task.paused_seconds)


def storable(outcome: Outcome, where: str, limit: int) -> Outcome:
    """The outcome, or a failure that names the key of it which cannot be stored.

    Args:
        outcome: of an attempt.
        where: the stage, for the error.
        limit: the most bytes that outputs or context may have, as JSON.
    """
    result = outcome.result
    try:
        if result is not None:
            if result.outputs:
                dumps_json(result.outputs, f"{where}: outputs", limit)
            context = dict(result.context)
            if outcome.error:
                # Cut to a length of their own: no complaint about their size takes their place.
                errors = {key: context.pop(key) for key in _ERROR_KEYS if key in context}
                dumps_json(errors, f"{where}: context", max(limit, _LARGEST_ERROR))
            if context:
                dumps_json(context, f"{where}: context", limit)
        if outcome.context_update:
            dumps_json(outcome.context_update, f"{where}: context_update", limit)
    except InvalidOutputError as error:
        return replace(failure(error), unmapped=outcome.unmapped)
    return outcome
