"""The result of one call of a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stabilize_celery.clock import check_seconds
from stabilize_celery.errors import error_text, truncate_error
from stabilize_celery.models.status import WorkflowStatus


@dataclass(frozen=True)
class HandOver:
    """A task whose work is done elsewhere: the process that starts it takes over the lease.

    Attributes:
        queue: where it waits; while messages wait there it is not sent again.
        publish: sends the work, given the headers that name the message row to take over; called after the commit.
        delay: seconds before which it is not started.
        details: for the history.
    """

    queue: str
    publish: Callable[[Mapping[str, str]], None]
    delay: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskResult:
    """The result of one call of a task.

    Attributes:
        status: what the task has come to.
        context: merged into the stage's own context.
        outputs: merged into the stage's outputs, which the stages after it see.
        target_stage_ref_id: where a redirect goes.
        suspend_timeout: seconds after which a suspension without a signal fails; ``None`` waits forever.
        retry_after: seconds until a task that is still running is called again; ``None`` backs off.
        hand_over: where the work goes on, for a task that only sends it there.

    Raises:
        TypeError, ValueError: a part of another kind; a delay or timeout that is no number of seconds from 0.
    """

    status: WorkflowStatus
    context: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    target_stage_ref_id: str | None = None
    suspend_timeout: float | None = None
    retry_after: float | None = None
    hand_over: HandOver | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.status, WorkflowStatus):
            raise TypeError(f"the status of a TaskResult is a WorkflowStatus, not {self.status!r:.80}")
        for name, value in (("context", self.context), ("outputs", self.outputs)):
            if not isinstance(value, dict):
                raise TypeError(f"{name} of a TaskResult is a dict, not of type {type(value).__name__}")
        if self.retry_after is not None:
            check_seconds(self.retry_after, "retry_after of TaskResult.running")
        if self.suspend_timeout is not None:
            check_seconds(self.suspend_timeout, "timeout of TaskResult.suspend")

    @classmethod
    def success(
        cls, outputs: Mapping[str, Any] | None = None, context: Mapping[str, Any] | None = None
    ) -> TaskResult:
        """It did its work."""
        return cls(WorkflowStatus.SUCCEEDED, dict(context or {}), dict(outputs or {}))

    @classmethod
    def running(
        cls, context: Mapping[str, Any] | None = None, retry_after: float | None = None
    ) -> TaskResult:
        """It is not done; call it again later.  This does not count as an attempt."""
        return cls(WorkflowStatus.RUNNING, dict(context or {}), retry_after=retry_after)

    @classmethod
    def terminal(cls, error: str | BaseException, context: Mapping[str, Any] | None = None) -> TaskResult:
        """It failed; ``error`` (of an exception: its text) goes into the stage's context, a very long one cut."""
        return cls(WorkflowStatus.TERMINAL, {**(context or {}), "error": _error_text(error)})

    @classmethod
    def failed_continue(
        cls,
        error: str | BaseException,
        outputs: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
    ) -> TaskResult:
        """It failed, and the workflow goes on."""
        kept = {**(context or {}), "error": _error_text(error)}
        return cls(WorkflowStatus.FAILED_CONTINUE, kept, dict(outputs or {}))

    @classmethod
    def skipped(cls) -> TaskResult:
        """There was nothing to do."""
        return cls(WorkflowStatus.SKIPPED)

    @classmethod
    def canceled(cls, outputs: Mapping[str, Any] | None = None) -> TaskResult:
        """It was canceled."""
        return cls(WorkflowStatus.CANCELED, outputs=dict(outputs or {}))

    @classmethod
    def stopped(cls, outputs: Mapping[str, Any] | None = None) -> TaskResult:
        """It ends its branch without failing the workflow."""
        return cls(WorkflowStatus.STOPPED, outputs=dict(outputs or {}))

    @classmethod
    def suspend(cls, context: Mapping[str, Any] | None = None, timeout: float | None = None) -> TaskResult:
        """It waits for a signal, for ``timeout`` seconds at most."""
        return cls(WorkflowStatus.SUSPENDED, dict(context or {}), suspend_timeout=timeout)

    @classmethod
    def handed_over(cls, to: HandOver) -> TaskResult:
        """Its work is done elsewhere, and the result is reported from there."""
        return cls(WorkflowStatus.RUNNING, hand_over=to)

    @classmethod
    def redirect(cls, context: Mapping[str, Any] | None = None) -> TaskResult:
        """Kept for old code; a redirect without a target is a failure.  Use :meth:`jump_to`."""
        return cls(WorkflowStatus.REDIRECT, dict(context or {}))

    @classmethod
    def jump_to(
        cls,
        target_stage_ref_id: str,
        context: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> TaskResult:
        """Continue at another stage, which is reset and sees ``context`` (seed document *Flow Control*)."""
        return cls(WorkflowStatus.REDIRECT, dict(context or {}), dict(outputs or {}), target_stage_ref_id)

    @classmethod
    def builder(cls, status: WorkflowStatus) -> TaskResultBuilder:
        """Build a result step by step."""
        return TaskResultBuilder(cls(status))

    def merge_outputs(self, other: Mapping[str, Any]) -> TaskResult:
        """The same result with more outputs."""
        return replace(self, outputs={**self.outputs, **other})


def _error_text(error: Any) -> Any:
    if isinstance(error, BaseException):
        return error_text(error)
    return truncate_error(error) if isinstance(error, str) else error


class TaskResultBuilder:
    """Collects the parts of a :class:`TaskResult`."""

    def __init__(self, result: TaskResult) -> None:
        self._result = result

    def context(self, context: Mapping[str, Any]) -> TaskResultBuilder:
        """Add to the context."""
        self._result = replace(self._result, context={**self._result.context, **context})
        return self

    def outputs(self, outputs: Mapping[str, Any]) -> TaskResultBuilder:
        """Add to the outputs."""
        self._result = self._result.merge_outputs(outputs)
        return self

    def build(self) -> TaskResult:
        """The result."""
        return self._result
