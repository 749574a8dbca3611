"""A task whose work waits in a queue of its own: that it was sent, is sent again, or lost its worker."""

from __future__ import annotations

from typing import Any

from stabilize_celery.errors import describe_error, named_text
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.persistence.rows import last_failure
from stabilize_celery.settings import Settings
from stabilize_celery.tasks.outcome import LONGEST_REASON, Outcome, Verdict
from stabilize_celery.tasks.result import HandOver

#: In the stored error of a task: how often its own queue system has repeated it by itself.
OWN_RETRIES = "own_retries"


def launched(to: HandOver, settings: Settings) -> Outcome:
    """The outcome of sending a task's work to its queue, which is looked at if nothing comes of it."""
    return Outcome(Verdict.HANDED_OVER, hand_over=to, delay=to.delay + settings.resend_delay)


def handed_back(
    queue: str, delay: float, settings: Settings, error: dict[str, Any], reason: str, **details: Any
) -> Outcome:
    """The outcome of an attempt that is repeated by the queue system itself, in ``delay`` seconds."""
    to = HandOver(queue, lambda _: None, delay, {"delay": round(delay, 3), **details})
    return Outcome(
        Verdict.HANDED_OVER,
        hand_over=to,
        delay=delay + settings.resend_delay,
        error=error,
        reason=reason[:500],
    )


def own_retries(stage: StageExecution | None, task_id: str) -> int:
    """How often the queue system has repeated a task by itself: not the engine's attempts."""
    task = None if stage is None else stage.task_by_id(task_id)
    if task is None or not task.last_error:
        return 0
    return int(task.last_error.get("details", {}).get(OWN_RETRIES, 0))


def repeated(row: dict[str, Any], error: BaseException, delay: float) -> Outcome:
    """The outcome of an attempt whose worker was lost: sent again in ``delay`` seconds, up to ``max_attempts``."""
    described = describe_error(error, transient=True)
    old = (last_failure(row) or {}).get("details", {})
    described["details"][OWN_RETRIES] = old.get(OWN_RETRIES, 0)
    reason = named_text(error)[:LONGEST_REASON]
    return Outcome(Verdict.RETRY, error=described, delay=delay, reason=reason)
