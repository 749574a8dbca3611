"""The processor of the seed documents: made of handlers, it handles what is pushed into its queue."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from stabilize_celery.delivery.dispatch import Dispatcher
from stabilize_celery.delivery.inline import EmbeddedProcessor, LocalPublisher
from stabilize_celery.errors import ConfigurationError
from stabilize_celery.handlers.base import Handler
from stabilize_celery.handlers.registry import default_handlers
from stabilize_celery.handlers.run_task import RunTaskHandler
from stabilize_celery.messages import Message
from stabilize_celery.persistence.message_queue import MessageQueue
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.unit_of_work import Surroundings
from stabilize_celery.settings import Settings
from stabilize_celery.stages.builder import StageDefinitionBuilderFactory
from stabilize_celery.tasks.builtin import register_builtin_tasks
from stabilize_celery.tasks.registry import TaskRegistry, TaskSource

logger = logging.getLogger(__name__)
Options = Settings | Mapping[str, Any]
#: How often a queue is looked at into which others may push without this process noticing.
_LOOK_EVERY = 1.0


class QueueProcessor:
    """Handles the messages of a queue, one after the other.

    The store, and the registry of task types, are those of the handlers registered with it unless they are
    given.  A message type without a registered handler is handled by the engine's own handler.

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
        if store is not None:
            self._adopt_store(store)
        queue.on_push(self._wake)

    # ------------------------------------------------------------------ handlers

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
        """Let a handler handle the messages of its type, whoever did so before.

        Raises:
            ConfigurationError: the handler belongs to another store than those before it.
        """
        if handler.store is not None:
            self._adopt_store(handler.store)
        if handler.registry is not None and (self._registry is None or isinstance(handler, RunTaskHandler)):
            self._adopt_registry(handler.registry)
        self._handlers[handler.message_type] = handler
        self._registered.add(handler.message_type)

    def _adopt_store(self, store: WorkflowStore) -> None:
        if self._store is not None and self._store is not store:
            raise ConfigurationError("the handlers of a processor must all be made with the same store")
        self._store = self.queue.store = store

    def _adopt_registry(self, registry: TaskRegistry) -> None:
        if registry is not self._registry and "_dispatcher" in self.__dict__:
            raise ConfigurationError("register the handler that brings the task registry before processing")
        self._registry = registry

    # ------------------------------------------------------------------ processing

    def process_one(self) -> bool:
        """Handle one message that is due; returns whether there was one."""
        self._move()
        return self._embedded.step()

    def process_all(self, timeout: float | None = 60.0) -> int:
        """Handle messages until none is left, those not due yet included, or ``timeout`` seconds have passed.

        What a handler or a task raises ends up in the workflow and in the log, never here.

        Returns:
            How many were handled; the engine handles follow-ons of a message together with it, as one.
        """
        try:
            return self._drain(timeout)
        finally:
            if self._thread is None:
                self._stop.clear()

    def start(self) -> None:
        """Process in a thread until :meth:`stop`; does nothing if that is so already."""
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
        """Let the thread, or a running :meth:`process_all`, end after the message it is at."""
        self._stop.set()
        self._wake()

    def stop(self, wait: bool = True, timeout: float | None = None) -> bool:
        """End the thread of :meth:`start`.

        Returns:
            Whether it still runs: ``wait`` was false, or it did not end within ``timeout`` seconds.
        """
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
        self._move()
        return self._embedded.drain(timeout, until=self._look)

    def _look(self) -> bool:
        """Called between messages: move what was pushed meanwhile, and see whether to stop."""
        if self._pushed.is_set() or time.monotonic() - self._looked > _LOOK_EVERY:
            self._move()
        return self._stop.is_set()

    def _move(self) -> None:
        self._pushed.clear()
        self._looked = time.monotonic()
        self.queue.move_to(self._dispatcher.store)

    def _wake(self) -> None:
        self._pushed.set()
        if self._store is not None:
            self._publisher.wake(self._store.now())

    # ------------------------------------------------------------------ the engine behind it

    @cached_property
    def _publisher(self) -> LocalPublisher:
        return LocalPublisher()

    @cached_property
    def _dispatcher(self) -> Dispatcher:
        if self._store is None:
            raise ConfigurationError(
                "this processor knows no store yet: register a handler made with one, or pass store="
            )
        registry = self._registry if self._registry is not None else TaskRegistry()
        register_builtin_tasks(_OnlyMissing(registry))
        worker = f"{socket.gethostname()}:{os.getpid()}"
        surroundings = Surroundings(self.settings, registry, self.builders, worker)
        return Dispatcher(self._store, self._handlers, surroundings, self._publisher)

    @cached_property
    def _embedded(self) -> EmbeddedProcessor:
        return EmbeddedProcessor(self._dispatcher, self._publisher, concurrency=1)


class _OnlyMissing(TaskRegistry):
    """Passes on registrations of names that are not taken."""

    def __init__(self, target: TaskRegistry) -> None:
        self._target = target

    def register(
        self, name: str, task: TaskSource, aliases: Iterable[str] = (), *, replace: bool = False
    ) -> None:
        if not self._target.knows(name):
            self._target.register(name, task, aliases, replace=replace)


def _chosen(options: Options | None) -> dict[str, Any]:
    if options is None:
        return {}
    if isinstance(options, Settings):
        return options.model_dump(exclude_unset=True)
    return dict(options)
