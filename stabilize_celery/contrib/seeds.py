"""The set-up of the ``stabilize`` package: a queue, a processor made of handlers, an orchestrator.

A facade.  The queue is an inbox with a table of its own: the processor moves what is pushed into it into the messages
table of its store, and an embedded engine handles it there.  New programs are shorter with
:class:`stabilize_celery.Stabilize`.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from sqlalchemy import Connection, Index, MetaData, delete, func, insert, inspect, select
from sqlalchemy.exc import DBAPIError

from stabilize_celery.builtin import register_builtin_tasks
from stabilize_celery.clock import Clock, check_seconds
from stabilize_celery.delivery.dispatcher import Dispatcher
from stabilize_celery.delivery.embedded import EmbeddedProcessor, LocalPublisher
from stabilize_celery.errors import ConfigurationError, QueueError
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
from stabilize_celery.persistence.database import Database
from stabilize_celery.persistence.rows import new_row
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import messages
from stabilize_celery.persistence.unit_of_work import Surroundings
from stabilize_celery.settings import Settings
from stabilize_celery.stages.builder import StageDefinitionBuilderFactory
from stabilize_celery.tasks.registry import TaskRegistry

__all__ = ["MessageQueue", "Orchestrator", "PostgresQueue", "QueueProcessor", "SqliteQueue"]

logger = logging.getLogger(__name__)
Options = Settings | Mapping[str, Any]
_BATCH = 500
_DEFAULTS = Settings.of()
#: Seconds between two looks at a queue into which other processes may push.
_LOOK_EVERY = 1.0


class MessageQueue:
    """Messages on their way into a store.

    Args:
        connection_string: the database, as a SQLAlchemy URL.
        table_name: the table; :meth:`_create_table` makes it.
        clock: where times come from.
    """

    def __init__(
        self, connection_string: str, table_name: str = "queue_messages", *, clock: Clock | None = None
    ) -> None:
        if table_name == messages.name:
            raise ConfigurationError(
                f"{table_name} is the engine's own table; give the queue another table_name"
            )
        self.database = Database(connection_string, clock=clock)
        self.table_name = table_name
        #: The store its messages are about, once a processor knows it.
        self.store: WorkflowStore | None = None
        self._table = messages.to_metadata(MetaData(), name=table_name)
        # Names of indexes and keys are unique per database, and the store may live in the same one.
        self._table.primary_key.name = None
        self._table.indexes.clear()
        Index(f"ix_{table_name}_send_at", self._table.c.send_at)
        self._listeners: list[Callable[[], None]] = []

    def _create_table(self) -> None:
        """Make the table if it does not exist."""
        with self.database.begin() as connection:
            self._table.metadata.create_all(connection)

    def on_push(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever a message is pushed through this object."""
        self._listeners.append(listener)

    def close(self) -> None:
        """Close all connections."""
        self.database.dispose()

    def push(self, message: Message, delay: float | timedelta | None = None, *, label: str = "") -> str:
        """Put in a message, to be handled after ``delay`` (seconds, or a timedelta).

        Returns:
            Its id.
        """
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay or 0.0
        row = new_row(message, _DEFAULTS, self._now(), label=label, delay=seconds)
        with self._begin() as connection:
            connection.execute(insert(self._table), {**row, "send_at": row["due_at"], "sends": 0})
        for listener in self._listeners:
            listener()
        return str(row["id"])

    def size(self) -> int:
        """The number of messages that are not moved yet, those not due included."""
        with self._begin() as connection:
            return int(connection.execute(select(func.count()).select_from(self._table)).scalar_one())

    def clear(self) -> None:
        """Drop every message that is not moved yet."""
        with self._begin() as connection:
            connection.execute(delete(self._table))

    def move_to(self, store: WorkflowStore) -> int:
        """Move all messages into the messages table of a store, under the same ids.

        A crash between the two commits leaves a message in both tables; the next move finds it in the store and only
        deletes it here.

        Returns:
            The number of messages moved.
        """
        moved = 0
        while True:
            with self._both(store) as (ours, theirs):
                batch = self._take(ours)
                self._give(batch, store, theirs)
            moved += len(batch)
            if len(batch) < _BATCH:
                return moved

    def _take(self, connection: Connection) -> list[dict[str, Any]]:
        table = self._table
        oldest = select(table.c.id).order_by(table.c.send_at, table.c.id).limit(_BATCH)
        ids = connection.execute(oldest.with_for_update(skip_locked=True)).scalars()
        taken = connection.execute(delete(table).where(table.c.id.in_(list(ids))).returning(*table.c))
        return sorted((dict(row._mapping) for row in taken), key=lambda row: row["id"])

    def _give(self, batch: list[dict[str, Any]], store: WorkflowStore, connection: Connection) -> None:
        ids = [row["id"] for row in batch]
        known = set(connection.execute(select(messages.c.id).where(messages.c.id.in_(ids))).scalars())
        now, theirs = self._now(), store.now()
        new = []
        for row in batch:
            # What is left of the delay counts: the two databases may disagree on the time.
            due = theirs + max(timedelta(), row["due_at"] - now)
            new.append({**row, "due_at": due, "send_at": due})
        if new := [row for row in new if row["id"] not in known]:
            store.insert_messages(new, connection)

    @contextmanager
    def _both(self, store: WorkflowStore) -> Iterator[tuple[Connection, Connection]]:
        """One transaction if both are in one file, else two, of which the store's commits first."""
        with self._begin() as ours:
            if _file_of(self.database) is not None and _file_of(self.database) == _file_of(store.database):
                yield ours, ours
            else:
                with store.database.begin() as theirs:
                    yield ours, theirs

    def _now(self) -> datetime:
        return self.database.clock.now()

    @contextmanager
    def _begin(self) -> Iterator[Connection]:
        try:
            with self.database.begin() as connection:
                yield connection
        except DBAPIError as error:
            if inspect(self.database.engine).has_table(self.table_name):
                raise
            raise QueueError(
                f"table {self.table_name} is missing in {self.database.name}: "
                "call queue._create_table() first"
            ) from error


class SqliteQueue(MessageQueue):
    """A queue in SQLite."""


class PostgresQueue(MessageQueue):
    """A queue in PostgreSQL."""


def _file_of(database: Database) -> str | None:
    name = database.url.database
    return None if database.is_postgresql or name in (None, "", ":memory:") else os.path.realpath(str(name))


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
        queue: MessageQueue,
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
        self._pushed = threading.Event()
        self._looked = 0.0
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
        self._store = self.queue.store = store

    # ------------------------------------------------------------------ processing

    def process_one(self) -> bool:
        """Handle one message that is due; returns whether there was one."""
        embedded = self._embedded
        self._move()
        return embedded.step()

    def process_all(self, timeout: float | None = 60.0) -> int:
        """Handle messages until none is left, those not due yet included, or ``timeout`` seconds have passed.

        What a handler or a task raises ends up in the workflow and in the log, never here.

        Returns:
            The number of messages handled; the follow-ons that the engine handles together with a message count as one.
        """
        try:
            return self._drain(timeout)
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
                self._drain(None)
            except Exception:
                logger.exception("the processor of %s goes on after an error", self.queue.table_name)
            if not self._stop.is_set():
                self._pushed.wait(_LOOK_EVERY)

    def _drain(self, timeout: float | None) -> int:
        embedded = self._embedded
        self._move()
        return embedded.drain(timeout, until=self._must_stop)

    def _must_stop(self) -> bool:
        """Asked between messages; moves what was pushed meanwhile."""
        if self._pushed.is_set() or time.monotonic() - self._looked > _LOOK_EVERY:
            self._move()
        return self._stop.is_set()

    def _move(self) -> None:
        self._pushed.clear()
        self._looked = time.monotonic()
        if self._store is not None:
            self.queue.move_to(self._store)

    def _wake(self) -> None:
        self._pushed.set()
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

    def __init__(self, queue: MessageQueue, store: WorkflowStore | None = None) -> None:
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
