"""A task that waits for a person to say yes or no."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import Field

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.settings import Seconds
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.options import TaskOptions, read_options
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import current_run

#: The names of the two signals it understands.
APPROVE, REJECT = "approve", "reject"
REJECTED = "Approval rejected"


class ApprovalOptions(TaskOptions):
    """Own context of an approval stage."""

    #: Seconds after which a missing answer is a failure; ``None`` waits for ever.
    timeout: Seconds | None = Field(None, gt=0)
    #: A rejection is FAILED_CONTINUE: the workflow goes on, and sees it.
    approval_reject_continues: bool = False


class ApprovalTask(Task):
    """Suspends its stage until a person approves or rejects it.

    ``run.approve(ref, user=..., data=...)`` lets it succeed with ``approved``, ``approval`` (the data) and ``approved_by``
    as outputs; ``run.reject(ref, user=..., data=...)`` fails it with ``approved``, ``approval`` and ``rejected_by`` in the
    stage's context.  Any other signal changes nothing.
    """

    aliases = ("ApprovalTask",)

    def execute(self, stage: StageExecution) -> TaskResult:
        options = read_options(ApprovalOptions, stage)
        own = stage.own_context
        signal = own.get("_signal_name")
        answer: dict[str, Any] = {"approved": signal == APPROVE, "approval": own.get("_signal_data") or {}}
        user = own.get("_signal_user") or ""
        if signal == APPROVE:
            return TaskResult.success(outputs={**answer, "approved_by": user})
        if signal == REJECT:
            answer["rejected_by"] = user
            if options.approval_reject_continues:
                return TaskResult.failed_continue(REJECTED, outputs=answer)
            return TaskResult.terminal(REJECTED, context=answer)
        return TaskResult.suspend(timeout=self._time_left(options, stage))

    def _time_left(self, options: ApprovalOptions, stage: StageExecution) -> float | None:
        """A signal that is no answer does not give the others more time."""
        run = current_run()
        task = stage.task_by_id(run.task_id) if run is not None else None
        if options.timeout is None or run is None or task is None or task.start_time is None:
            return options.timeout
        left = task.start_time + timedelta(seconds=options.timeout + task.paused_seconds) - run.now()
        return max(0.0, left.total_seconds())
