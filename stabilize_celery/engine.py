"""The object users hold: an engine on their Celery app, or embedded in their process."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from stabilize_celery.builtin import configure_builtin_tasks, register_builtin_tasks
from stabilize_celery.clock import Clock, check_seconds
from stabilize_celery.crash_points import reach
from stabilize_celery.delivery.dispatcher import Dispatcher, Publisher
from stabilize_celery.delivery.embedded import EagerLoop, EmbeddedProcessor, LocalPublisher
from stabilize_celery.errors import ConfigurationError, TaskNotFoundError, WorkflowTimeoutError
from stabilize_celery.handlers.registry import default_handlers
from stabilize_celery.maintenance import Maintenance
from stabilize_celery.messages import StartWorkflow
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.validation import validate_workflow
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.nesting import Nesting
from stabilize_celery.observe import Observer, Observers
from stabilize_celery.persistence.notify import Bell
from stabilize_celery.persistence.rows import Outgoing, new_row, outgoing
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.unit_of_work import Surroundings
from stabilize_celery.plugins import AttemptHook, check_plugins, plugin, plugins
from stabilize_celery.run import WorkflowRun
from stabilize_celery.settings import Settings
from stabilize_celery.stages.builder import (
    StageDefinitionBuilder,
    StageDefinitionBuilderFactory,
    global_factory,
)
from stabilize_celery.tasks.registry import TaskRegistry, TaskSource

if TYPE_CHECKING:
    from celery import Celery
    from celery.schedules import crontab

    from stabilize_celery.worker.leases import Slot


def _end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


T = TypeVar("T", bound=TaskSource)


def _warn_uncommitted() -> None:
    from stabilize_celery.persistence.transactions import TESTS_NEVER_COMMIT

    warnings.warn(
        "task_always_eager: the workflow cannot run before the transaction in which it was started commits. "
        + TESTS_NEVER_COMMIT,
        RuntimeWarning,
        stacklevel=4,
    )


class Stabilize(Nesting, Maintenance):
    """The workflow engine.

    ``Stabilize(app)`` installs it on a Celery app; ``Stabilize()`` and later :meth:`init_app` do the same in two
    steps; :meth:`embedded` needs no Celery at all.
    """

    def __init__(self, app: Celery | None = None) -> None:
        self.app: Celery | None = None
        self.registry = TaskRegistry()
        register_builtin_tasks(self.registry)
        self.builders = StageDefinitionBuilderFactory(fallback=global_factory())
        #: Told every transition after its commit; see :meth:`observe`.
        self.observers = Observers()
        #: Workflows that Celery beat starts, by name; see :meth:`schedule`.
        self.schedules: dict[str, Any] = {}
        self._enable_nesting()
        self.registry.mark_builtin()
        self._settings: Settings | None = None
        self._clock: Clock | None = None
        self._concurrency = 1
        self._end_process: Callable[[], None] | None = None
        self._slot: Slot | None = None
        self._is_worker = False
        for each in plugins():
            each.connect(self)
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Celery) -> Stabilize:
        """Install the engine on a Celery app; doing it twice changes nothing.

        Raises:
            ConfigurationError: it is installed on another app already.
        """
        from stabilize_celery.delivery.celery_app import install

        if self.app is not None and self.app is not app:
            raise ConfigurationError(
                f"this Stabilize is installed on app {self.app.main!r}; make another one for app {app.main!r}"
            )
        if self.app is None:
            self.app = app
            install(app, self)
        return self

    @classmethod
    def embedded(
        cls,
        url: str = "sqlite://",
        *,
        concurrency: int = 4,
        clock: Clock | None = None,
        create_tables: bool = True,
        **settings: Any,
    ) -> Stabilize:
        """An engine in this process, without a broker.

        Args:
            url: SQLite (in memory by default) or PostgreSQL.
            concurrency: how many tasks run at once.
            clock: a :class:`~stabilize_celery.clock.FakeClock` makes waiting a matter of moving the clock.
            create_tables: make the tables if they are missing.
            settings: any option of :class:`~stabilize_celery.settings.Settings`, without its prefix.
        """
        engine = cls()
        engine._use(Settings.of(database_url=url, **settings))
        engine._clock = clock
        engine._concurrency = concurrency
        if create_tables:
            engine.create_tables()
        return engine

    # ------------------------------------------------------------------ parts

    @property
    def settings(self) -> Settings:
        """The options in force, read from the app's configuration at first use."""
        if self._settings is None:
            if self.app is None:
                raise ConfigurationError(
                    "this Stabilize has no Celery app yet: call init_app(app), or use Stabilize.embedded()"
                )
            from stabilize_celery.delivery.celery_app import read_settings

            self._use(read_settings(self.app))
        assert self._settings is not None
        return self._settings

    def _use(self, settings: Settings) -> None:
        check_plugins(settings)
        self._settings = settings
        configure_builtin_tasks(self.registry, settings)
        for module in settings.imports:
            importlib.import_module(module)

    @cached_property
    def store(self) -> WorkflowStore:
        """The database."""
        settings = self.settings
        if settings.database_url is None:
            raise ConfigurationError(
                "stabilize_database_url is not set; set it to the database that holds the workflows, such as "
                "app.conf.stabilize_database_url = 'postgresql+psycopg://localhost/shop'"
            )
        return WorkflowStore(
            settings.database_url,
            clock=self._clock,
            pool_size=settings.database_pool_size,
            prepare_statements=settings.database_prepare,
            listen_url=settings.database_listen_url,
        )

    @cached_property
    def publisher(self) -> Publisher:
        """How messages leave this process."""
        if self.app is None:
            return LocalPublisher()
        from stabilize_celery.delivery.publisher import CeleryPublisher

        return CeleryPublisher(
            self.app, lambda: self.store.database.identity, self._wake_relays, lambda: self.eager
        )

    @property
    def eager(self) -> EagerLoop | None:
        """What handles messages in this process while the app says ``task_always_eager``; not in a worker."""
        if self._is_worker or self.app is None or not self.app.conf.task_always_eager:
            return None
        return self._eager_loop

    @cached_property
    def _eager_loop(self) -> EagerLoop:
        from stabilize_celery.delivery.entrypoints import call_entrypoint

        return EagerLoop(self.store, partial(call_entrypoint, self.app), self.settings.resend_delay)

    def enter_worker(self) -> None:
        """This process is a worker: what it publishes is for others too, whatever ``task_always_eager`` says."""
        self._is_worker = True

    def _wake_relays(self, due: datetime) -> None:
        """Relays look often enough for anything but short delays."""
        if (due - self.store.now()).total_seconds() < self.settings.relay_interval:
            self._bell.ring()

    @cached_property
    def _bell(self) -> Bell:
        return self.store.bell()

    def enter_pool_child(self, slot: Slot | None = None) -> None:
        """This process is a pool child now: what the parent made is not used here."""
        self._slot = slot
        for name in ("dispatcher", "publisher", "_bell"):
            self.__dict__.pop(name, None)
        self._end_process = _end_this_process

    @cached_property
    def dispatcher(self) -> Dispatcher:
        """What handles messages in this process."""
        worker = f"{socket.gethostname()}:{os.getpid()}"
        surroundings = Surroundings(self.settings, self.registry, self.builders, worker, self.observers)
        dispatcher = Dispatcher(self.store, default_handlers(), surroundings, self.publisher)
        if self.app is not None:
            dispatcher.worker.unknown_grace = lambda: (
                None if self.eager is not None else self.settings.unknown_type_grace
            )
        dispatcher.keeper.end_process = self._end_process
        dispatcher.keeper.slot = self._slot
        dispatcher.worker.attempt_hooks = self.attempt_hooks()
        for each in plugins():
            each.dispatching(self, dispatcher)
        return dispatcher

    def attempt_hooks(self) -> list[AttemptHook]:
        """What plugins enter around the code of each attempt.

        Raises:
            ConfigurationError: a setting asks for what cannot be had.
        """
        found = [each.attempt_hook(self.settings) for each in plugins()]
        return [hook for hook in found if hook is not None]

    @cached_property
    def processor(self) -> EmbeddedProcessor:
        """The loop of an embedded engine.

        Raises:
            ConfigurationError: the engine belongs to a Celery app, whose workers do the work.
        """
        if not isinstance(self.publisher, LocalPublisher):
            raise ConfigurationError(
                "this engine runs on Celery workers; use start() and run.get(), or Stabilize.embedded()"
            )
        return EmbeddedProcessor(self.dispatcher, self.publisher, self._concurrency)

    # ------------------------------------------------------------------ definitions

    def task(self, name: str | None = None, *, aliases: Iterable[str] = ()) -> Callable[[T], T]:
        """Register a function or a Task subclass as a task type; a decorator."""

        def register(source: T) -> T:
            self.registry.register(name or str(getattr(source, "__name__", "")), source, aliases)
            return source

        return register

    def register_builder(self, builder: StageDefinitionBuilder) -> None:
        """Register a stage definition builder for this engine."""
        self.builders.register(builder)

    def observe(self, observer: Observer) -> Observer:
        """Tell an observer every transition after its commit, at most once; a decorator.

        It is called in the process that committed: what workers do is seen in the workers.  See
        :mod:`stabilize_celery.observe`.
        """
        self.observers.append(observer)
        return observer

    def schedule(
        self,
        name: str,
        when: crontab | timedelta | float,
        source: Callable[..., Workflow] | str | Path,
    ) -> None:
        """Let Celery beat start a workflow again and again; once per planned time, however many beats there are.

        Args:
            name: of the entry in ``beat_schedule``, and a part of the key that keeps a tick from being started twice.
            when: a ``crontab``, or an interval (a timedelta, or seconds) counted from 1970-01-01 00:00 UTC.
            source: a function that makes the workflow, given the planned time if it takes a parameter; or the path
                of a workflow file, which is read each time.

        Raises:
            ConfigurationError: no Celery app, a name that is taken, or arguments of another kind.
        """
        plugin("schedules", f"schedule {name}").add(self, name, when, source)

    # ------------------------------------------------------------------ the database

    def create_tables(self) -> None:
        """Make the tables: for a quick start.  Real deployments run ``celery -A app stabilize migrate``."""
        self.store.create_tables()

    # ------------------------------------------------------------------ starting

    def start(
        self, workflow: Workflow, *, connection: Any = None, dedup_key: str | None = None
    ) -> WorkflowRun:
        """Start a workflow; works while the broker is down.

        Args:
            workflow: a new one; its object is not changed by what happens later, ask :meth:`WorkflowRun.workflow`.
            connection: a SQLAlchemy connection or session, or the alias of a Django database, whose transaction is
                joined: nothing happens unless the caller commits.
            dedup_key: a second start with the same application and key returns the run that exists.

        Raises:
            TaskNotFoundError: an unregistered task type.
            InvalidWorkflowError: something that cannot be stored, an id, name or key that is too long, an empty dedup_key.
            WorkflowStateError: this object was started before.
            StoreError: the database cannot be used at the moment; nothing was started.
            CommitUnknownError: (a StoreError) it went away during the commit, and it is not known whether it was started.
            RepeatTransactionError: (a StoreError) another transaction was in the way of the caller's, which is REPEATABLE
                READ or SERIALIZABLE, or in a deadlock: repeat it.
            WorkflowFailedError: it ended TERMINAL, with ``task_always_eager`` and ``task_eager_propagates``.
        """
        if dedup_key is not None:
            workflow.dedup_key = dedup_key
        return self._start([workflow], connection)[0]

    def start_many(self, workflows: Sequence[Workflow], *, connection: Any = None) -> list[WorkflowRun]:
        """Start many workflows in one transaction."""
        return self._start(list(workflows), connection) if workflows else []

    def _start(self, workflows: list[Workflow], connection: Any) -> list[WorkflowRun]:
        from stabilize_celery.persistence.transactions import insert_started, joined

        for each in plugins():
            each.starting(self, workflows)
        for workflow in workflows:
            self._check_start(workflow)
        rows = {
            workflow.id: new_row(
                StartWorkflow(workflow_id=workflow.id, pipeline_config_id=workflow.pipeline_config_id),
                self.settings,
                self.store.now(),
                label=workflow.name,
            )
            for workflow in workflows
        }
        transaction = joined(connection, self.store)
        if transaction is not None and self.eager is not None and transaction.never_commits():
            _warn_uncommitted()
        ids, sent = insert_started(self.store, workflows, rows, transaction, self._publish)
        if transaction is None:
            reach("start.committed")
            self._publish([outgoing(row) for row in sent], True)
        return [WorkflowRun(self, workflow_id) for workflow_id in ids]

    def _check_start(self, workflow: Workflow) -> None:
        """Refuse what cannot run.

        Unknown task types are seen here if this process knows the types at all: a process that only starts workflows
        has registered none, and leaves that to the workers.
        """
        validate_workflow(workflow)
        checked = self.settings.check_types and (self.app is None or self.registry.has_own_types)
        for stage in workflow.stages:
            for task in stage.tasks:
                kind = task.implementing_class
                if self.registry.is_excluded(kind) or (checked and not self.registry.knows(kind)):
                    raise TaskNotFoundError(
                        f"stage {stage.ref_id}, task {task.name}: {self.registry.why_unknown(kind)}"
                    )

    def _publish(self, messages: list[Outgoing], committed: bool) -> None:
        if self.eager is None:
            self.publisher.publish(messages)
            return
        if not committed:
            _warn_uncommitted()
            return
        self.eager.publish(messages)
        assert self.app is not None
        if self.app.conf.task_eager_propagates:
            for message in messages:
                run = WorkflowRun(self, str(message.workflow_id))
                if run.status is WorkflowStatus.TERMINAL:
                    run.get()

    def run(
        self,
        workflow: Workflow,
        timeout: float | None = None,
        *,
        on_progress: Callable[[], None] | None = None,
        dedup_key: str | None = None,
    ) -> WorkflowRun:
        """Run a workflow to its end in this process (embedded engines only).

        Returns as well when nothing more can happen by itself: the workflow waits for a signal or is paused.

        Raises:
            TypeError, ValueError: ``timeout`` is no number of seconds from 0; nothing is started.
            WorkflowTimeoutError: it has not ended after ``timeout`` seconds; it can be continued.
        """
        check_seconds(timeout, "timeout")
        run = self.start(workflow, dedup_key=dedup_key)

        def finished() -> bool:
            if on_progress is not None:
                on_progress()
            return False

        self.processor.drain(timeout, until=finished)
        if timeout is not None and not run.ready() and self.store.count_messages():
            raise WorkflowTimeoutError(
                f"workflow {workflow.name} ({run.id}) is {run.status} after {timeout:g} s",
                execution_id=run.id,
            )
        return run

    def drive(self, timeout: float | None, until: Callable[[], bool]) -> bool:
        """Work in this process, if it is an embedded engine; returns whether there was anything to do.

        Args:
            timeout: seconds, at most.
            until: asked between messages.
        """
        if not isinstance(self.publisher, LocalPublisher):
            return False
        return bool(self.processor.drain(timeout, until))

    # ------------------------------------------------------------------ finding

    def get(self, workflow_id: str) -> WorkflowRun:
        """The run of that id.

        Raises:
            WorkflowNotFoundError: there is none.
        """
        self.store.head(workflow_id)
        return WorkflowRun(self, workflow_id)

    def find(
        self,
        *,
        application: str | None = None,
        name: str | None = None,
        status: WorkflowStatus | None = None,
        since: datetime | None = None,
        limit: int = 100,
        before: str | None = None,
    ) -> list[WorkflowRun]:
        """Runs that match, newest first; ``before`` takes the id of the last run of the page before."""
        found = self.store.find(
            application=application, name=name, status=status, since=since, limit=limit, before=before
        )
        return [WorkflowRun(self, workflow.id) for workflow in found]

    def close(self) -> None:
        """Close connections and threads."""
        if "processor" in self.__dict__:
            self.processor.close()
        for each in plugins():
            each.close(self)
        if "store" in self.__dict__:
            self.store.close()

    def __enter__(self) -> Stabilize:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def engine_of(app: Celery) -> Stabilize:
    """The engine installed on an app.

    Raises:
        ConfigurationError: there is none.
    """
    engine: Stabilize | None = getattr(app, "stabilize", None)
    if engine is None:
        raise ConfigurationError(
            f"no Stabilize is installed on app {app.main!r}: write `stabilize = Stabilize(app)` in its module, "
            "and name that module with -A"
        )
    return engine
