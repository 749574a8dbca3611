"""The set-up of the ``stabilize`` package: a queue, a processor made of handlers, an orchestrator.

A facade over the embedded engine: the queue puts messages into the table where that finds them.  New programs are
shorter with :class:`stabilize_celery.Stabilize`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cached_property
from typing import Any

from sqlalchemy import make_url

from stabilize_celery.builtin import register_builtin_tasks
from stabilize_celery.clock import Clock, check_seconds
from stabilize_celery.delivery.dispatcher import Dispatcher
from stabilize_celery.delivery.embedded import EmbeddedProcessor, LocalPublisher
from stabilize_celery.errors import ConfigurationError, QueueError, SchemaVersionError
from stabilize_celery.handlers.base import Handler
from stabilize_celery.handlers.registry import default_handlers
from stabilize_celery.handlers.run_task import RunTaskHandler
from stabilize_celery.messages import (
    CancelWorkflow,
    Message,
    PauseWorkflow,
    RestartStage,
    ResumeWorkflow,
    StartWorkflow,
    WorkflowLevel,
)
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence.rows import new_row
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.unit_of_work import Surroundings
from stabilize_celery.settings import Settings
from stabilize_celery.stages.builder import StageDefinitionBuilderFactory
from stabilize_celery.tasks.registry import TaskRegistry

__all__ = ["Orchestrator", "PostgresQueue", "Queue", "QueueProcessor", "SqliteQueue"]

logger = logging.getLogger(__name__)
Options = Settings | Mapping[str, Any]
_DEFAULTS = Settings.of()
#: Seconds between two looks at a table into which other processes may push.
_LOOK_EVERY = 1.0


class Queue:
    """Puts messages into the messages table of a store.

    That is the store of its processor or, while none is known, the one in its own database.  A queue in memory keeps its
    messages until a store is known.

    Args:
        connection_string: the database of the store, as a SQLAlchemy URL.
        table_name: a name for logs; there is no table of that name.
        clock: where times come from.
    """

    def __init__(
        self, connection_string: str, table_name: str = "queue_messages", *, clock: Clock | None = None
    ) -> None:
        self.table_name = table_name
        #: The store of its processor.
        self.store: WorkflowStore | None = None
        self._url = make_url(connection_string)
        self._clock = clock or Clock()
        self._kept: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], None]] = []

    def _create_table(self) -> None:
        """Nothing: the store makes the table.  Programs written for the ``stabilize`` package call it."""

    @cached_property
    def _own_store(self) -> WorkflowStore | None:
        if self._url.get_backend_name() == "sqlite" and self._url.database in (None, "", ":memory:"):
            return None
        return WorkflowStore(self._url.render_as_string(hide_password=False), clock=self._clock)

    def use(self, store: WorkflowStore) -> None:
        """Put messages into that store from now on, first those that were kept."""
        with self._lock:
            now = self._clock.now()
            rows = []
            for row in self._kept:
                due = store.now() + max(timedelta(), row["due_at"] - now)
                rows.append({**row, "due_at": due, "send_at": due})
            if rows:
                store.insert_messages(rows)
            self._kept.clear()
            self.store = store

    def on_push(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever a message is pushed through this object."""
        self._listeners.append(listener)

    def push(self, message: Message, delay: float | timedelta | None = None, *, label: str = "") -> str:
        """Put in a message, to be handled after ``delay`` (seconds, or a timedelta).

        Returns:
            Its id.
        """
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay or 0.0
        with self._lock:
            store = self.store or self._own_store
            now = self._clock.now() if store is None else store.now()
            row = new_row(message, _DEFAULTS, now, label=label, delay=seconds)
            # Nothing has published it: whatever looks at the table next takes it.
            row |= {"send_at": row["due_at"], "sends": 0}
            if store is None:
                self._kept.append(row)
        if store is not None:
            self._insert(store, row)
        for listener in self._listeners:
            listener()
        return str(row["id"])

    def _insert(self, store: WorkflowStore, row: dict[str, Any]) -> None:
        try:
            store.insert_messages([row])
        except SchemaVersionError as error:
            raise QueueError(
                f"{error}. The queue {self.table_name} puts messages into the database of its store: make the tables, give "
                "it the same database as the store, or make its processor first"
            ) from error

    def size(self) -> int:
        """The number of messages that are not handled yet, those not due included."""
        store = self.store or self._own_store
        return len(self._kept) if store is None else store.count_messages()

    def close(self) -> None:
        """Close its own connections."""
        if self.__dict__.get("_own_store") is not None:
            self.__dict__.pop("_own_store").close()


class SqliteQueue(Queue):
    """A queue in SQLite."""


class PostgresQueue(Queue):
    """A queue in PostgreSQL."""


class QueueProcessor:
    """Handles the messages of a queue, one after the other.

    The store, and the registry of task types, are those of the handlers registered with it unless they are given.  A
    message type without a registered handler is handled by the engine's own handler.

    Args:
        queue: where messages are pushed.
        config: options of the engine: :class:`~stabilize_celery.settings.Settings`, or some as a mapping.
        store: where the workflows are.
        handler_config: more options; these win over ``config``.
        task_registry: the task types; the built-in ones are added to it if they are missing.
        builders: stage definition builders; those of the global factory are used for types it does not know.
    """

    def __init__(
        self,
        queue: Queue,
        config: Options | None = None,
        store: WorkflowStore | None = None,
        handler_config: Options | None = None,
        task_registry: TaskRegistry | None = None,
        builders: StageDefinitionBuilderFactory | None = None,
    ) -> None:
        self.queue = queue
        self.settings = Settings.of(**{**_chosen(config), **_chosen(handler_config)})
        self.builders = builders or StageDefinitionBuilderFactory()
        self._store: WorkflowStore | None = None
        self._registry = task_registry
        self._handlers = default_handlers()
        self._registered: set[type[Message]] = set()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._publisher = LocalPublisher()
        if store is not None:
            self._use_store(store)
        queue.on_push(self._wake)

    def register_handler(self, handler: Handler[Any]) -> None:
        """Let a handler handle the messages of its type.

        Raises:
            ValueError: the type has a registered handler already; :meth:`replace_handler` is for that.
            ConfigurationError: the handler belongs to another store than those before it.
        """
        if handler.message_type in self._registered:
            known = type(self._handlers[handler.message_type]).__name__
            raise ValueError(
                f"{handler.message_type.__name__} is handled by {known} already; use replace_handler()"
            )
        self.replace_handler(handler)

    def replace_handler(self, handler: Handler[Any]) -> None:
        """Let a handler handle the messages of its type, in place of the one before.

        Raises:
            ConfigurationError: the handler belongs to another store than those before it.
        """
        if handler.store is not None:
            self._use_store(handler.store)
        registry = handler.registry
        if registry is not None and (self._registry is None or isinstance(handler, RunTaskHandler)):
            if registry is not self._registry and "_embedded" in self.__dict__:
                raise ConfigurationError(
                    "register the handler that brings the task registry before processing"
                )
            self._registry = registry
        self._handlers[handler.message_type] = handler
        self._registered.add(handler.message_type)

    def _use_store(self, store: WorkflowStore) -> None:
        if self._store is not None and self._store is not store:
            raise ConfigurationError("the handlers of a processor must all be made with the same store")
        if self._store is None:
            self.queue.use(store)
        self._store = store

    # ------------------------------------------------------------------ processing

    def process_one(self) -> bool:
        """Handle one message that is due; returns whether there was one."""
        return self._embedded.step()

    def process_all(self, timeout: float | None = 60.0) -> int:
        """Handle messages until none is left, those not due yet included, or ``timeout`` seconds have passed.

        What a handler or a task raises ends up in the workflow and in the log, never here.

        Returns:
            The number of messages handled; the follow-ons that the engine handles together with a message count as one.
        """
        try:
            return self._embedded.drain(timeout, until=self._stop.is_set)
        finally:
            if self._thread is None:
                self._stop.clear()

    def start(self) -> None:
        """Process in a thread until :meth:`stop`; does nothing while that thread runs."""
        if self.is_running:
            return
        self._stop.clear()
        self._embedded  # noqa: B018  (a missing store is an error here, not in the thread)
        self._thread = threading.Thread(target=self._work, name="stabilize-processor", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """Whether the thread of :meth:`start` is alive."""
        return self._thread is not None and self._thread.is_alive()

    def request_stop(self) -> None:
        """End the thread, or a running :meth:`process_all`, after the message it handles."""
        self._stop.set()
        self._wake()

    def stop(self, wait: bool = True, timeout: float | None = None) -> bool:
        """End the thread of :meth:`start`.

        Returns:
            Whether it still runs: ``wait`` was false, or it did not end within ``timeout`` seconds.

        Raises:
            TypeError, ValueError: ``timeout`` is no number of seconds from 0.
        """
        check_seconds(timeout, "timeout")
        self.request_stop()
        if self._thread is not None and wait:
            self._thread.join(timeout)
        if self.is_running:
            return True
        self._thread = None
        self._stop.clear()
        return False

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                self._embedded.drain(until=self._stop.is_set)
            except Exception:
                logger.exception("the processor of %s goes on after an error", self.queue.table_name)
            with self._publisher.changed:
                if not self._stop.is_set():
                    self._publisher.changed.wait(_LOOK_EVERY)

    def _wake(self) -> None:
        if self._store is not None:
            self._publisher.wake(self._store.now())

    @cached_property
    def _embedded(self) -> EmbeddedProcessor:
        """The engine behind it."""
        if self._store is None:
            raise ConfigurationError(
                "this processor knows no store yet: register a handler made with one, or pass store="
            )
        registry = self._registry if self._registry is not None else TaskRegistry()
        builtin = TaskRegistry()
        register_builtin_tasks(builtin)
        for name in builtin.names():
            source = builtin.source(name)
            if source is not None and not registry.knows(name):
                registry.register(name, source)
        worker = f"{socket.gethostname()}:{os.getpid()}"
        surroundings = Surroundings(self.settings, registry, self.builders, worker)
        dispatcher = Dispatcher(self._store, self._handlers, surroundings, self._publisher)
        return EmbeddedProcessor(dispatcher, self._publisher, concurrency=1)


def _chosen(options: Options | None) -> dict[str, Any]:
    return options.model_dump(exclude_unset=True) if isinstance(options, Settings) else dict(options or {})


class Orchestrator:
    """Starts and controls workflows; a processor of the same queue carries it out.

    Args:
        queue: where the messages go.
        store: with it, :meth:`start` stores a workflow that is not stored yet.
    """

    def __init__(self, queue: Queue, store: WorkflowStore | None = None) -> None:
        self.queue = queue
        self.store = store

    def start(self, workflow: Workflow) -> None:
        """Start a workflow that is in the store."""
        if self.store is not None:
            self.store.store(workflow)
        self._push(StartWorkflow, workflow, pipeline_config_id=workflow.pipeline_config_id)

    def cancel(self, workflow: Workflow, user: str = "", reason: str = "") -> None:
        """Cancel everything that has not ended."""
        self._push(CancelWorkflow, workflow, user=user, reason=reason)

    def restart(self, workflow: Workflow, stage_id: str, user: str = "") -> None:
        """Run a stage that has ended again, and everything downstream of it.

        Raises:
            ValueError: the workflow has no such stage.
        """
        store = self.store or self.queue.store
        # The caller's copy may be older than the stage's last reset.
        current = workflow if store is None else store.retrieve(workflow.id)
        stage = current.stage_by_id(stage_id)
        limit = workflow.pipeline_config_id
        ids = {"stage_id": stage.id, "generation": stage.generation}
        self._push(RestartStage, workflow, **ids, user=user, pipeline_config_id=limit)

    def pause(self, workflow: Workflow, user: str = "") -> None:
        """Start nothing more until :meth:`unpause`."""
        self._push(PauseWorkflow, workflow, user=user)

    def unpause(self, workflow: Workflow, user: str = "") -> None:
        """Go on after a pause."""
        self._push(ResumeWorkflow, workflow, user=user, pipeline_config_id=workflow.pipeline_config_id)

    def get_execution(self, workflow_id: str) -> Workflow:
        """The present state of a workflow.

        Raises:
            WorkflowNotFoundError: there is none of that id.
        """
        store = self.store or self.queue.store
        if store is None:
            raise ConfigurationError(
                "this orchestrator knows no store: make it with Orchestrator(queue, store)"
            )
        return store.retrieve(workflow_id)

    def _push(self, kind: type[WorkflowLevel], workflow: Workflow, **fields: Any) -> None:
        self.queue.push(kind(workflow_id=workflow.id, **fields), label=workflow.name)
