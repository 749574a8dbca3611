"""Tasks that only send their work elsewhere: what is recorded of it, and what of it counts as an attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stabilize_celery.errors import describe_error, is_transient, named_text
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.observe.logs import discreet_logger
from stabilize_celery.persistence.rows import last_failure, waits_in
from stabilize_celery.redaction import Redactor
from stabilize_celery.settings import Settings
from stabilize_celery.tasks.outcome import LONGEST_REASON, Attempt, Outcome, Verdict
from stabilize_celery.tasks.result import HandOver
from stabilize_celery.worker.judge import failure

if TYPE_CHECKING:
    from stabilize_celery.worker.execution import TaskWorker

logger = discreet_logger(__name__)
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


def publish(worker: TaskWorker, message_id: str, to: HandOver) -> None:
    """Send the work; while the broker is away that is left to the relay, anything else is a failure of the task."""
    try:
        to.publish({"message": message_id, "database": worker.store.database.identity})
    except Exception as error:
        if is_transient(error):
            logger.warning("the work of message %s was not sent (%s); it is sent later", message_id, error)
            return
        problem = error
        settle_for(worker, message_id, None, lambda _row: failure(problem))


def settle_for(
    worker: TaskWorker,
    message_id: str,
    owner: str | None,
    outcome_of: Callable[[dict[str, Any]], Outcome | None],
) -> bool:
    """Report for a process that cannot: it was ended, or it never got the work.

    Args:
        worker: of this process.
        message_id: the row.
        owner: the process whose lease must be on the row; ``None`` if only one that waits in a queue is meant.
        outcome_of: from the row to what is reported, if anything.
    """
    row = worker.store.message(message_id)
    if row is not None and waits_in(row) is not None:
        # It counts as an attempt, so that it is not sent for ever to a queue where it cannot be begun.
        begun = worker.store.begin(message_id, worker.owner, worker.settings.lease)
        row = None if begun is None else begun.row
    elif row is None or owner is None or row["lease_owner"] != owner:
        row = None
    if row is None:
        return False
    outcome = outcome_of(row)
    if outcome is None:
        return False
    outcome = outcome.redacted(lambda: Redactor(keys=worker.settings.redact_keys))
    attempt = Attempt(outcome, row["attempts"], worker.owner, row["claims"])
    return worker.settle(message_id, row["claims"], attempt)


def repeated(worker: TaskWorker, row: dict[str, Any], error: BaseException) -> Outcome:
    """The outcome of an attempt whose worker was lost: sent again after a while, up to ``max_attempts``."""
    described = describe_error(error, transient=True)
    old = (last_failure(row) or {}).get("details", {})
    described["details"][OWN_RETRIES] = old.get(OWN_RETRIES, 0)
    delay = worker.backoff(max(1, row["attempts"]))
    reason = named_text(error)[:LONGEST_REASON]
    return Outcome(Verdict.RETRY, error=described, delay=delay, reason=reason)
