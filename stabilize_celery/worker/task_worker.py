"""The worker of one process: it claims tasks, reports how they end, and speaks for processes that cannot."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol

from stabilize_celery.errors import TaskNotFoundError, describe_error, is_transient, named_text
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.observe.logs import discreet_logger, seldom
from stabilize_celery.persistence.leases import Claimed
from stabilize_celery.persistence.rows import last_failure, waits_in
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.plugins import AttemptHook
from stabilize_celery.redaction import Redactor
from stabilize_celery.settings import Settings
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.outcome import LONGEST_REASON, Attempt, Outcome, Verdict
from stabilize_celery.tasks.registry import TaskRegistry
from stabilize_celery.tasks.result import HandOver
from stabilize_celery.worker.leases import LeaseKeeper
from stabilize_celery.worker.limits import failure, period, unknown

logger = discreet_logger(__name__)
#: Records an outcome: message id, fencing token, attempt; false if the lease was lost.
Settle = Callable[[str, int, Attempt], bool]


class HandBack(Protocol):
    """Lets another worker make an attempt, which counts or does not."""

    def __call__(self, message_id: str, token: int, *, counted: bool = False) -> None: ...


class TaskWorker:
    """Claims tasks, and gives their outcomes to ``settle``, or an attempt to ``hand_back``."""

    def __init__(
        self,
        store: WorkflowStore,
        registry: TaskRegistry,
        settings: Settings,
        keeper: LeaseKeeper,
        settle: Settle,
        hand_back: HandBack,
        owner: str,
    ) -> None:
        self.store = store
        self.registry = registry
        self.settings = settings
        self.keeper = keeper
        self.settle = settle
        self.hand_back = hand_back
        self.owner = owner
        #: Seconds that a task this worker does not know is put off; ``None`` where there are no other workers.
        self.unknown_grace: Callable[[], float | None] = lambda: None
        #: Of plugins, entered around the code of each attempt.
        self.attempt_hooks: Sequence[AttemptHook] = ()

    def claim(self, message_id: str) -> Claimed | None:
        """Claim a task for this process; ``None`` if there is nothing to do."""
        return self.store.claim(message_id, self.owner, self.settings.lease)

    def publish(self, message_id: str, to: HandOver) -> None:
        """Send a task's work; while the broker is away that is left to the relay, anything else is its failure."""
        try:
            to.publish({"message": message_id, "database": self.store.database.identity})
        except Exception as error:
            if is_transient(error):
                logger.warning(
                    "the work of message %s was not sent (%s); it is sent later", message_id, error
                )
                return
            problem = error
            self.settle_for(message_id, None, lambda _row: failure(problem))

    def settle_for(
        self, message_id: str, owner: str | None, outcome_of: Callable[[dict[str, Any]], Outcome | None]
    ) -> bool:
        """Report for a process that cannot: it was ended, or it never got the work.

        Args:
            message_id: the row.
            owner: the process whose lease must be on the row; ``None`` if only one that waits in a queue is meant.
            outcome_of: from the row to what is reported, if anything.
        """
        row = self.store.message(message_id)
        if row is not None and waits_in(row) is not None:
            # It counts as an attempt, so that it is not sent for ever to a queue where it cannot be started.
            taken = self.store.begin(message_id, self.owner, self.settings.lease)
            row = None if taken is None else taken.row
        elif row is None or owner is None or row["lease_owner"] != owner:
            row = None
        outcome = None if row is None else outcome_of(row)
        if row is None or outcome is None:
            return False
        outcome = outcome.redacted(lambda: Redactor(keys=self.settings.redact_keys))
        attempt = Attempt(outcome, row["attempts"], self.owner, row["claims"])
        return self.settle(message_id, row["claims"], attempt)

    def lost(self, row: dict[str, Any], error: BaseException) -> Outcome:
        """The outcome of an attempt whose worker was lost: repeated after a while, up to ``max_attempts``."""
        described = describe_error(error, transient=True)
        old = (last_failure(row) or {}).get("details", {})
        described["details"][OWN_RETRIES] = old.get(OWN_RETRIES, 0)
        reason = named_text(error)[:LONGEST_REASON]
        delay = self.backoff(max(1, row["attempts"]))
        return Outcome(Verdict.RETRY, error=described, delay=delay, reason=reason)

    def unknown(self, what: str, told: str, row: Mapping[str, Any]) -> Outcome:
        """The outcome for a task that no code in this worker is registered for."""
        grace = self.unknown_grace()
        if grace is None:
            return failure(TaskNotFoundError(told), unmapped=True)
        told = told if told.endswith("?") else f"{told}."
        error = TaskNotFoundError(
            f"{told} Worker {self.owner} does not know it, and none that did took it within {grace:g} s: "
            "let every worker of its queue import the module that registers it (stabilize_imports), "
            "then restart the stage"
        )
        outcome = unknown(error, row, grace, self.store.now())
        if outcome.verdict is Verdict.PUT_OFF and seldom(f"unknown {what}"):
            logger.warning(
                "%s Worker %s does not know %s: message %s is put off for %g s, for a worker that does; "
                "it fails if none comes within %g s of the first try",
                told,
                self.owner,
                what,
                row["id"],
                outcome.delay,
                grace,
            )
        return outcome

    def limit(self, task: Task, stage: StageExecution) -> timedelta:
        """How long one call may take, whatever is left of its stage's time."""
        own = task.get_execution_timeout(stage)
        if own is not None:
            return period(own, "get_execution_timeout", stage, positive=True)
        return timedelta(seconds=self.settings.task_time_limit)

    def backoff(self, attempt: int) -> float:
        """Seconds until the next attempt: 1, 2, 4 ... with jitter."""
        shortest, longest = self.settings.retry_delay, self.settings.retry_delay_max
        delay = min(longest, shortest * 2 ** min(attempt - 1, 30)) * random.uniform(0.75, 1.25)
        return float(max(shortest, min(longest, delay)))


# ---------------------------------------------------------------------- tasks whose work waits in a queue of its own

#: In the stored error of a task: how often its own queue system has repeated it by itself.
OWN_RETRIES = "own_retries"


def launched(to: HandOver, settings: Settings) -> Outcome:
    """The outcome of sending a task's work to its queue, which is looked at if it has no effect."""
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
