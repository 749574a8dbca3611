"""The Celery tasks: one entrypoint per message type, named ``stabilize.<MessageType>``."""

from __future__ import annotations

import logging
import sys
from typing import Any, NoReturn

from celery import Celery
from celery.exceptions import InvalidTaskError, TaskPredicate
from celery.utils.serialization import get_pickleable_exception
from celery.worker.strategy import default
from kombu.exceptions import ContentDisallowed, DecodeError

from stabilize_celery.crash_points import reach
from stabilize_celery.delivery.dispatcher import Engine
from stabilize_celery.delivery.publisher import DATABASE_HEADER
from stabilize_celery.delivery.stopping import is_stopping
from stabilize_celery.errors import error_text
from stabilize_celery.json_values import is_storable
from stabilize_celery.messages import MESSAGE_TYPES, TASK_PREFIX, Message
from stabilize_celery.observe.logs import SCOPE, warn_of_stray
from stabilize_celery.worker.failures import located, stand_in

logger = logging.getLogger(__name__)


def register_entrypoints(app: Celery, engine: Engine) -> None:
    """Register an entrypoint for every message type on an app."""
    base = entrypoint_class(app)
    for name, message_type in MESSAGE_TYPES.items():
        app.task(
            _entrypoint(engine, name),
            name=TASK_PREFIX + name,
            base=base,
            bind=True,
            shared=False,
            **_acknowledgement(message_type),
        )


def entrypoint_class(app: Celery) -> Any:
    """The class of the engine's Celery tasks on an app.

    It is built on the app's own task class, so that what that does around tasks (Flask's app context, Django's
    connection handling) is done around user code too.
    """
    return type("Entrypoint", (_EntrypointOptions, app.Task), {"abstract": True})


class _EntrypointOptions:
    """What all entrypoints share: retries and results are the engine's business, not Celery's."""

    ignore_result = True
    store_errors_even_if_ignored = False
    max_retries = 0
    autoretry_for = ()  # whatever the app's own task class says
    throws = ()
    trail = False
    serializer = "json"
    Strategy = "stabilize_celery.delivery.entrypoints:strategy"


def _acknowledgement(message_type: type[Message]) -> dict[str, Any]:
    """Control messages are acknowledged when they are done; user code, which has a lease, when it begins.

    A task that runs for hours would hold its message until RabbitMQ's ``consumer_timeout`` ends the whole worker.
    """
    if message_type.runs_user_code:
        return {"acks_late": False}
    return {"acks_late": True, "reject_on_worker_lost": True}


def _entrypoint(engine: Engine, name: str) -> Any:
    def entrypoint(task: Any, message_id: Any) -> None:
        if not is_storable(message_id) or len(message_id) > 64:
            logger.warning("a %s message without a proper id was dropped: %.100r", name, message_id)
            return
        failures: list[Exception] = []
        # Called in a process that is no worker, there is nothing around it that would tell of a failure.
        on_failure = None if task.request.called_directly else failures.append
        if not engine.dispatcher.process(message_id, name, on_failure):
            warn_of_stray(engine.store.database.identity, name, task.request.get(DATABASE_HEADER))
        reach("message.done")
        for failure in failures:
            _fail(failure)

    entrypoint.__name__ = name
    entrypoint.__doc__ = MESSAGE_TYPES[name].__doc__
    return entrypoint


def call_entrypoint(app: Celery, message_id: str, message_type: str) -> None:
    """Handle a message in this process, within what the app's task class does around tasks."""
    app.tasks[TASK_PREFIX + message_type](message_id)


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


_JSON = "application/json"


def strategy(task: Any, app: Any, consumer: Any, **options: Any) -> Any:
    """Celery's way of handing messages to the pool, for those that an entrypoint takes."""
    hand_over = default(task, app, consumer, **options)
    broker_is_lost = tuple(consumer.connection_errors)

    def admit(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any, **more: Any) -> Any:
        try:
            problem = _problem(message)
            if problem is None and is_stopping():
                # It would be held until this worker has ended; another one begins it now.
                reject(logger, broker_is_lost, True)
                return None
            if problem is None:
                return hand_over(message, body, ack, reject, callbacks, **more)
        except (InvalidTaskError, ContentDisallowed, DecodeError, *broker_is_lost):
            # The consumer knows what to do.
            raise
        except Exception as error:
            problem = f"Celery cannot read it: {error!r:.200}"
        logger.warning("a %s message was dropped: %s", task.name, problem)
        reject(logger, broker_is_lost)
        return None

    return admit


def _problem(message: Any) -> str | None:
    if message.content_type != _JSON:
        return f"its content is {message.content_type!r:.100}, not JSON"
    payload = message.payload
    if not (isinstance(payload, list) and len(payload) == 3):
        return "its body is no list of arguments, keyword arguments and options"
    arguments, keywords, embedded = payload
    if not (isinstance(arguments, list) and isinstance(keywords, dict) and isinstance(embedded, dict)):
        return "its body is no list of arguments, keyword arguments and options"
    if any(embedded.values()):
        # Celery fails on malformed ones after the fact, and the message would never be acknowledged.
        return "it carries callbacks, a chain or a chord"
    return None
