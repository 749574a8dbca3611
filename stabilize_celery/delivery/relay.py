"""The relay: sends what is overdue, and what was waiting for its time.

Most messages are published by whoever wrote them, right after the commit.  The relay takes care of the rest: delayed
ones, those whose publishing failed, those of workers that died, all of them after the broker was wiped.  It runs in a
thread of every worker; several share the work by skipping each other's locks.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from datetime import datetime
from functools import cached_property
from typing import Any

from amqp.exceptions import NotFound
from celery import Celery
from kombu.connection import Connection

from stabilize_celery.crash_points import reach
from stabilize_celery.delivery.backlog import Backlog
from stabilize_celery.delivery.confirms import AnswerWindow, ConfirmWindow, Window
from stabilize_celery.errors import StoreError
from stabilize_celery.persistence.rows import Outgoing, outgoing, waits_in
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.settings import Settings

logger = logging.getLogger(__name__)
#: Seconds until a message is sent a second time after its lease was lost.
_AFTER_A_LOST_LEASE = 1.0
#: Brokers that say how many messages wait in a queue.
_COUNTS = frozenset({"amqp", "redis", "memory"})


class Relay:
    """Sends due messages until it is stopped.

    Args:
        app: whose broker is used.
        store: where the messages are.
        settings: the engine's options.
    """

    def __init__(self, app: Celery, store: WorkflowStore, settings: Settings) -> None:
        self._app = app
        self._store = store
        self._settings = settings
        self._stopping = threading.Event()
        #: The messages of a sweep that has not come to its end.
        self._under_way: list[str] = []
        self._bell = store.bell()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._window: Window | None = None
        self._backlog = Backlog(store, settings, self.depth)
        self.sent = 0
        self.resent = 0
        self.leases_lost = 0
        self.failures = 0

    def start(self) -> None:
        """Begin, in a thread."""
        self._thread = threading.Thread(target=self._run, name="stabilize-relay", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """End the thread."""
        self._stopping.set()
        self._bell.ring_here()
        if self._thread is not None:
            self._thread.join(timeout)

    def info(self) -> dict[str, Any]:
        """For ``celery inspect stats``."""
        alive = self._thread is not None and self._thread.is_alive()
        return {
            "alive": alive,
            "database": self._store.database.identity,
            "sent": self.sent,
            "resent": self.resent,
            "leases_lost": self.leases_lost,
            "failures": self.failures,
        }

    def _run(self) -> None:
        while not self._stopping.is_set():
            pause = self.turn()
            if pause > 0:
                self._bell.wait(pause)
        self._drop()
        self._bell.close()

    def turn(self) -> float:
        """Send what is due, if that is possible; returns after how many seconds to look again."""
        try:
            swept = self.sweep()
            self._under_way = []
            return 0.0 if swept >= self._settings.relay_batch else self._until(self._store.next_due())
        except Exception as error:
            self.failures += 1
            self._drop()
            logger.warning("the relay is interrupted and tries again: %s", error)
            self._put_back()
            self._stopping.wait(self._settings.relay_interval)
            return 0.0

    def _put_back(self) -> None:
        """What could not be sent is not put off for it, however long the broker is away."""
        message_ids, self._under_way = self._under_way, []
        # A database that is away as well leaves it to the time until which they were put off.
        with suppress(StoreError):
            self._store.send_soon(message_ids, self._settings.relay_interval)

    def _until(self, due: datetime | None) -> float:
        longest = self._settings.relay_interval
        if due is None:
            return longest
        return max(0.0, min(longest, (due - self._store.now()).total_seconds()))

    def sweep(self) -> int:
        """Send one batch of what is due; returns how many messages were due."""
        rows = self._store.take_due(self._settings.relay_batch, self.next_send)
        self._under_way = [row["id"] for row in rows]
        if not rows:
            return 0
        reach("relay.taken")
        self.send(self._backlog.without(rows))
        reach("relay.sent")
        return len(rows)

    def send(self, rows: list[dict[str, Any]]) -> set[str]:
        """Send messages, and wait until the broker has them.

        Returns:
            The ids of those that it refused or that no queue takes; they are sent again soon.
        """
        vanished = [row["id"] for row in rows if waits_in(row) is not None]
        if vanished:
            self._store.take_back(vanished)
        failed = self._send([outgoing(row) for row in rows])
        if failed:
            logger.error(
                "%d messages were refused or have no queue: %s", len(failed), self._queues(rows, failed)
            )
            self._store.send_soon(list(failed), self._settings.relay_interval)
        self.sent += len(rows) - len(failed)
        self.resent += sum(row["sends"] > 0 for row in rows)
        self.leases_lost += sum(row["lease_owner"] is not None and waits_in(row) is None for row in rows)
        return failed

    def next_send(self, row: dict[str, Any]) -> float:
        """How long to wait for something to come of it before its queue is looked at (again).

        A message that merely waits in its queue is not sent again then, so there is no reason to wait longer each time;
        but where that cannot be seen there is.
        """
        delay = self._settings.resend_delay
        if row["lease_owner"] is not None and waits_in(row) is None:
            # The worker whose process was lost, or is frozen, may get it, and hold it without beginning it.  Sent once
            # more it comes to another.
            return min(_AFTER_A_LOST_LEASE, delay)
        if not self._sees_waiting:
            delay = min(delay * 2.0 ** min(row["sends"], 16), self._settings.resend_delay_max)
        return float(delay)

    @cached_property
    def _sees_waiting(self) -> bool:
        """Whether a message that waits is counted in its queue: not by every broker, nor if workers take all there are."""
        counts = self._app.connection_for_write().transport.driver_type in _COUNTS
        return counts and self._app.conf.worker_prefetch_multiplier != 0

    def depth(self, queue: str) -> int:
        """How many messages wait in a queue; none if it does not exist."""
        try:
            return self._ready().depth(queue)
        except NotFound:
            self._drop()
            return 0

    def _send(self, messages: list[Outgoing]) -> set[str]:
        if not messages:
            return set()
        window = self._ready()
        for queue in {message.queue for message in messages}:
            self._app.amqp.queues[queue](self._connection.default_channel).declare()  # type: ignore[union-attr]
        return window.send(messages)

    def connect(self) -> None:
        """Connect to the broker; otherwise done at first use."""
        self._ready()

    def disconnect(self) -> None:
        """Close the connection; the next use makes another."""
        self._drop()

    def _ready(self) -> Window:
        if self._window is None:
            connection = self._app.connection_for_write(heartbeat=0)
            connection.ensure_connection(max_retries=1, interval_start=0.1)
            self._connection = connection
            kind = ConfirmWindow if connection.transport.driver_type == "amqp" else AnswerWindow
            self._window = kind(self._app, connection, self._store.database.identity)
        return self._window

    def _drop(self) -> None:
        connection, self._connection, self._window = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.close()

    @staticmethod
    def _queues(rows: list[dict[str, Any]], failed: set[str]) -> str:
        return ", ".join(sorted({row["queue"] for row in rows if row["id"] in failed}))
