"""What the workers' main process lets through to an entrypoint: well-formed JSON, whatever else the app accepts.

Nothing that was pickled is ever loaded for an entrypoint.  And a message that Celery cannot make a request of, which
would end the worker, and the next one after its redelivery, is dropped.
"""

from __future__ import annotations

import logging
from typing import Any

from celery.exceptions import InvalidTaskError
from celery.worker.strategy import default
from kombu.exceptions import ContentDisallowed, DecodeError

from stabilize_celery.delivery.stopping import is_stopping

logger = logging.getLogger(__name__)
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
