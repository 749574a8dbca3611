"""Publishing messages through the broker, after the commit that wrote their rows.

What travels is a Celery task message that names the row and, for people, the workflow, stage and task.  It is sent
without waiting for a confirm: the row, not the broker, is the guarantee.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Protocol

from amqp.exceptions import ChannelError
from celery import Celery
from kombu.connection import Connection
from kombu.serialization import dumps

from stabilize_celery.delivery.embedded import EagerLoop
from stabilize_celery.errors import QueueError
from stabilize_celery.messages import TASK_PREFIX
from stabilize_celery.persistence.rows import Outgoing

logger = logging.getLogger(__name__)
#: The message header that says in which database the row is.
DATABASE_HEADER = "stabilize_database"


def task_message(app: Celery, message: Outgoing, database: str) -> Any:
    """The Celery task message for a row of a database: headers, properties, body."""
    shown = f"({message.label!r},)" if message.label else f"({message.id!r},)"
    built = app.amqp.as_task_v2(
        message.id,
        TASK_PREFIX + message.type,
        args=(message.id,),
        argsrepr=shown,
        kwargsrepr="{}",
        shadow=f"{message.label} ({message.type})" if message.label else None,
        retries=max(0, message.attempts - 1),
        ignore_result=True,
    )
    built.headers[DATABASE_HEADER] = database
    return built


def encoded(app: Celery, channel: Any, message: Outgoing, database: str) -> Any:
    """The same as the channel's transport takes it: kombu's producer does more than is wanted, for each message."""
    built = task_message(app, message, database)
    content_type, encoding, body = dumps(built.body, "json")
    properties = {name: value for name, value in built.properties.items() if value is not None}
    return channel.prepare_message(
        body,
        priority=None,
        content_type=content_type,
        content_encoding=encoding,
        headers=built.headers,
        properties={**properties, "delivery_mode": 2},
    )


class CeleryPublisher:
    """Publishes from this process over one connection of its own, made at first use and remade after any failure.

    Args:
        app: the Celery app whose broker is used.
        database: the identity of the database in which the rows are.
        wake_relay: tells the relays that something falls due soon.
        eager: what handles messages in this process instead, while ``task_always_eager`` is set.
    """

    def __init__(
        self,
        app: Celery,
        database: Callable[[], str],
        wake_relay: Callable[[datetime], None],
        eager: Callable[[], EagerLoop | None] = lambda: None,
    ) -> None:
        self._app = app
        self._database = database
        self._wake_relay = wake_relay
        self._eager = eager
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        # A forked child must neither use nor close its parent's socket.
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._channel: Any = None
        self._declared: set[str] = set()

    def publish(self, outgoing: list[Outgoing]) -> None:
        """Send; a failure is logged and left to the relay."""
        if (loop := self._eager()) is not None:
            loop.publish(outgoing)
            return
        with self._lock:
            try:
                channel = self._ready()
                for message in outgoing:
                    self._publish_one(channel, message)
            except Exception as error:
                # Whatever went wrong, the state of the channel is unknown now.
                self._drop()
                logger.warning(
                    "%d messages could not be published (%s); the relay sends them later",
                    len(outgoing),
                    error,
                )

    def wake(self, due: datetime) -> None:
        """Something falls due at that time."""
        self._wake_relay(due)

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._drop()

    def _publish_one(self, channel: Any, message: Outgoing) -> None:
        if message.queue not in self._declared:
            # Without its queue a message is silently thrown away.
            self._app.amqp.queues[message.queue](channel).declare()
            self._declared.add(message.queue)
        ready = encoded(self._app, channel, message, self._database())
        channel.basic_publish(ready, exchange="", routing_key=message.queue, mandatory=True)

    def _ready(self) -> Any:
        if self._channel is not None and self._has_news():
            self._drop()
        if self._channel is None:
            connection = self._app.connection_for_write(heartbeat=0)
            connection.ensure_connection(max_retries=1, interval_start=0.05)
            self._connection = connection
            self._channel = connection.default_channel
        return self._channel

    def _has_news(self) -> bool:
        """Whether the broker closed the connection, or returned a message, between two publishes.

        Writing to a connection that the other side has closed succeeds once, and the message is gone.
        """
        sock = getattr(
            getattr(self._connection and self._connection.connection, "transport", None), "sock", None
        )
        if sock is None:
            return False
        with suppress(OSError, ValueError):
            return bool(select.select([sock], [], [], 0)[0])
        return True

    def _drop(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        self._declared = set()
        if connection is not None:
            with suppress(Exception):
                connection.close()


class Window(Protocol):
    """A connection over which the relay sends."""

    def send(self, messages: list[Outgoing]) -> set[str]:
        """Publish all of them; returns the ids of those that no queue took.

        Raises:
            Exception: the broker may not have them all; throw the window away.
        """

    def depth(self, queue: str) -> int:
        """How many messages wait in a queue, not counting those that workers hold.

        Raises:
            NotFound: there is no such queue; throw the window away.
        """


class AnswerWindow:
    """A broker that answers each publish itself, as Redis does, and makes a queue of whatever is written to."""

    def __init__(self, app: Celery, connection: Connection, database: str) -> None:
        self._app = app
        self._database = database
        self._channel: Any = connection.default_channel

    def send(self, messages: list[Outgoing]) -> set[str]:
        """See :class:`Window`."""
        for message in messages:
            ready = encoded(self._app, self._channel, message, self._database)
            self._channel.basic_publish(ready, exchange="", routing_key=message.queue)
        return set()

    def depth(self, queue: str) -> int:
        """See :class:`Window`; an empty queue does not exist there."""
        try:
            return int(self._channel.queue_declare(queue, passive=True).message_count)
        except ChannelError as error:
            if str(error.reply_code) != "404":
                raise
            return 0


class ConfirmWindow:
    """One channel with publisher confirms, matched by delivery tag.

    py-amqp's own waiting publish takes any acknowledgement for that of the last message; after a timeout it is off by
    one for ever.  Here each tag is accounted for, and after any failure the caller throws the window away.
    """

    def __init__(self, app: Celery, connection: Connection, database: str) -> None:
        self._app = app
        self._database = database
        self._amqp = connection.connection
        self._channel: Any = self._amqp.channel()
        self._channel.confirm_select()
        self._publish = type(self._channel)._basic_publish
        self._sequence = 0
        self._pending: dict[int, str] = {}
        self._failed: set[str] = set()
        self._channel.events["basic_ack"].add(self._on_ack)
        self._channel.events["basic_nack"].add(self._on_nack)
        self._channel.events["basic_return"].add(self._on_return)

    def send(self, messages: list[Outgoing], timeout: float = 10.0) -> set[str]:
        """Publish all of them and wait for all confirms.

        Returns:
            The ids of those that the broker refused or that no queue takes.

        Raises:
            QueueError: not all were confirmed in time; throw the window away.
        """
        self._failed = set()
        for message in messages:
            self._sequence += 1
            self._pending[self._sequence] = message.id
            self._publish(
                self._channel,
                encoded(self._app, self._channel, message, self._database),
                exchange="",
                routing_key=message.queue,
                mandatory=True,
            )
        end = time.monotonic() + timeout
        while self._pending:
            left = end - time.monotonic()
            if left <= 0:
                raise QueueError(f"{len(self._pending)} messages were not confirmed within {timeout:g} s")
            self._amqp.drain_events(timeout=left)
        return self._failed

    def depth(self, queue: str) -> int:
        """See :class:`Window`; a queue that does not exist costs the channel."""
        answer = self._channel.queue_declare(queue, passive=True)
        return int(answer.message_count)

    def _settle(self, tag: int, multiple: bool) -> list[str]:
        tags = [t for t in self._pending if t <= tag] if multiple else [tag]
        return [self._pending.pop(t) for t in tags if t in self._pending]

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._settle(tag, multiple)

    def _on_nack(self, tag: int, multiple: bool, *_: Any) -> None:
        self._failed.update(self._settle(tag, multiple))

    def _on_return(self, _error: Any, _exchange: str, _routing_key: str, message: Any) -> None:
        self._failed.add(str(message.properties.get("correlation_id")))
