"""Looking after a database of workflows: audits, dead letters, refilling a broker, and what is kept for how long."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from stabilize_celery.clock import check_seconds
from stabilize_celery.delivery.relay import Refilled, refill, refill_here
from stabilize_celery.errors import RecoveryError
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence.messages import find_letters
from stabilize_celery.persistence.retention import ENDS, Pruned, prune
from stabilize_celery.recovery.audit import Auditor
from stabilize_celery.recovery.dead_letters import DeadLetters
from stabilize_celery.recovery.findings import Audit

if TYPE_CHECKING:
    from celery import Celery

    from stabilize_celery.delivery.dispatcher import Dispatcher, Publisher
    from stabilize_celery.delivery.embedded import EagerLoop
    from stabilize_celery.persistence.store import WorkflowStore
    from stabilize_celery.settings import Settings

#: Seconds after its time a message counts as overdue.
OVERDUE = 60.0


class Maintenance:
    """The part of :class:`stabilize_celery.engine.Stabilize` for the people who operate it."""

    if TYPE_CHECKING:
        app: Celery | None

        @property
        def store(self) -> WorkflowStore: ...
        @property
        def dispatcher(self) -> Dispatcher: ...
        @property
        def publisher(self) -> Publisher: ...
        @property
        def eager(self) -> EagerLoop | None: ...
        @property
        def settings(self) -> Settings: ...

    def audit(
        self,
        workflow_id: str | None = None,
        *,
        repair: bool = False,
        user: str = "",
        overdue: float = OVERDUE,
        on_progress: Callable[[Audit], None] | None = None,
    ) -> Audit:
        """See whether everything that has not ended is driven by something, or waits for something with a name.

        Workers may run meanwhile: each batch of workflows is looked at as it is at one moment.

        Args:
            workflow_id: look at this one only.
            repair: mend what can be mended: send the messages that are missing, count again, give slots back.
            user: on whose behalf; it is kept in the history.
            overdue: after how many seconds a message that no relay sends, or whose worker is gone, is a problem.
            on_progress: called after each batch with what was found so far.

        Raises:
            TypeError, ValueError: ``overdue`` is no number of seconds from 0.
            WorkflowNotFoundError: there is no such workflow.
        """
        check_seconds(overdue, "overdue")
        if workflow_id is not None:
            self.store.head(workflow_id)
        auditor = Auditor(self.dispatcher, has_broker=self.app is not None, overdue=overdue)
        found = auditor.audit(workflow_id, on_progress)
        return auditor.repair(found, user) if repair else found

    def rebuild(self, on_progress: Callable[[Refilled], None] | None = None) -> Refilled:
        """Send everything again that a worker could handle now: for a broker that was wiped or replaced.

        Workers may run meanwhile: what is delivered twice is handled once.  What a worker is at, and what waits for
        its time, is left alone.  On an embedded engine it is handed to :attr:`processor`.

        Args:
            on_progress: called after each window of messages.

        Raises:
            QueueError: the broker cannot be reached; the relays send the rest when it is back.
        """
        if self.app is not None and self.eager is None:
            return refill(self.app, self.store, self.settings, on_progress)
        return refill_here(self.store, self.settings, self.publisher, on_progress)

    def prune(
        self,
        older_than: timedelta | None = None,
        *,
        statuses: Collection[WorkflowStatus] = ENDS,
        dry_run: bool = False,
        batch: int = 100,
        on_progress: Callable[[Pruned], None] | None = None,
    ) -> Pruned:
        """Delete workflows that ended long ago, with their history and dead letters; workers may run meanwhile.

        Never one that has not ended, that a message is about (a hook that is still to be called), or whose parent or
        sub-workflow is at work.

        Args:
            older_than: how long ago they ended at least; the setting ``retention`` by default.
            statuses: how they ended.
            dry_run: only count.
            batch: how many are deleted in one transaction.
            on_progress: called after each batch.

        Raises:
            RecoveryError: an age, a status or a batch that makes no sense, or no age at all.
        """
        if older_than is None:
            if self.settings.retention is None:
                raise RecoveryError("say how old: older_than=timedelta(days=30), or set stabilize_retention")
            older_than = timedelta(seconds=self.settings.retention)
        return prune(self.store, older_than, statuses, dry_run=dry_run, batch=batch, on_progress=on_progress)

    # ------------------------------------------------------------------ dead letters

    def dead_letters(
        self,
        *,
        workflow_id: str | None = None,
        type: str | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[dict[str, Any]]:
        """Messages that failed too often and were set aside, the latest first.

        Args:
            workflow_id: only those about this workflow.
            type: only messages of this type, such as ``CompleteStage``.
            limit: at most so many.
            before: the id of the last one of the page before.
        """
        return find_letters(self.store, workflow_id=workflow_id, type=type, limit=limit, before=before)

    def dead_letter(self, letter_id: str) -> dict[str, Any]:
        """A dead letter: ``row`` is its message, ``error`` why it failed, with the traceback.

        Raises:
            DeadLetterError: there is none of that id.
        """
        return DeadLetters(self.dispatcher).get(letter_id)

    def retry_dead_letter(self, letter_id: str, *, user: str = "") -> str:
        """Try a dead letter again, when what made it fail is mended.

        If its workflow ended TERMINAL because of it, it is revived: stages that were at work then start again, as in
        a restart.

        Returns:
            What was done, for people.

        Raises:
            DeadLetterError: there is none of that id, or trying again makes no sense; it is kept.
        """
        return DeadLetters(self.dispatcher).retry(letter_id, user)

    def drop_dead_letter(self, letter_id: str, *, user: str = "") -> None:
        """Forget a dead letter; its workflow stays as it is.

        Raises:
            DeadLetterError: there is none of that id.
        """
        DeadLetters(self.dispatcher).drop(letter_id, user)
