"""RunTask: record what came of an attempt at a task.

The attempt itself ran in a worker, outside any transaction (``worker/``).  Here, under the fencing token of its lease,
its outcome becomes state, once.
"""

from __future__ import annotations

from datetime import timedelta

from stabilize_celery.handlers.base import Handler, find_task, stage_ids
from stabilize_celery.handlers.transitions import cancel_stage, run_task, transition, update_context, wake
from stabilize_celery.handlers.unit import Unit
from stabilize_celery.messages import CompleteTask, ExpireSuspension, JumpToStage, RunTask
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.tasks.outcome import Outcome, Verdict
from stabilize_celery.tasks.result import TaskResult

SIGNAL_KEYS = ("_signal_name", "_signal_data", "_signal_user")
_FAILURES = (S.TERMINAL, S.CANCELED)


class RunTaskHandler(Handler[RunTask]):
    """Each status a task can return leads to one thing that happens next."""

    message_type = RunTask

    def handle(self, message: RunTask, unit: Unit) -> None:
        attempt = unit.attempt
        assert attempt is not None, "the result of a task is recorded by the worker that ran it"
        found = find_task(message, unit)
        if found is None or attempt.outcome.verdict is Verdict.DROP:
            return
        stage, task = found
        if task.status is not S.RUNNING or stage.status is not S.RUNNING:
            return
        if stage.execution.status.is_complete:
            cancel_stage(unit, stage, f"the workflow is {stage.execution.status}", "system")
            return
        if attempt.outcome.verdict is Verdict.PUT_OFF:
            self._put_off(attempt.outcome, unit, stage, task)
            return
        # A call that only asks to be called again, and one that was not made, is no attempt.
        counts = attempt.outcome.error is not None or _ends(attempt.outcome)
        task.attempts = attempt.number if counts else attempt.number - 1
        task.claims = max(task.claims, attempt.token)
        unit.change(stage, tasks=stage.tasks)
        self._record(attempt.outcome, unit, stage, task)

    def _put_off(self, outcome: Outcome, unit: Unit, stage: StageExecution, task: TaskExecution) -> None:
        unit.requeue(delay=outcome.delay, counted=False, error=outcome.error)
        unit.record(
            "unknown_type",
            stage.execution.id,
            stage=stage,
            task_id=task.id,
            reason=outcome.reason,
            details={"delay": round(outcome.delay, 3)},
        )

    def _record(self, outcome: Outcome, unit: Unit, stage: StageExecution, task: TaskExecution) -> None:
        if outcome.error is not None:
            task.last_error = outcome.error
        if outcome.verdict is Verdict.PARK and stage.execution.status in (S.PAUSED, S.BUFFERED):
            transition(unit, stage, S.PAUSED, outcome.reason, task=task, paused_at=unit.now)
            transition(unit, stage, S.PAUSED, outcome.reason)
        elif outcome.verdict in (Verdict.PARK, Verdict.CANCELED):
            # What stood in its way when it was claimed is over.
            unit.requeue(delay=0.0, counted=False)
        elif outcome.verdict is Verdict.HANDED_OVER:
            self._hand_over(outcome, unit, stage, task)
        elif outcome.verdict is Verdict.RETRY:
            update_context(unit, stage, outcome.context_update)
            unit.requeue(delay=outcome.delay, counted=True, error=outcome.error)
            unit.record(
                "retry",
                stage.execution.id,
                stage=stage,
                task_id=task.id,
                reason=outcome.reason,
                details={"attempt": task.attempts, "delay": round(outcome.delay, 3)},
            )
        else:
            assert outcome.result is not None
            self._returned(outcome, outcome.result, unit, stage, task)

    def _hand_over(self, outcome: Outcome, unit: Unit, stage: StageExecution, task: TaskExecution) -> None:
        to = outcome.hand_over
        assert to is not None
        # Sending it is no attempt; its start was one.
        started = outcome.error is not None
        unit.requeue(delay=outcome.delay, counted=started, error=outcome.error, waits_in=to.queue)
        unit.record(
            "retry" if started else "launch",
            stage.execution.id,
            stage=stage,
            task_id=task.id,
            reason=outcome.reason,
            details={**to.details, "queue": to.queue, "attempt": task.attempts},
        )

    def _returned(
        self, outcome: Outcome, result: TaskResult, unit: Unit, stage: StageExecution, task: TaskExecution
    ) -> None:
        # A signal resumes one suspension: the task that was woken by it has seen it now, unless it still runs.
        seen = SIGNAL_KEYS if result.status is not S.RUNNING else ()
        update_context(unit, stage, result.context, drop=seen)
        if result.outputs:
            unit.change(stage, outputs={**stage.outputs, **result.outputs})
        if result.status is S.RUNNING:
            unit.requeue(delay=outcome.delay, counted=False)
        elif result.status is S.SUSPENDED:
            self._suspend(result, unit, stage, task)
        elif result.status is S.REDIRECT:
            self._redirect(result, unit, stage, task)
        else:
            self._complete(outcome, result.status, unit, stage, task)

    def _complete(
        self, outcome: Outcome, status: S, unit: Unit, stage: StageExecution, task: TaskExecution
    ) -> None:
        failed_as = status if status in _FAILURES else None
        if failed_as is not None:
            task.task_exception_details = outcome.error or {
                "details": {"error": stage.context.get("error", "")}
            }
            if not outcome.unmapped:
                status = stage.failure_status(default=status)
        unit.send(
            CompleteTask(
                **stage_ids(stage), task_id=task.id, status=status, failed_as=failed_as, reason=outcome.reason
            )
        )

    def _redirect(self, result: TaskResult, unit: Unit, stage: StageExecution, task: TaskExecution) -> None:
        unit.send(
            JumpToStage(
                **stage_ids(stage),
                task_id=task.id,
                target_ref_id=result.target_stage_ref_id or "",
                jump_context=result.context,
                jump_outputs=result.outputs,
            )
        )
        unit.send(CompleteTask(**stage_ids(stage), task_id=task.id, status=S.REDIRECT))

    def _suspend(self, result: TaskResult, unit: Unit, stage: StageExecution, task: TaskExecution) -> None:
        task.suspensions += 1
        limit = result.suspend_timeout
        task.waits_until = None if limit is None else unit.now + timedelta(seconds=limit)
        if stage.execution.status is S.PAUSED:
            # Its time begins when the workflow goes on.
            task.paused_at = unit.now
        transition(unit, stage, S.SUSPENDED, "waits for a signal", task=task)
        transition(unit, stage, S.SUSPENDED, "waits for a signal")
        kept = unit.next_signal(stage)
        if kept is not None:
            resume_with_signal(unit, stage, task, *kept)
        elif limit is not None:
            unit.send(
                ExpireSuspension(**stage_ids(stage), task_id=task.id, suspension=task.suspensions),
                delay=limit,
            )


def _ends(outcome: Outcome) -> bool:
    return outcome.result is not None and outcome.result.status not in (S.RUNNING, S.SUSPENDED)


def resume_with_signal(
    unit: Unit, stage: StageExecution, task: TaskExecution, name: str, data: dict[str, object], user: str
) -> None:
    """A suspended task gets a signal and runs again."""
    update_context(unit, stage, {"_signal_name": name, "_signal_data": data, "_signal_user": user})
    wake(unit, stage, task, f"signal {name}", user or None)
    run_task(unit, stage, task)
