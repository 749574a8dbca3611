"""Celery events for what workflows do, for listeners: ``celery events``, Flower, a receiver of yours.

Opt-in (``stabilize_send_events``).  Events name things and carry no user data.  They are sent by a thread of their own,
so that no workflow waits for them, and thrown away while the broker is gone or when there are too many: the history
in the database is what counts.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from celery import Celery, current_task
from celery.utils.nodenames import anon_nodename
from kombu.connection import Connection

from stabilize_celery.delivery.dispatcher import Dispatcher, Handled
from stabilize_celery.messages import TASK_PREFIX, StageLevel, TaskLevel, WorkflowLevel
from stabilize_celery.models.ids import new_id
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.observe import Transition
from stabilize_celery.plugins import Plugin

logger = logging.getLogger(__name__)
#: Events that may wait to be sent; more than that are thrown away.
_MOST = 10_000
#: Seconds before the broker is tried again.
_PAUSE = 5.0
_WORDS = {WorkflowStatus.RUNNING: "started"}


class CeleryEvents(Plugin):
    """Sends them from each process that handles messages of an app, with ``stabilize_send_events``."""

    def __init__(self) -> None:
        self._senders: weakref.WeakKeyDictionary[Any, EventSender] = weakref.WeakKeyDictionary()

    def dispatching(self, engine: Any, dispatcher: Dispatcher) -> None:
        if engine.app is None or not engine.settings.send_events:
            return
        if engine not in self._senders:
            self._senders[engine] = EventSender(engine.app)
            engine.observe(self._senders[engine].send_transitions)
        dispatcher.on_handled = self._senders[engine].send_handled

    def close(self, engine: Any) -> None:
        if engine in self._senders:
            self._senders[engine].close()


class EventSender:
    """Sends the events of one process.

    Args:
        app: whose broker is used.
    """

    def __init__(self, app: Celery) -> None:
        self._app = app
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self._waiting: queue.Queue[tuple[str, str, dict[str, Any]] | None] = queue.Queue(_MOST)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._dispatcher: Any = None

    # ------------------------------------------------------------------ what is sent

    def send_transitions(self, transitions: Sequence[Transition]) -> None:
        """An observer: every change of status, and whatever else is in the history."""
        for each in transitions:
            word = each.event if each.new is None else _word(each.new)
            group = each.event if each.new is not None else ("stage" if each.stage_id else "workflow")
            self._put(f"stabilize-{group}-{word}", _fields_of(each))

    def send_handled(self, handled: Iterable[Handled]) -> None:
        """Messages that no worker received, as if one had: Flower and others count and show them as tasks."""
        for each in handled:
            message = each.message
            ids = {
                "workflow_id": message.workflow_id if isinstance(message, WorkflowLevel) else None,
                "stage_id": message.stage_id if isinstance(message, StageLevel) else None,
                "task_id": message.task_id if isinstance(message, TaskLevel) else None,
            }
            uuid = new_id()
            name = f"{each.label} ({message.type})" if each.label else TASK_PREFIX + message.type
            shown = f"({each.label!r},)" if each.label else "()"
            self._put(
                "task-received",
                {"uuid": uuid, "name": name, "args": shown, "kwargs": "{}", "retries": 0, "eta": None, **ids},
            )
            self._put("task-started", {"uuid": uuid})
            self._put("task-succeeded", {"uuid": uuid, "result": "None", "runtime": each.seconds})

    def close(self, timeout: float = 2.0) -> None:
        """Give what waits a last chance to be sent, and end the thread."""
        thread = self._thread
        if thread is not None:
            with suppress(queue.Full):
                self._waiting.put(None, timeout=timeout)
            thread.join(timeout)
            self._thread = None

    # ------------------------------------------------------------------ sending

    def _put(self, kind: str, fields: dict[str, Any]) -> None:
        request = getattr(current_task, "request", None) if current_task else None
        hostname = getattr(request, "hostname", None) or anon_nodename()
        with suppress(queue.Full):
            self._waiting.put_nowait((kind, str(hostname), {**fields, "timestamp": time.time()}))
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._work, name="stabilize-events", daemon=True)
                    self._thread.start()

    def _work(self) -> None:
        while (event := self._waiting.get()) is not None:
            try:
                self._send(*event)
            except Exception as error:
                self._drop()
                logger.info("events cannot be sent for a while: %s", error)
                time.sleep(_PAUSE)
        self._drop()

    def _send(self, kind: str, hostname: str, fields: dict[str, Any]) -> None:
        if self._dispatcher is None:
            connection = self._app.connection_for_write(heartbeat=0)
            connection.ensure_connection(max_retries=1, interval_start=0.1)
            self._connection = connection
            self._dispatcher = self._app.events.Dispatcher(connection, buffer_while_offline=False)
        self._dispatcher.hostname = hostname
        self._dispatcher.send(kind, **fields)

    def _drop(self) -> None:
        connection, self._connection, self._dispatcher = self._connection, None, None
        if connection is not None:
            with suppress(Exception):
                connection.close()


def _word(status: WorkflowStatus) -> str:
    return _WORDS.get(status, status.name.lower().replace("_", "-"))


def _fields_of(transition: Transition) -> dict[str, Any]:
    """Identifiers and names; reasons and details may quote user data, and stay in the database."""
    fields = {
        "application": transition.application,
        "workflow_id": transition.workflow_id,
        "workflow": transition.workflow_name,
        "stage_id": transition.stage_id,
        "stage": transition.stage_ref,
        "stage_type": transition.stage_type,
        "generation": transition.generation,
        "task_id": transition.task_id,
        "task_type": transition.task_type,
        "old_status": None if transition.old is None else transition.old.name,
        "status": None if transition.new is None else transition.new.name,
    }
    return {name: value for name, value in fields.items() if value not in (None, "")}
