"""Looking after a database of workflows: audits, dead letters, refilling a broker, and what is kept for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stabilize_celery.persistence.letter_store import find_letters
from stabilize_celery.recovery.audit import Auditor
from stabilize_celery.recovery.dead_letters import DeadLetters
from stabilize_celery.recovery.problem import Audit

if TYPE_CHECKING:
    from celery import Celery

    from stabilize_celery.delivery.dispatch import Dispatcher
    from stabilize_celery.persistence.store import WorkflowStore

#: Seconds after its time a message counts as overdue.
OVERDUE = 60.0


class Maintenance:
    """The part of :class:`stabilize_celery.engine.Stabilize` for whoever operates it."""

    if TYPE_CHECKING:
        app: Celery | None

        @property
        def store(self) -> WorkflowStore: ...
        @property
        def dispatcher(self) -> Dispatcher: ...

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
            repair: mend what can be mended: send the messages that are missing, count anew, give slots back.
            user: on whose behalf; it is kept in the history.
            overdue: after how many seconds a message that nobody sends, or whose worker is gone, is a problem.
            on_progress: called after each batch with what was found so far.

        Raises:
            WorkflowNotFoundError: there is no such workflow.
        """
        if workflow_id is not None:
            self.store.head(workflow_id)
        auditor = Auditor(self.dispatcher, has_broker=self.app is not None, overdue=overdue)
        found = auditor.audit(workflow_id, on_progress)
        return auditor.repair(found, user) if repair else found

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

        If its workflow ended TERMINAL because of it, it is revived: stages that were at work then begin anew, as in
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
