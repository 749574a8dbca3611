"""What came of one attempt at a task: the bridge from the worker that ran it to the handler that records it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from stabilize_celery.redaction import Redactor
from stabilize_celery.tasks.result import HandOver, TaskResult


class Verdict(Enum):
    """What to do with the task now."""

    #: It returned, or failed for good.
    RETURNED = "returned"
    #: It failed and is run again later.
    RETRY = "retry"
    #: It waits in a queue of its own for a process that takes over the lease.
    HANDED_OVER = "handed over"
    #: This worker does not know it: it was not run, and another one may.
    PUT_OFF = "put off"
    #: The workflow is paused: it was not run.
    PARK = "park"
    #: The stage is not wanted any more: it was not run, or its result does not count.
    CANCELED = "canceled"
    #: The message is stale.
    DROP = "drop"
    #: Its process is being ended: the attempt does not count, and another worker makes it.
    HANDED_BACK = "handed back"


@dataclass(frozen=True)
class Outcome:
    """The verdict on an attempt and what belongs to it."""

    verdict: Verdict
    result: TaskResult | None = None
    #: Stored form of the error, see :func:`stabilize_celery.errors.describe_error`.
    error: dict[str, Any] | None = None
    #: Seconds until it is run again.
    delay: float = 0.0
    context_update: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    #: The failure is final whatever the stage's failure policy says of the task itself.
    unmapped: bool = False
    hand_over: HandOver | None = None
    #: What was raised.
    exception: BaseException | None = field(default=None, repr=False, compare=False)
    #: It holds no secrets any more.
    clean: bool = False

    def redacted(self, redactor: Callable[[], Redactor]) -> Outcome:
        """The outcome as it may be stored, logged and shown: without secrets in what it says of a failure.

        Args:
            redactor: made when it is needed, which for most outcomes it is not.
        """
        result = self.result
        failed = result is not None and (result.status.is_halt or result.status.is_failure)
        context = {} if result is None else result.context
        texts = {key: context[key] for key in _FOR_PEOPLE if key in context}
        if self.clean or not (self.error or self.reason or texts or (failed and context)):
            return self
        hide = redactor()
        if result is not None and context:
            context = hide.kept(context) if failed else context
            result = replace(
                result, context={**context, **{key: hide.value(text) for key, text in texts.items()}}
            )
        # Where it was cut may be within a secret.
        reason = hide.text(self.reason, truncated=len(self.reason) >= LONGEST_REASON)
        return replace(self, error=hide.value(self.error), reason=reason, result=result, clean=True)


#: What tasks leave in their stage's context for people.
_FOR_PEOPLE = ("error", "exception", "stdout", "stderr")
#: Characters of an error in the history.
LONGEST_REASON = 500


@dataclass(frozen=True)
class Attempt:
    """What the handler needs to know of the attempt beside its outcome."""

    outcome: Outcome
    number: int = 1
    worker: str = ""
    #: The fencing token it had.
    token: int = 0
    #: Whose task it was, if that is known.
    stage_id: str | None = None
    #: It was the stage's last task, and has come to its end.
    may_end_stage: bool = False
