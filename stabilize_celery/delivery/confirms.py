"""Publishing many messages and waiting once for the broker to confirm them all."""

from __future__ import annotations

import time
from typing import Any

from celery import Celery
from kombu.connection import Connection

from stabilize_celery.delivery.publisher import encoded
from stabilize_celery.errors import QueueError
from stabilize_celery.persistence.outbox import Outgoing


class ConfirmWindow:
    """One channel with publisher confirms, matched by delivery tag.

    py-amqp's own waiting publish takes any acknowledgement for that of the last message; after a timeout it is off by
    one for ever.  Here each tag is accounted for, and after any failure the caller throws the window away.
    """

    def __init__(self, app: Celery, connection: Connection) -> None:
        self._app = app
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
                encoded(self._app, self._channel, message),
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

    def depth(self, queue: str) -> int | None:
        """How many messages wait in a queue; ``None`` if it does not exist.

        A queue that does not exist costs the channel: throw the window away.
        """
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
