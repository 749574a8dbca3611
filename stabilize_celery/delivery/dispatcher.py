"""Handling one message: take it, let its handler and those of its follow-ons run, commit, publish what follows."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from stabilize_celery.crash_points import reach
from stabilize_celery.errors import (
    CommitUnknownError,
    InvalidMessageError,
    StoreError,
    UnknownMessageError,
    describe_error,
)
from stabilize_celery.handlers.base import Handler
from stabilize_celery.handlers.registry import Handlers
from stabilize_celery.handlers.transitions import cancel_stage, end_workflow
from stabilize_celery.messages import MESSAGE_TYPES, Message, WorkflowLevel
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.observe import tell
from stabilize_celery.observe.logs import Scope, current_scope, discreet_logger, hiding, scoped
from stabilize_celery.persistence.database import COLLISIONS, is_canceled, is_retryable, is_unavailable
from stabilize_celery.persistence.rows import Outgoing, message_of, new_row, outgoing
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.unit_of_work import Surroundings, UnitOfWork
from stabilize_celery.redaction import redact
from stabilize_celery.settings import Settings
from stabilize_celery.tasks.outcome import Attempt
from stabilize_celery.tasks.registry import TaskRegistry
from stabilize_celery.worker.attempt import OnFailure, run_attempt
from stabilize_celery.worker.ending import ENDING
from stabilize_celery.worker.leases import HAND_BACK_DELAY, LeaseKeeper, Slot
from stabilize_celery.worker.task_worker import TaskWorker

logger = discreet_logger(__name__)


def burial_reason(message_id: str) -> str:
    """How the reason begins for which a message that was given up ends its workflow."""
    return f"message {message_id} is a dead letter"


class Engine(Protocol):
    """What entrypoints, bootsteps and pools need of the engine that is installed on their app."""

    registry: TaskRegistry

    @property
    def settings(self) -> Settings: ...
    @property
    def store(self) -> WorkflowStore: ...
    @property
    def dispatcher(self) -> Dispatcher: ...
    def attempt_hooks(self) -> Any: ...
    def enter_worker(self) -> None: ...
    def enter_pool_child(self, slot: Slot | None = None) -> None: ...


class Publisher(Protocol):
    """Gets messages to the workers that handle them."""

    def publish(self, outgoing: list[Outgoing]) -> None:
        """Send; never raises: what is not sent now, the relay sends later."""

    def wake(self, due: datetime) -> None:
        """Something falls due at that time."""


@dataclass(frozen=True)
class Handled:
    """A message that was handled, with a label for people, and how many seconds its handler took."""

    message: Message
    label: str
    seconds: float


class Dispatcher:
    """Handles messages of one engine in one process."""

    def __init__(
        self,
        store: WorkflowStore,
        handlers: Handlers,
        surroundings: Surroundings,
        publisher: Publisher,
    ) -> None:
        self.store = store
        self.handlers = handlers
        self.surroundings = surroundings
        self.publisher = publisher
        #: Told, after the commit, of the messages that were handled without having been sent.
        self.on_handled: Callable[[list[Handled]], None] | None = None
        #: Results, as message id and fencing token, whose commit was lost sight of.
        self._unsure: set[tuple[str, int]] = set()
        settings = surroundings.settings
        self._hiding = hiding(settings.redact_keys)
        self.keeper = LeaseKeeper(store, settings.lease, settings.heartbeat, settings.task_kill_grace)
        self.keeper.renew = lambda leases, lease: store.heartbeat(leases, lease, surroundings.worker)
        self.worker = TaskWorker(
            store,
            surroundings.registry,
            settings,
            self.keeper,
            self._settle,
            self.hand_back,
            surroundings.worker,
        )

    # ------------------------------------------------------------------ sending

    def send(self, message: Message, label: str = "", *, to_existing: bool = False) -> Outgoing:
        """Write a message from outside any handler, and publish it.

        Raises:
            WorkflowNotFoundError: its workflow has been deleted, and must exist: ``to_existing``.
        """
        row = new_row(message, self.surroundings.settings, self.store.now(), label=label)
        if to_existing:
            self.store.insert_order(row)
        else:
            self.store.insert_messages([row])
        self.publisher.publish([outgoing(row)])
        return outgoing(row)

    # ------------------------------------------------------------------ handling

    def process(self, message_id: str, message_type: str, on_failure: OnFailure | None = None) -> bool:
        """Handle a message of either kind; returns whether there was anything to do.

        Args:
            message_id: its row.
            message_type: ``RunTask``, ``StartStage`` and so on.
            on_failure: told when user code has failed, once that is recorded; without it, it is logged.
        """
        cls = MESSAGE_TYPES.get(message_type)
        with ENDING.held():
            if cls is not None and cls.runs_user_code:
                return self.run(message_id, on_failure)
            return self.handle(message_id)

    def run(self, message_id: str, on_failure: OnFailure | None = None) -> bool:
        """Run the user code of a message."""
        claimed = self.worker.claim(message_id)
        if claimed is None:
            return False
        token = claimed.row["claims"]
        try:
            message = message_of(claimed.row)
        except UnknownMessageError as error:
            self._put_back(message_id, error, token)
        except InvalidMessageError as error:
            self._failed(message_id, error, token)
        else:
            run_attempt(self.worker, message, claimed, on_failure)
            return True
        return False

    def handle(self, message_id: str, *, was_sent: bool = True) -> bool:
        """Handle a control message, and then those it left for this process, which were not sent."""
        handled = False
        waiting = deque([message_id])
        while waiting:
            unit = self._transact_safely(waiting.popleft(), was_sent=was_sent)
            was_sent = False
            if unit is not None:
                handled = True
                waiting.extend(unit.local)
        return handled

    def _settle(self, message_id: str, token: int, attempt: Attempt) -> bool:
        """Record the outcome of an attempt; refused (false) if the lease was lost."""
        try:
            unit = self._transact_safely(message_id, token, attempt)
        except CommitUnknownError:
            self._unsure.add((message_id, token))
            raise
        if unit is None:
            if (message_id, token) in self._unsure and self.store.message(message_id) is None:
                logger.info("the result of message %s was recorded when the database went away", message_id)
                self._unsure.discard((message_id, token))
                return True
            logger.warning("the result of message %s was refused: its lease was lost", message_id)
            return False
        for local in unit.local:
            try:
                self.handle(local, was_sent=False)
            except StoreError as error:
                if not is_unavailable(error):
                    raise
                # The result is recorded; the relay sends what follows of it.
                logger.warning("message %s is handled later: %s", local, error)
        return True

    def hand_back(
        self, message_id: str, token: int, *, after: float = HAND_BACK_DELAY, counted: bool = False
    ) -> None:
        """Let another worker make an attempt, in ``after`` seconds, because the process that makes it is ended.

        The relays are left to send it: what this process sent might come to its own worker, which is ending too.
        Until then the lease is kept, so that the main process can still say that something else ended the attempt.
        """
        if self.store.hand_back(message_id, token, after, counted=counted):
            self.publisher.wake(self.store.now() + timedelta(seconds=after))

    def _transact_safely(
        self,
        message_id: str,
        token: int | None = None,
        attempt: Attempt | None = None,
        *,
        was_sent: bool = True,
    ) -> UnitOfWork | None:
        """One transaction with its repetitions; a message that keeps failing ends as a dead letter."""
        with scoped(Scope(message_id)):
            return self._repeat(message_id, token, attempt, was_sent)

    def _repeat(
        self, message_id: str, token: int | None, attempt: Attempt | None, was_sent: bool
    ) -> UnitOfWork | None:
        inline: bool | None = None
        handled: list[Handled] = []
        for collision in range(COLLISIONS):
            try:
                handled.clear()
                unit = self._transact(message_id, token, attempt, inline, handled)
            except UnknownMessageError as error:
                self._put_back(message_id, error, token)
                return None
            except Exception as error:
                if is_retryable(error) and collision < COLLISIONS - 1:
                    time.sleep(random.uniform(0, 0.01 * 2**collision))
                    continue
                if is_unavailable(error) and not (attempt is None and is_canceled(error)):
                    raise
                if inline is None and not isinstance(error, InvalidMessageError):
                    # A follow-on may be at fault: alone in its own transaction it takes no other message with it.
                    logger.debug(
                        "message %s is repeated without follow-ons",
                        message_id,
                        exc_info=True,
                        extra=self._hiding,
                    )
                    inline = False
                    continue
                self._failed(message_id, error, token)
                return None
            if unit is not None:
                self.finish(unit)
                if self.on_handled is not None:
                    self.on_handled(handled[was_sent:])
            return unit
        return None

    def _transact(
        self,
        message_id: str,
        token: int | None,
        attempt: Attempt | None,
        inline: bool | None,
        handled: list[Handled],
    ) -> UnitOfWork | None:
        taken = self.store.take(message_id, token, self.surroundings, inline, attempt)
        unit: UnitOfWork | None = None
        try:
            with taken as unit:
                if unit is None:
                    return None
                self._step(unit, unit.message, handled)
                while unit.follow_ons:
                    self._step(unit, unit.follow_ons.popleft(), handled)
        except CommitUnknownError:
            # If it was not committed these find no row, and the message is handled again.
            if unit is not None:
                self.publisher.publish(unit.outgoing)
            raise
        return unit

    def _step(self, unit: UnitOfWork, message: Message, handled: list[Handled]) -> None:
        current_scope().turn_to(message)
        if self.on_handled is None:
            self._handle_in(unit, message)
            return
        began = time.perf_counter()
        self._handle_in(unit, message)
        handled.append(Handled(message, unit._label(message), time.perf_counter() - began))

    def _handle_in(self, unit: UnitOfWork, message: Message) -> None:
        handler: Handler[Any] = self.handlers[type(message)]
        handler.handle(message, unit)

    def finish(self, unit: UnitOfWork) -> None:
        """After the commit: publish what it sent, and tell observers."""
        reach("message.committed")
        if unit.outgoing:
            self.publisher.publish(unit.outgoing)
        if unit.next_due is not None:
            self.publisher.wake(unit.next_due)
        reach("message.published")
        if unit.transitions:
            tell(self.surroundings.observers, unit.transitions)

    # ------------------------------------------------------------------ failing

    def _put_back(self, message_id: str, error: UnknownMessageError, token: int | None) -> None:
        self.store.put_back(message_id, self.surroundings.settings.resend_delay, token)
        logger.warning("message %s is put back: %s", message_id, error, extra=self._hiding)

    def _failed(self, message_id: str, error: Exception, token: int | None) -> None:
        settings = self.surroundings.settings
        described = redact(describe_error(error), settings.redact_keys)
        failures = None
        if not isinstance(error, InvalidMessageError):
            failures = self.store.record_failure(message_id, described, settings.control_retry_delay, token)
            if failures is None:
                return
            if failures < settings.control_max_attempts:
                logger.warning(
                    "message %s failed %d times, tried again",
                    message_id,
                    failures,
                    exc_info=error,
                    extra=self._hiding,
                )
                self.publisher.wake(self.store.now())
                return
        logger.error("message %s is a dead letter", message_id, exc_info=error, extra=self._hiding)
        self._bury(message_id, described, token)

    def _bury(self, message_id: str, error: dict[str, Any], token: int | None = None) -> None:
        """Move a message to the dead letters; its workflow fails with that reason, so that nothing hangs."""
        with self.store.bury(message_id, error, self.surroundings, token) as unit:
            if unit is None:
                return
            assert isinstance(unit.message, WorkflowLevel)
            workflow = unit.whole(unit.message.workflow_id)
            if workflow is None or workflow.status.is_complete:
                return
            reason = f"{burial_reason(message_id)}: {error['details']['error']}"[:500]
            for stage in workflow.stages:
                if not stage.status.is_complete and stage.status is not S.NOT_STARTED:
                    cancel_stage(unit, stage, reason, "system")
            end_workflow(unit, workflow, S.TERMINAL, reason, "system")
            unit.flush()
        self.finish(unit)
