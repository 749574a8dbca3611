"""The Celery tasks: one entrypoint per message type, named ``stabilize.<MessageType>``."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from celery import Celery
from celery.exceptions import TaskPredicate
from celery.utils.serialization import get_pickleable_exception

from stabilize_celery.crash_points import reach
from stabilize_celery.delivery.publisher import DATABASE_HEADER, TASK_PREFIX
from stabilize_celery.delivery.schedules import register_start
from stabilize_celery.errors import error_text
from stabilize_celery.json_values import is_storable
from stabilize_celery.messages import MESSAGE_TYPES, Message
from stabilize_celery.observe.logs import seldom
from stabilize_celery.observe.scope import SCOPE
from stabilize_celery.worker.failures import located, stand_in

if TYPE_CHECKING:
    from stabilize_celery.engine import Stabilize

logger = logging.getLogger(__name__)


def register_entrypoints(app: Celery, engine: Stabilize) -> None:
    """Register an entrypoint for every message type on an app.

    They are built on the app's own task class, so that what it does around tasks (Flask's app context, Django's
    connection handling) is done around user code too.
    """
    base = type("Entrypoint", (_EntrypointOptions, app.Task), {"abstract": True})
    for name, message_type in MESSAGE_TYPES.items():
        app.task(
            _entrypoint(engine, name),
            name=TASK_PREFIX + name,
            base=base,
            bind=True,
            shared=False,
            **_acknowledgement(message_type),
        )
    register_start(app, engine, base)


class _EntrypointOptions:
    """What all entrypoints share: retries and results are the engine's business, not Celery's."""

    ignore_result = True
    store_errors_even_if_ignored = False
    max_retries = 0
    autoretry_for = ()  # whatever the app's own task class says
    throws = ()
    trail = False
    serializer = "json"
    Strategy = "stabilize_celery.delivery.admission:strategy"


def _acknowledgement(message_type: type[Message]) -> dict[str, Any]:
    """Control messages are acknowledged when they are done; user code, which has a lease, when it begins.

    A task that runs for hours would hold its message until RabbitMQ's ``consumer_timeout`` ends the whole worker.
    """
    if message_type.runs_user_code:
        return {"acks_late": False}
    return {"acks_late": True, "reject_on_worker_lost": True}


def _entrypoint(engine: Stabilize, name: str) -> Any:
    def entrypoint(task: Any, message_id: Any) -> None:
        if not is_storable(message_id) or len(message_id) > 64:
            logger.warning("a %s message without a proper id was dropped: %.100r", name, message_id)
            return
        failures: list[Exception] = []
        # Called in a process that is no worker, there is nothing around it that would tell of a failure.
        on_failure = None if task.request.called_directly else failures.append
        if not engine.dispatcher.process(message_id, name, on_failure):
            warn_of_stray(engine, name, task.request.get(DATABASE_HEADER))
        reach("message.done")
        for failure in failures:
            _fail(failure)

    entrypoint.__name__ = name
    entrypoint.__doc__ = MESSAGE_TYPES[name].__doc__
    return entrypoint


def call_entrypoint(app: Celery, message_id: str, message_type: str) -> None:
    """Handle a message in this process, within what the app's task class does around tasks."""
    app.tasks[TASK_PREFIX + message_type](message_id)


def warn_of_stray(engine: Stabilize, what: str, database: Any) -> None:
    """Say why a message that has no row here has none, if it is another database's, at most once a minute.

    The row decides, and not the header: a database that was moved keeps its messages.
    """
    ours = engine.store.database.identity
    if not isinstance(database, str) or database == ours or not seldom(f"stray {database}"):
        return
    logger.warning(
        "a %s message was dropped: it is of database %.64s, and this worker's is %s: two apps use the same queues. "
        "Its own relay sends it again; give each app a virtual host, or queues by stabilize_queue, of its own",
        what,
        database,
        ours,
    )


def _fail(failure: Exception) -> NoReturn:
    """Raise what user code has failed with, although all is recorded: that is how Celery, and what looks at it, hears.

    Celery logs it, tells ``task_failure`` and sends ``task-failed``.  Exceptions that mean something to Celery itself,
    and those that cannot be pickled for its main process, are replaced by others of the same name.
    """
    scope = getattr(failure, SCOPE)
    if isinstance(failure, TaskPredicate) or get_pickleable_exception(failure) is not failure:
        failure = located(stand_in(failure, error_text(failure)), scope)
    sentry = sys.modules.get("sentry_sdk")
    if sentry is not None:
        for name in ("workflow_id", "workflow", "stage"):
            sentry.set_tag(name, getattr(scope, name))
    raise failure
