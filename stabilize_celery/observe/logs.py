"""Log records that say for which workflow, stage and task they were written.

In Celery workers the filter is added to Celery's own handlers.  Wherever logging is configured by hand it is named
there; docs/how-to/observability.md shows how, also for structlog.
"""

from __future__ import annotations

import logging
import mmap
import multiprocessing
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields
from typing import Any

from stabilize_celery.errors import storable_text
from stabilize_celery.messages import Message, StageLevel, TaskLevel, WorkflowLevel
from stabilize_celery.redaction import Redactor


@dataclass
class Scope:
    """Identifiers and names; empty where there is nothing to say."""

    #: The message that is handled, and its type.
    message_id: str = ""
    message_type: str = ""
    workflow_id: str = ""
    workflow: str = ""
    stage_id: str = ""
    #: The ref of the stage.
    stage: str = ""
    task_id: str = ""
    #: The type of the task.
    task: str = ""
    attempt: int | str = ""

    def __str__(self) -> str:
        named = f"stage {self.stage} of workflow {self.workflow} ({self.workflow_id})"
        return f"{named}, attempt {self.attempt}" if self.stage else f"message {self.message_id}"

    def turn_to(self, message: Message) -> None:
        """From now on it is about that message, which has no names."""
        self.message_type = message.type
        self.workflow_id = message.workflow_id if isinstance(message, WorkflowLevel) else ""
        self.stage_id = message.stage_id if isinstance(message, StageLevel) else ""
        self.task_id = message.task_id if isinstance(message, TaskLevel) else ""


#: Their names, as attributes of log records.
FIELDS = tuple(field.name for field in fields(Scope))
#: The attribute of a task's error that says where it was raised.
SCOPE = "stabilize_scope"
NOTHING = Scope()
_current: ContextVar[Scope] = ContextVar("stabilize_scope", default=NOTHING)


def current_scope() -> Scope:
    """That of this thread, or one that says nothing."""
    return _current.get()


@contextmanager
def scoped(scope: Scope) -> Iterator[Scope]:
    """Make a scope the current one while the block runs."""
    token = _current.set(scope)
    try:
        yield scope
    finally:
        _current.reset(token)


logger = logging.getLogger(__name__)
_REDACTOR = "_stabilize_redactor"
_usual = Redactor()
_formatter = logging.Formatter()
#: What was said last in each of some places, and when: in memory that the children of a pool share.
_PLACES, _PLACE = 64, struct.Struct("dQ")
_said = mmap.mmap(-1, _PLACES * _PLACE.size)
#: A child of the pool may be forked while a thread of its parent holds it: none waits for it longer than writing takes.
_saying, _LONGEST_WAIT = multiprocessing.Lock(), 0.1


def seldom(what: str, interval: float = 60.0) -> bool:
    """Whether to say something that this worker, whichever of its processes, has not said for ``interval`` seconds."""
    key = zlib.crc32(what.encode())
    place = key % _PLACES * _PLACE.size
    locked = _saying.acquire(timeout=_LONGEST_WAIT)
    try:
        now = time.monotonic()
        when, known = _PLACE.unpack_from(_said, place)
        if known == key and when > 0.0 and 0.0 <= now - when < interval:
            return False
        _PLACE.pack_into(_said, place, now, key)
        return True
    finally:
        if locked:
            _saying.release()


def warn_of_stray(ours: str, what: str, database: Any) -> None:
    """Say why a message that has no row here has none, if it is another database's, at most once a minute.

    The row decides, and not the header: a database that was moved keeps its messages.
    """
    if not isinstance(database, str) or database == ours or not seldom(f"stray {database}"):
        return
    logger.warning(
        "a %s message was dropped: it is of database %.64s, and this worker's is %s: two apps use the same queues. "
        "Its own relay sends it again; give each app a virtual host, or queues by stabilize_queue, of its own",
        what,
        database,
        ours,
    )


class ContextFilter(logging.Filter):
    """Gives every record the attributes of :class:`~stabilize_celery.observe.logs.Scope`; lets all of them pass.

    A record with an error of a task is about that task.  Outside of the engine and of tasks they are empty, so that a
    format may name them.  What the caller of the logger gave in ``extra`` stays as it is.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Add what is missing."""
        error = record.exc_info[1] if record.exc_info else None
        # Celery tells of a failure after the engine has returned.
        scope = getattr(error, SCOPE, None) or current_scope()
        for name in FIELDS:
            if name not in record.__dict__:
                record.__dict__[name] = getattr(scope, name)
        return True


class SecretsFilter(logging.Filter):
    """Hides secrets in what a logger of the engine says, its tracebacks included: by key, or as :func:`hiding` says.

    A traceback is written once, here; formatters of the standard library take it as it is.  Halves of surrogate pairs,
    which no stream takes, are replaced.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Hide; lets all of them pass."""
        redactor = record.__dict__.pop(_REDACTOR, _usual)
        said = record.getMessage()
        told = storable_text(redactor.text(said))
        if told != said:
            record.msg, record.args = told, ()
        if record.exc_info:
            record.exc_text = storable_text(redactor.text(_formatter.formatException(record.exc_info)))
        return True


def discreet_logger(name: str) -> logging.Logger:
    """The logger of a module that tells what went wrong with users' data."""
    logger = logging.getLogger(name)
    if not any(isinstance(each, SecretsFilter) for each in logger.filters):
        logger.addFilter(SecretsFilter())
    return logger


def hiding(secrets: Redactor | Iterable[str]) -> dict[str, Any]:
    """``extra`` for a record of such a logger: what a stage knows, or the keys of this engine, are hidden."""
    return {_REDACTOR: secrets if isinstance(secrets, Redactor) else Redactor(keys=secrets)}


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
