"""The relay: sends what is overdue, and what was waiting for its time.

Most messages are published by the process that wrote them, right after the commit.  The relay takes care of the rest:
delayed ones, those whose publishing failed, those of workers that died, all of them after the broker was wiped.  It runs
in a thread of every worker; several share the work by skipping each other's locks.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from amqp.exceptions import NotFound
from celery import Celery
from kombu.connection import Connection
from kombu.exceptions import OperationalError

from stabilize_celery.crash_points import reach
from stabilize_celery.delivery.dispatcher import Publisher
from stabilize_celery.delivery.publisher import AnswerWindow, ConfirmWindow, Window
from stabilize_celery.errors import QueueError, StoreError
from stabilize_celery.persistence.leases import count_sent, put_off, take_waiting
from stabilize_celery.persistence.rows import Outgoing, outgoing, waits_in
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.settings import Settings

Row = dict[str, Any]
#: So many waiting messages double the time until they are looked at again.
_CROWD = 1000


class Backlog:
    """Chooses what is sent of what is due.

    A queue with fewer messages than rows that were sent to it has lost some: as many as it is short of are sent
    again, the oldest first, and never more, so that it does not grow however long its workers take.  The others are put
    off all at once: what is due behind them has not to wait until each was looked at.

    Args:
        store: where the messages are.
        settings: the engine's options.
        depth: how many messages wait in a queue of the broker.
    """

    def __init__(self, store: WorkflowStore, settings: Settings, depth: Callable[[str], int]) -> None:
        self._store = store
        self._settings = settings
        self._depth = depth

    def without(self, rows: list[Row]) -> list[Row]:
        """Those of some due messages, oldest first, that have to be sent."""
        fresh: list[Row] = []
        sent: dict[str, list[Row]] = defaultdict(list)
        handed_over: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            queue = waits_in(row)
            if queue is not None:
                handed_over[queue].append(row)
            elif row["sends"] > 0 and row["lease_owner"] is None:
                sent[row["queue"]].append(row)
            else:
                fresh.append(row)
        chosen = {row["id"] for row in fresh}
        for queue, overdue in sent.items():
            on_their_way = sum(row["queue"] == queue for row in fresh)
            chosen |= {row["id"] for row in self._missing(queue, overdue, on_their_way)}
        for queue, overdue in handed_over.items():
            chosen |= {row["id"] for row in self._vanished(queue, overdue)}
        return [row for row in rows if row["id"] in chosen]

    def _missing(self, queue: str, overdue: list[Row], on_their_way: int) -> list[Row]:
        depth = self._depth(queue)
        if depth == 0:
            return overdue
        wanted = depth + on_their_way + len(overdue)
        short = max(0, count_sent(self._store, queue, wanted) - depth - on_their_way)
        if short < len(overdue):
            put_off(self._store, queue, self._patience(depth))
        return overdue[:short]

    def _vanished(self, queue: str, overdue: list[Row]) -> list[Row]:
        """Their queue belongs to others as well: what is in it cannot be counted against ours."""
        depth = self._depth(queue)
        if depth == 0:
            return overdue
        put_off(self._store, queue, self._patience(depth), handed_over=True)
        return []

    def _patience(self, depth: int) -> float:
        settings = self._settings
        return min(settings.resend_delay_max, settings.resend_delay * (1 + depth / _CROWD))


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


#: Messages in one window: sent together, and waited for together.
WINDOW = 500


@dataclass
class Refilled:
    """What was sent again.

    Attributes:
        sent: how many messages the broker has confirmed.
        refused: how many it refused; a relay tries them again.
    """

    sent: int = 0
    refused: int = 0


def refill(
    app: Celery,
    store: WorkflowStore,
    settings: Settings,
    on_progress: Callable[[Refilled], None] | None = None,
) -> Refilled:
    """Send everything that a worker could handle now.

    Workers may run meanwhile: what is delivered twice is handled once.

    Raises:
        QueueError: the broker cannot be reached, or does not confirm; what it has not got is sent by the relays.
    """
    relay = Relay(app, store, settings)
    done = Refilled()
    due_by, after = store.now(), ""
    try:
        relay.connect()
        while rows := take_waiting(store, due_by, after, WINDOW, relay.next_send):
            after = rows[-1]["id"]
            try:
                refused = relay.send(chosen := _not_there(relay, rows))
            except Exception:
                store.send_soon([row["id"] for row in rows], settings.relay_interval)
                raise
            done.sent += len(chosen) - len(refused)
            done.refused += len(refused)
            if on_progress is not None:
                on_progress(done)
    except QueueError:
        raise
    except Exception as error:
        if not isinstance(error, (OperationalError, *app.connection_for_write().connection_errors)):
            raise
        raise QueueError(
            f"the broker {app.connection_for_write().as_uri()} cannot be reached: {error}; "
            f"{done.sent} messages were sent before, the others are sent by the relays of the workers"
        ) from error
    finally:
        with suppress(Exception):
            relay.disconnect()
    return done


def refill_here(
    store: WorkflowStore,
    settings: Settings,
    publisher: Publisher,
    on_progress: Callable[[Refilled], None] | None = None,
) -> Refilled:
    """The same for an engine without a broker: hand everything to its publisher."""
    done = Refilled()
    due_by, after = store.now(), ""
    while rows := take_waiting(store, due_by, after, WINDOW, lambda _row: settings.resend_delay):
        after = rows[-1]["id"]
        publisher.publish([outgoing(row) for row in rows])
        done.sent += len(rows)
        if on_progress is not None:
            on_progress(done)
    return done


def _not_there(relay: Relay, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out work that waits in a Celery queue which still holds something: the queue is not empty."""
    depths: dict[str, int] = {}
    chosen = []
    for row in rows:
        queue = waits_in(row)
        if queue is not None and queue not in depths:
            depths[queue] = relay.depth(queue)
        if queue is None or depths[queue] == 0:
            chosen.append(row)
    return chosen
