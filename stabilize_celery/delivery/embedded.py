"""Handling messages without a broker: the processor of an embedded engine."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

from stabilize_celery.clock import FakeClock, check_seconds
from stabilize_celery.delivery.dispatcher import Dispatcher
from stabilize_celery.observe.logs import discreet_logger
from stabilize_celery.persistence.rows import Outgoing
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.worker.ending import ENDING

logger = discreet_logger(__name__)
_LONGEST_WAIT = 1.0


class LocalPublisher:
    """Puts messages into a list in memory; what is lost with the process is found in the database again."""

    def __init__(self) -> None:
        self.ready: deque[tuple[str, str]] = deque()
        self.changed = threading.Condition()

    def publish(self, outgoing: list[Outgoing]) -> None:
        """Ready to be handled."""
        with self.changed:
            self.ready.extend((message.id, message.type) for message in outgoing)
            self.changed.notify_all()

    def wake(self, due: datetime) -> None:
        """Look at the table again."""
        with self.changed:
            self.changed.notify_all()


class EagerLoop:
    """For ``task_always_eager``: the thread that publishes a message handles it, and what follows, before it goes on.

    What follows a message is handled after it and not within it, however long the workflow is.  What is due later is
    left in the database, for :meth:`drain`.

    Args:
        store: where the messages are.
        handle: handles a message, given its id and type.
        patience: seconds after which a message that was taken and not handled is taken again.
    """

    def __init__(self, store: WorkflowStore, handle: Callable[[str, str], object], patience: float) -> None:
        self._store = store
        self._handle = handle
        self._patience = patience
        self._here = threading.local()

    def publish(self, outgoing: list[Outgoing]) -> None:
        """Handle messages, unless this thread handles them: then they are next."""
        found = [(message.id, message.type) for message in outgoing]
        waiting: deque[tuple[str, str]] | None = getattr(self._here, "waiting", None)
        if waiting is None:
            self._work(found)
        else:
            waiting.extend(found)

    def drain(self, timeout: float, until: Callable[[], bool]) -> None:
        """Handle what falls due within ``timeout`` seconds, or until ``until`` says so."""
        end = time.monotonic() + timeout
        while not until():
            rows = self._store.take_due(50, lambda _row: self._patience)
            if rows:
                self._work([(row["id"], row["type"]) for row in rows])
                continue
            left, due = min(end - time.monotonic(), _LONGEST_WAIT), self._store.next_due()
            if left <= 0:
                return
            if due is not None:
                left = min(left, (due - self._store.now()).total_seconds())
            time.sleep(max(0.0, left))

    def _work(self, found: list[tuple[str, str]]) -> None:
        # A task body that waits for another workflow has a loop of its own.
        before, self._here.waiting = getattr(self._here, "waiting", None), deque(found)
        try:
            while self._here.waiting:
                message_id, message_type = self._here.waiting.popleft()
                try:
                    self._handle(message_id, message_type)
                except Exception:
                    logger.exception("message %s could not be handled; it stays in the database", message_id)
        finally:
            self._here.waiting = before


class EmbeddedProcessor:
    """Handles the messages of a store in this process.

    Args:
        dispatcher: what handles one message; its publisher is ``publisher``.
        publisher: where ready messages are.
        concurrency: how many messages are handled at once; 1 handles them one after the other in the calling thread.
    """

    def __init__(self, dispatcher: Dispatcher, publisher: LocalPublisher, concurrency: int = 1) -> None:
        self.dispatcher = dispatcher
        self.publisher = publisher
        self.concurrency = concurrency
        self._store: WorkflowStore = dispatcher.store
        self._pool = (
            ThreadPoolExecutor(concurrency, thread_name_prefix="stabilize") if concurrency > 1 else None
        )
        self._busy = 0
        self._stopping = threading.Event()

    def step(self) -> bool:
        """Handle one message that is ready, if there is one; returns whether there was."""
        found = self._next()
        if found is None:
            return False
        with ENDING.interruptible():
            self.dispatcher.process(*found)
        return True

    def drain(self, timeout: float | None = None, until: Callable[[], bool] | None = None) -> int:
        """Handle messages until none is left, ``until`` says so, or ``timeout`` seconds have passed.

        Messages that are not due yet are waited for; with a :class:`FakeClock` the clock is moved to them instead.

        Returns:
            How many were handled.

        Raises:
            TypeError, ValueError: ``timeout`` is no number of seconds from 0.
        """
        check_seconds(timeout, "timeout")
        handled = 0
        end = None if timeout is None else time.monotonic() + timeout
        while not self._stopping.is_set() and (end is None or time.monotonic() < end):
            if until is not None and until():
                break
            if self._busy < self.concurrency:
                found = self._next()
                if found is not None:
                    self._start(found)
                    handled += 1
                    continue
            if not self._wait(end):
                break
        return handled

    def request_stop(self) -> None:
        """Let :meth:`drain` return soon."""
        self._stopping.set()
        self.publisher.wake(self._store.now())

    def close(self) -> None:
        """Wait for what is running and end the threads."""
        self.request_stop()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, found: tuple[str, str]) -> None:
        if self._pool is None:
            with ENDING.interruptible():
                self.dispatcher.process(*found)
            return
        with self.publisher.changed:
            self._busy += 1
        self._pool.submit(self._work, found)

    def _work(self, found: tuple[str, str]) -> None:
        try:
            self.dispatcher.process(*found)
        except Exception:
            logger.exception("message %s could not be handled; it stays in the database", found[0])
        finally:
            with self.publisher.changed:
                self._busy -= 1
                self.publisher.changed.notify_all()

    def _next(self) -> tuple[str, str] | None:
        with self.publisher.changed:
            if self.publisher.ready:
                return self.publisher.ready.popleft()
        resend = self.dispatcher.surroundings.settings.resend_delay
        due = [(row["id"], row["type"]) for row in self._store.take_due(50, lambda _row: resend)]
        with self.publisher.changed:
            # Several threads may be at it: one that waits in get(), and the one that runs the engine.
            self.publisher.ready.extend(due)
            return self.publisher.ready.popleft() if self.publisher.ready else None

    def _wait(self, end: float | None) -> bool:
        """Wait for the next thing to happen; false if nothing ever will."""
        due = self._store.next_due()
        with self.publisher.changed:
            if self.publisher.ready and self._busy < self.concurrency:
                return True
            if due is None and not self._busy:
                return False
            clock = self._store.clock
            if isinstance(clock, FakeClock) and due is not None and not self._busy:
                clock.advance_to(due)
                return True
            left = _LONGEST_WAIT
            if due is not None:
                left = min(left, max(0.0, (due - clock.now()).total_seconds()))
            if end is not None:
                left = min(left, max(0.0, end - time.monotonic()))
            self.publisher.changed.wait(left)
        return True
