"""Refilling an empty broker from the database, without waiting for the relays to notice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from stabilize_celery.delivery.dispatch import Publisher
from stabilize_celery.delivery.relay import Relay
from stabilize_celery.errors import QueueError
from stabilize_celery.persistence.leases import take_waiting
from stabilize_celery.persistence.rows import outgoing, waits_in
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.settings import Settings

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
    """Send everything that somebody could handle now.

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
