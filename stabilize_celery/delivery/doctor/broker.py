"""The doctor's look at the broker: reachable, of which kind, and do the engine's queues fit."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from amqp.exceptions import NotFound, PreconditionFailed
from celery import Celery
from kombu.connection import Connection
from kombu.utils.url import maybe_sanitize_url

from stabilize_celery.persistence.finding import Finding, Level
from stabilize_celery.settings import Settings

#: These keep messages within one process, or lose them with it.
_NOT_SHARED = ("memory",)


def examine_broker(app: Celery, settings: Settings, timeout: float, found: list[Finding]) -> bool:
    """Add what is found; returns whether the broker can be reached."""
    shown = maybe_sanitize_url(str(app.conf.broker_write_url or app.conf.broker_url or "amqp://"))
    try:
        with app.connection_for_write(connect_timeout=timeout) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=timeout)
            _examine_kind(connection, shown, found)
            for name in settings.queues():
                if connection.transport.driver_type == "amqp":
                    _examine_queue(app, connection, name, found)
                elif connection.transport.driver_type == "redis":
                    _count_in_redis(connection, name, found)
    except Exception as error:
        found.append(
            Finding(
                "broker",
                Level.ERROR,
                f"{shown} is not reachable: {str(error) or type(error).__name__}",
                "check broker_url, and that the broker runs and lets this user in",
                "Workflows can be started without it, and go on once it is back.",
            )
        )
        return False
    return True


def _examine_kind(connection: Connection, shown: str, found: list[Finding]) -> None:
    kind = connection.transport.driver_type
    if kind == "amqp":
        told = connection.connection.server_properties
        product = " ".join(str(told.get(key, "")) for key in ("product", "version")).strip()
        found.append(Finding("broker", Level.OK, f"{shown} answers ({product or 'AMQP'})"))
    elif kind in _NOT_SHARED:
        found.append(
            Finding(
                "broker",
                Level.ERROR,
                f"{shown} connects no two processes",
                "set broker_url to RabbitMQ, or use Stabilize.embedded() for one process",
                "Workers never hear of what other processes send; the relay alone carries everything on.",
            )
        )
    elif kind == "redis":
        _examine_redis(connection, shown, found)
    else:
        found.append(
            Finding(
                "broker",
                Level.WARNING,
                f"{shown} answers ({kind})",
                "prefer RabbitMQ",
                "Other brokers confirm nothing, so what one of them loses is noticed only after "
                "stabilize_resend_delay; no workflow is lost.",
            )
        )


def _examine_redis(connection: Connection, shown: str, found: list[Finding]) -> None:
    """What Redis may lose; each costs time and no workflow, because what matters is in the database."""
    told: dict[str, Any] = connection.default_channel.client.info()  # type: ignore[attr-defined]
    found.append(Finding("broker", Level.OK, f"{shown} answers (Redis {told.get('redis_version', '')})"))
    policy = told.get("maxmemory_policy", "noeviction")
    if told.get("maxmemory") and policy != "noeviction":
        found.append(
            Finding(
                "broker",
                Level.WARNING,
                f"Redis throws away keys when its memory is full: maxmemory-policy is {policy}",
                "maxmemory-policy noeviction",
                "A queue is a key: all its messages are lost at once, and sent again after stabilize_resend_delay.",
            )
        )
    if not told.get("aof_enabled"):
        found.append(
            Finding(
                "broker",
                Level.WARNING,
                "Redis keeps no append-only file",
                "appendonly yes",
                "What waits in it is lost when it restarts, and sent again after stabilize_resend_delay. The messages of "
                "your own tasks are lost for good.",
            )
        )


def _count_in_redis(connection: Connection, name: str, found: list[Finding]) -> None:
    """Redis does not know who consumes; the workers are asked for that."""
    waiting = connection.default_channel._size(name)
    found.append(Finding("broker", Level.OK, f"queue {name}: {waiting:,} messages"))


def _examine_queue(app: Celery, connection: Connection, name: str, found: list[Finding]) -> None:
    try:
        queue = app.amqp.queues[name]
    except KeyError:
        found.append(
            Finding(
                "broker",
                Level.ERROR,
                f"queue {name} is not in task_queues, and task_create_missing_queues is off",
                f"add Queue({name!r}) to task_queues, or set task_create_missing_queues = True",
                "Nothing can be sent to it.",
            )
        )
        return
    try:
        with connection.channel() as channel:
            answer = channel.queue_declare(name, passive=True)
    except NotFound:
        found.append(
            Finding(
                "broker",
                Level.WARNING,
                f"queue {name} does not exist yet",
                f"start a worker for it: -Q {name}",
                "It is made when the first message is sent or the first worker starts.",
            )
        )
        return
    refused = _refused(connection, queue)
    if refused:
        found.append(
            Finding(
                "broker",
                Level.ERROR,
                f"queue {name} is of another kind than the app declares: {refused}",
                "let task_queues say what the broker has, or name another queue (stabilize_queue, "
                "stabilize_task_queue, stabilize_task_routes)",
                "A queue's kind cannot be changed, and whoever declares it otherwise is refused.",
            )
        )
    if answer.consumer_count:
        found.append(
            Finding(
                "broker",
                Level.OK,
                f"queue {name}: {answer.message_count:,} messages, {answer.consumer_count} consumers",
            )
        )
        return
    found.append(
        Finding(
            "broker",
            Level.ERROR,
            f"queue {name} has no consumer, and {answer.message_count:,} messages",
            f"start a worker for it: -Q {name}",
            "What is sent to it waits until there is one.",
        )
    )


def _refused(connection: Connection, queue: Any) -> str | None:
    """What the broker says to our way of declaring a queue that exists; ``None`` if it agrees."""
    channel = connection.channel()
    try:
        queue(channel).queue_declare()
    except PreconditionFailed as error:
        return str(error.reply_text)
    finally:
        with suppress(Exception):
            channel.close()
    return None
