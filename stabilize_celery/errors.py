"""Every error of the package, in one tree.

Messages name what happened, to which thing, and the way out.  :class:`TransientError` and :class:`PermanentError`
are for user code to raise; :func:`is_transient` decides what the engine does with any other exception.
"""

from __future__ import annotations

import errno
import os
import socket
import sysconfig
import traceback
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.error import URLError

from stabilize_celery.clock import check_seconds

MAX_STORED_ERROR_BYTES = 100 * 1024
_PACKAGE = os.path.dirname(__file__) + os.sep
_INSTALLED = tuple(sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib"))


class StabilizeBaseException(Exception):
    """Root of the tree.  ``code`` identifies the class of error in logs and machine-readable output.

    Args:
        message: what happened, to which thing, and what to do.
        code: shown in the text, in place of that of the class.
        cause: shown in the text as well; ``raise ... from`` does not change it.
        error_code: stored with the error, for programs that read it.
        attributes: further ones that the class names, such as ``execution_id``.
    """

    code = 0
    # Here as well, for subclasses whose own ``__init__`` leaves this one out.
    message: str = ""
    explicit_code: int | None = None
    cause: BaseException | None = None
    error_code: str | None = None

    def __init_subclass__(cls, code: int | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if code is not None:
            cls.code = code

    def __init__(
        self,
        message: str = "",
        *,
        code: int | None = None,
        cause: BaseException | None = None,
        error_code: str | None = None,
        **attributes: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.explicit_code = code
        if code is not None:
            self.code = code
        self.cause = cause
        self.error_code = error_code
        for name, value in attributes.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no attribute {name!r}")
            if value is not None:
                setattr(self, name, value)

    def __str__(self) -> str:
        texts: list[str] = []
        seen: list[BaseException] = []
        step: BaseException | None = self
        while isinstance(step, StabilizeBaseException) and not any(step is known for known in seen):
            seen.append(step)
            texts.append(step._own_text())
            step = step.cause
        if isinstance(step, BaseException) and not isinstance(step, StabilizeBaseException):
            texts.append(str(step))
        return " caused by: ".join(texts)

    def _own_text(self) -> str:
        text = str(self.message or super().__str__() or type(self).__name__)
        return text if self.explicit_code is None else f"{text} (code={self.explicit_code})"


class StabilizeError(StabilizeBaseException, code=100):
    """An error of the engine or of its use."""


class TransientError(StabilizeError, code=101):
    """Raise it in a task to be run again later.

    Args:
        message: what went wrong.
        retry_after: delay in seconds before the next attempt; without it the engine backs off.
        context_update: merged into the stage's own context in the transaction that schedules the retry, so the next
            attempt can go on where this one stopped (seed document *Flow Control*, "Stateful Retries").

    Raises:
        TypeError, ValueError: ``retry_after`` is not a number of seconds from 0.
    """

    retry_after: float | None = None
    context_update: Mapping[str, Any] = {}

    def __init__(
        self,
        message: str = "",
        *,
        retry_after: float | None = None,
        context_update: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(message, **kwargs)
        check_seconds(retry_after, f"retry_after of {type(self).__name__}")
        self.retry_after = retry_after
        self.context_update = dict(context_update or {})


class PermanentError(StabilizeError, code=102):
    """Raise it in a task to fail at once, whatever attempts are left."""


class RecoveryError(StabilizeError, code=103):
    """Recovery could not repair something."""


class ConfigurationError(StabilizeError, code=104):
    """A setting is missing or makes no sense."""


class InvalidStateTransitionError(StabilizeError, code=106):
    """A status change that the transition table does not allow."""

    def __init__(
        self, current: Any, target: Any, entity_type: str = "entity", entity_id: str | None = None
    ) -> None:
        name = f"{entity_type} {entity_id}" if entity_id else entity_type
        super().__init__(f"{name} cannot go from {current} to {target}")
        self.current = current
        self.target = target
        self.entity_type = entity_type
        self.entity_id = entity_id


class InvalidWorkflowError(StabilizeError, ValueError, code=107):
    """A workflow definition that cannot be run; refused when it is created."""


class InvalidStageGraphError(InvalidWorkflowError):
    """Stages that do not form a graph: the message starts with the kind of problem and names the stages."""


class CircularDependencyError(InvalidStageGraphError):
    """Stages that wait for each other in a circle; ``stages`` holds their ref_ids."""

    def __init__(self, message: str, stages: list[str]) -> None:
        super().__init__(message)
        self.stages = stages


class UnknownReducerError(InvalidWorkflowError):
    """An ``output_reducers`` entry names a reducer that is not registered."""


class ExpressionError(InvalidWorkflowError):
    """A condition that cannot be parsed; the message shows the place."""


class ConcurrencyError(TransientError, code=105):
    """Others changed what a task was about to change: raise it to be run again."""


class TaskError(StabilizeError, code=200):
    """A task failed."""

    task_name: str | None = None
    stage_id: str | None = None
    execution_id: str | None = None
    details: Mapping[str, Any] = {}


class TaskTimeoutError(TaskError, code=201):
    """A task ran longer than it may."""


class TaskNotFoundError(TaskError, code=202):
    """No task is registered for a type."""


class InvalidOutputError(TaskError, code=203):
    """A task returned something that cannot be stored: not JSON, or larger than the limit."""


class WorkflowError(StabilizeError, code=300):
    """An error about one workflow."""

    execution_id: str | None = None


class WorkflowNotFoundError(WorkflowError, code=301):
    """The database holds no workflow of that id."""


class WorkflowFailedError(WorkflowError, code=302):
    """``get()`` on a workflow that ended TERMINAL.

    Attributes:
        errors: from the ref_ids of failed stages to what they reported: ``KeyError: 'b' (shop.py:5)``.
        traceback: those of the stages, as text, each after a line that names the stage; empty if none raised anything.
    """

    errors: Mapping[str, Any] = {}
    traceback: str = ""


class WorkflowCanceledError(WorkflowError, code=303):
    """``get()`` on a workflow that was canceled."""


class WorkflowStateError(WorkflowError, code=304):
    """The workflow or stage is not in a state in which that can be done to it."""


class WorkflowTimeoutError(WorkflowError, TimeoutError, code=305):
    """The time given to ``get()`` or ``run()`` is over, and the workflow has not ended."""


class WorkflowFileError(WorkflowError, code=306):
    """A workflow file could not be read; the message says where."""


class StageError(StabilizeError, code=400):
    """An error about one stage."""


class StageNotFoundError(StageError, code=401):
    """The workflow has no such stage."""


class QueueError(StabilizeError, code=500):
    """An error about messages or the broker."""


class DeadLetterError(QueueError, code=501):
    """A message failed too often and was set aside."""


class UnknownMessageError(QueueError, code=502):
    """A message of a type or version this process does not know."""


class InvalidMessageError(QueueError, code=503):
    """A message whose fields do not have the form its type asks for."""


class StoreError(StabilizeError, code=510):
    """The database could not be used."""


class SchemaVersionError(StoreError, code=511):
    """The database's tables are not of the version this package needs; the message says what to run."""


class CommitUnknownError(StoreError, code=513):
    """The connection was lost during COMMIT: the transaction was committed, or it was not."""


class RepeatTransactionError(StoreError, code=514):
    """Another transaction was in the way of the caller's, which has to be repeated as a whole."""


class VerificationError(PermanentError, code=600):
    """Raise it where an output does not verify.

    Attributes:
        details: what was found, for the person who reads the error.
    """

    details: Mapping[str, Any] | None = None


class TransientVerificationError(TransientError, code=601):
    """Raise it where an output does not verify yet."""


#: Of what stays an OSError: the others have classes of their own, below ConnectionError and TimeoutError.
_TRANSIENT_ERRNOS = (errno.EHOSTUNREACH, errno.ENETUNREACH)


def is_transient(error: BaseException | None) -> bool:
    """Whether running the same task again later may help.

    What is not marked by :class:`TransientError` or :class:`PermanentError` is judged by its type, then by its cause;
    a group of exceptions is transient if every one of them is.  The name of a class decides nothing.
    """
    for cause in causes_of(error):
        if isinstance(cause, TransientError):
            return True
        if isinstance(cause, PermanentError):
            return False
        if isinstance(cause, BaseExceptionGroup):
            return all(is_transient(each) for each in cause.exceptions)
        if isinstance(cause, (ConnectionError, TimeoutError, socket.gaierror)):
            return True
        if isinstance(cause, URLError):
            # HTTPError is a URLError too; an answer such as 404 will not change by asking again.
            status = getattr(cause, "code", None)
            return not isinstance(status, int) or status == 429 or status >= 500
        if isinstance(cause, OSError) and cause.errno in _TRANSIENT_ERRNOS:
            return True
    return False


def transient_marks(error: BaseException | None) -> Iterator[TransientError]:
    """Every TransientError in an error: itself, its causes, the members of a group."""
    for cause in causes_of(error):
        if isinstance(cause, TransientError):
            yield cause
        elif isinstance(cause, BaseExceptionGroup):
            for each in cause.exceptions:
                yield from transient_marks(each)


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error, its cause, the cause of that; ends even if one of them is its own cause."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _given_causes(error: BaseException | None) -> list[BaseException]:
    """The same, where the argument ``cause`` counts as well as ``raise ... from``."""
    found: list[BaseException] = []
    while error is not None and not any(error is known for known in found):
        found.append(error)
        given = error.__cause__ if error.__cause__ is not None else _attribute(error, "cause")
        error = given if isinstance(given, BaseException) else None
    return found


def _attribute(error: BaseException, name: str) -> Any:
    """An attribute of a user's exception, of which a property may raise."""
    try:
        return getattr(error, name, None)
    except Exception:
        return None


def storable_text(text: str) -> str:
    """Text as a text column takes it: NUL and halves of surrogate pairs, which it refuses, are replaced."""
    return text.replace("\x00", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


#: At the end of a text that was cut.
TRUNCATED = " [TRUNCATED]"


def truncate_error(text: str, limit: int = MAX_STORED_ERROR_BYTES) -> str:
    """Cut an error text to ``limit`` bytes of UTF-8, saying so, and leave out what no text column takes."""
    # No character takes less than a byte: what lies behind need not be looked at, however much it is.
    kept = storable_text(text[: limit + 1])
    raw = kept.encode()
    if len(raw) <= limit:
        return kept
    return raw[:limit].decode("utf-8", "ignore") + TRUNCATED


def error_text(error: BaseException, limit: int = MAX_STORED_ERROR_BYTES) -> str:
    """What an exception says: never empty, never longer than ``limit`` bytes, whatever its own code does.

    One without a text gives the name of its class; a group gives what its members say.
    """
    name = type(error).__name__
    try:
        said = str(error)
    except Exception as problem:
        said = f"{name} (its text cannot be read: __str__ raised {type(problem).__name__})"
    if isinstance(error, BaseExceptionGroup):
        members = [named_text(each, 1000) for each in error.exceptions[:5]]
        more = len(error.exceptions) - len(members)
        said += ": " + "; ".join(members) + (f"; and {more} more" if more else "")
    return truncate_error(said, limit) or name


def named_text(error: BaseException, limit: int = MAX_STORED_ERROR_BYTES) -> str:
    """The class of an exception and what it says: ``KeyError: 'b'``."""
    name, said = type(error).__name__, error_text(error, limit)
    return said if said.startswith(name) else f"{name}: {said}"


def describe_error(error: BaseException, transient: bool | None = None) -> dict[str, Any]:
    """The stored form of an exception: ``{"details": {error, errors, type, transient, error_code, where, traceback}}``."""
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:
        # Something of it cannot be shown; where it was raised still can.
        text = "".join([*traceback.format_tb(error.__traceback__), named_text(error)])
    code = _attribute(error, "error_code")
    return {
        "details": {
            "error": error_text(error),
            "errors": [named_text(step, 10 * 1024) for step in _given_causes(error)[:10]],
            "type": type(error).__name__,
            "transient": is_transient(error) if transient is None else transient,
            "error_code": truncate_error(code, 200) if isinstance(code, str) else None,
            "where": _place_of(error),
            "traceback": truncate_error(text),
        }
    }


def described_text(described: Any) -> str:
    """What a stored error says, for people: ``KeyError: 'b' (shop.py:5)``; empty for what is none."""
    details = described.get("details") if isinstance(described, dict) else None
    if not isinstance(details, dict) or not details.get("error"):
        return ""
    text, kind, where = str(details["error"]), details.get("type"), details.get("where")
    # What an exception says means little without its type: "division by zero", "'order_id'".
    named = text if not kind or text.startswith(str(kind)) else f"{kind}: {text}"
    return f"{named} ({where})" if where else named


def described_traceback(described: Any) -> str:
    """The traceback of a stored error; empty for what has none."""
    details = described.get("details") if isinstance(described, dict) else None
    return str(details.get("traceback") or "").rstrip() if isinstance(details, dict) else ""


def _place_of(error: BaseException) -> str | None:
    """File and line of the last frame of the user's own code, or else of a library; ``None`` in the engine alone."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    outside = [each for each in frames if not each[0].startswith((_PACKAGE, "<frozen"))]
    own = [each for each in outside if not each[0].startswith(_INSTALLED) and "-packages" not in each[0]]
    if not outside:
        return None
    path, line = (own or outside)[-1]
    return storable_text(f"{os.path.basename(path)}:{line}"[-200:])
