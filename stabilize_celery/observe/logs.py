"""Log records that say for which workflow, stage and task they were written.

In Celery workers the filter is added to Celery's own handlers.  Wherever logging is configured by hand it is named
there; docs/how-to/observability.md shows how, also for structlog.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from stabilize_celery.observe.scope import FIELDS, current_scope


class ContextFilter(logging.Filter):
    """Gives every record the attributes of :class:`~stabilize_celery.observe.scope.Scope`; lets all of them pass.

    Outside of the engine and of tasks they are empty, so that a format may name them.  What the caller of the logger
    gave in ``extra`` stays as it is.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add what is missing."""
        scope = current_scope()
        for name in FIELDS:
            if name not in record.__dict__:
                record.__dict__[name] = getattr(scope, name)
        return True


def add_context(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """A processor for structlog: adds what is known of workflow, stage and task to an event."""
    scope = current_scope()
    for name in FIELDS:
        value = getattr(scope, name)
        if value != "":
            event.setdefault(name, value)
    return event


def add_filter(logger: logging.Logger) -> None:
    """Add the filter to the handlers of a logger, once."""
    for handler in logger.handlers:
        if not any(isinstance(each, ContextFilter) for each in handler.filters):
            handler.addFilter(ContextFilter())
