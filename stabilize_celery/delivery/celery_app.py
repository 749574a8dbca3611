"""Installing the engine on a Celery app: entrypoints, queues, routes, the relay."""

from __future__ import annotations

import itertools
import logging
import time
import weakref
from collections.abc import Mapping
from typing import Any

import click
from celery import Celery, bootsteps
from celery import signals as celery_signals
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.worker.state import maybe_shutdown
from kombu.entity import Exchange, Queue

from stabilize_celery.celery_tasks import signals
from stabilize_celery.celery_tasks.task import CeleryTask
from stabilize_celery.delivery.dispatcher import Engine
from stabilize_celery.delivery.entrypoints import register_entrypoints
from stabilize_celery.delivery.relay import Relay
from stabilize_celery.delivery.stopping import BodyStop, enter_pool_process, pool_leases, pool_slot
from stabilize_celery.errors import ConfigurationError, StabilizeError
from stabilize_celery.messages import MESSAGE_TYPES, TASK_PREFIX
from stabilize_celery.observe.logs import add_filter
from stabilize_celery.persistence.database import is_unavailable
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.plugins import plugins
from stabilize_celery.settings import PREFIX, Settings
from stabilize_celery.worker.pool_leases import PoolLeases

logger = logging.getLogger(__name__)
#: In seconds, as Celery's for its broker: 2, 4, 6 ...
_LONGEST_PAUSE = 32.0


def _wait_for(store: WorkflowStore) -> None:
    """Check the tables, once the database answers: as Celery waits for its broker, and to be stopped as well.

    Raises:
        SchemaVersionError: they are missing, or of another version.
        WorkerShutdown, WorkerTerminate: the worker was told to stop.
    """
    for failures in itertools.count(1):
        try:
            store.check_schema()
            return
        except StabilizeError as error:
            if not is_unavailable(error):
                raise
            pause = min(2.0 * failures, _LONGEST_PAUSE)
            logger.error("stabilize_celery waits for its database, and asks again in %g s: %s", pause, error)
        end = time.monotonic() + pause
        while time.monotonic() < end:
            maybe_shutdown()
            time.sleep(0.1)


class RelayStep(bootsteps.StartStopStep):
    """Starts after the pool, so that no child inherits the relay's connections."""

    requires = {"celery.worker.components:Pool"}

    def __init__(self, worker: Any, stabilize_relay: bool = True, **kwargs: Any) -> None:
        self._wanted = stabilize_relay
        self._relay: Relay | None = None
        self._bodies: BodyStop | None = None
        self._leases: PoolLeases | None = None
        super().__init__(worker, **kwargs)

    def start(self, worker: Any) -> None:

        try:
            engine: Engine = worker.app.stabilize
            _wait_for(engine.store)
            # What they cannot do is an error of the worker, and not of its first task.
            engine.attempt_hooks()
        except StabilizeError as error:
            logger.critical("stabilize_celery cannot start: %s", error)
            raise SystemExit(1) from None
        if isinstance(worker.pool, PreforkPool):
            self._leases = pool_leases(engine)
            self._leases.start()
        else:
            self._bodies = BodyStop(engine, worker)
        if self._wanted:
            self._relay = worker.stabilize_relay = Relay(worker.app, engine.store, engine.settings)
            self._relay.start()

    def stop(self, worker: Any) -> None:
        if self._bodies is not None:
            self._bodies.stop_if_cold()
        if self._relay is not None:
            self._relay.stop()

    terminate = stop

    def info(self, worker: Any) -> dict[str, Any]:
        """For ``celery inspect stats``."""
        return {} if self._relay is None else {"stabilize-relay": self._relay.info()}


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()


def install(app: Celery, engine: Engine) -> None:
    """Install ``engine`` on ``app``; nothing of the app's configuration is read yet.

    Raises:
        ConfigurationError: another engine is installed on the app.
    """
    if getattr(app, "stabilize", engine) is not engine:
        raise ConfigurationError(f"another Stabilize is installed on app {app.main!r} already")
    app.stabilize = engine
    _engines.add(engine)
    register_entrypoints(app, engine)
    engine.registry.register("celery", CeleryTask(app))
    _discover_stages(app)
    _report_control_messages_quietly()
    app.steps["worker"].add(RelayStep)
    app.user_options["worker"].add(
        click.Option(
            ["--stabilize-relay/--no-stabilize-relay"],
            default=True,
            help="Whether this worker sends overdue messages (default: yes).",
        )
    )
    for plugin in plugins():
        plugin.install(app, engine)
    if app.configured:
        _add_route(app, engine)
    else:
        app.on_after_configure.connect(lambda sender, **_: _add_route(sender, engine), weak=False)


def _discover_stages(app: Celery) -> None:
    """Let ``app.autodiscover_tasks`` find ``stages.py`` beside ``tasks.py``."""
    discover = app.autodiscover_tasks

    def autodiscover_tasks(packages: Any = None, related_name: str = "tasks", force: bool = False) -> Any:
        found = discover(packages, related_name, force)
        if related_name == "tasks":
            discover(packages, "stages", force)
        return found

    app.autodiscover_tasks = autodiscover_tasks


def installed_engines() -> list[Engine]:
    """The engines on all apps of this process."""
    return list(_engines)


def read_settings(app: Celery) -> Settings:
    """The ``stabilize_*`` keys of an app's configuration, in whatever style it is written."""
    values: dict[str, Any] = {}
    for name in Settings.model_fields:
        try:
            values[PREFIX + name] = app.conf[PREFIX + name]
        except KeyError:
            continue
    return Settings.load(values)


def _add_route(app: Celery, engine: Engine) -> None:
    """Send entrypoints that are called by hand to the engine's queues; the engine itself names the queue."""

    def route(name: str, *_args: Any, **_options: Any) -> dict[str, str] | None:
        if not name.startswith(TASK_PREFIX):
            return None
        settings = engine.settings
        runs = name.removeprefix(TASK_PREFIX) in ("RunTask", "RunHook")
        return {"queue": settings.task_queue if runs else settings.queue}

    known = app.conf.task_routes
    others = [] if known is None else list(known) if isinstance(known, list | tuple) else [known]
    app.conf.task_routes = [route, *others]


@celery_signals.celeryd_init.connect
def _add_queues(instance: Any = None, **_: Any) -> None:
    """Let a worker that is not told what to consume consume the engine's queues too.

    Sent before the worker looks at ``-Q``, which then chooses among them.
    """
    engine: Engine | None = getattr(getattr(instance, "app", None), "stabilize", None)
    if engine is None:
        return
    queues = instance.app.amqp.queues
    for name in (engine.settings.queue, engine.settings.task_queue):
        try:
            queue = queues[name]
        except KeyError:
            queue = queues.add(Queue(name, Exchange(name), routing_key=name))
        queues.consume_from[name] = queue


@celery_signals.worker_init.connect
def _guard_tasks(sender: Any = None, **_: Any) -> None:
    """The app's modules are imported, and the pool has not started."""
    engine: Engine | None = getattr(getattr(sender, "app", None), "stabilize", None)
    if sender is not None and engine is not None:
        engine.enter_worker()
        signals.guard_tasks(sender.app)


class _ControlMessages(logging.Filter):
    """What Celery says of each control message, of which a workflow has many, is for DEBUG."""

    def filter(self, record: logging.LogRecord) -> bool:
        said = record.args
        name = str(said.get("name", "")) if isinstance(said, Mapping) else ""
        message = MESSAGE_TYPES.get(name.removeprefix(TASK_PREFIX)) if name.startswith(TASK_PREFIX) else None
        if message is None or message.runs_user_code or record.levelno != logging.INFO:
            return True
        record.levelno, record.levelname = logging.DEBUG, "DEBUG"
        return logging.getLogger(record.name).isEnabledFor(logging.DEBUG)


_control_messages = _ControlMessages()


def _report_control_messages_quietly() -> None:
    for name in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(name).addFilter(_control_messages)


@celery_signals.after_setup_logger.connect
@celery_signals.after_setup_task_logger.connect
def _add_context(logger: Any = None, **_: Any) -> None:
    """What a worker logs says for which workflow, stage and task, whatever the format."""
    if logger is not None and _engines:
        add_filter(logger)


@celery_signals.worker_process_init.connect
def _mark_pool_child(**_: Any) -> None:
    """In a pool child of its own a task that does not stop can be ended with its process."""
    for engine in list(_engines):
        engine.enter_pool_child(pool_slot())
    enter_pool_process()
