"""What came of one attempt at a task: the bridge from the worker that ran it to the handler that records it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from stabilize_celery.tasks.result import HandOver, TaskResult


class Verdict(Enum):
    """What to do with the task now."""

    #: It returned, or failed for good.
    RETURNED = "returned"
    #: It failed and is run again later.
    RETRY = "retry"
    #: It waits in a queue of its own for somebody who takes over the lease.
    HANDED_OVER = "handed over"
    #: The workflow is paused: it was not run.
    PARK = "park"
    #: The stage is not wanted any more: it was not run, or its result does not count.
    CANCELED = "canceled"
    #: The message is stale.
    DROP = "drop"


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
