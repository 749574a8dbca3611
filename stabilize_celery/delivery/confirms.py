"""Publishing many messages and knowing that the broker has them all: RabbitMQ confirms, others answer each."""

from __future__ import annotations

import time
from typing import Any, Protocol

from amqp.exceptions import ChannelError
from celery import Celery
from kombu.connection import Connection

from stabilize_celery.delivery.publisher import encoded
from stabilize_celery.errors import QueueError
from stabilize_celery.persistence.rows import Outgoing


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
