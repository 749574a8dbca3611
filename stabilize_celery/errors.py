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
    """Root of the tree.  ``code`` identifies the class of error in logs and machine-readable output."""

    code = 0
    # Here as well, for subclasses whose own ``__init__`` leaves this one out.
    message: str = ""
    explicit_code: int | None = None
    cause: BaseException | None = None
    error_code: str | None = None

    def __init__(
        self,
        message: str = "",
        *,
        code: int | None = None,
        cause: BaseException | None = None,
        error_code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.explicit_code = code
        if code is not None:
            self.code = code
        self.cause = cause
        self.error_code = error_code

    def __str__(self) -> str:
        told: list[str] = []
        seen: list[BaseException] = []
        step: Any = self
        while isinstance(step, BaseException) and not any(step is known for known in seen):
            seen.append(step)
            if isinstance(step, StabilizeBaseException):
                told.append(step._own_text())
                step = step.cause
            else:
                told.append(str(step))
                step = None
        return " caused by: ".join(told)

    def _own_text(self) -> str:
        text = str(self.message or super().__str__() or type(self).__name__)
        return text if self.explicit_code is None else f"{text} (code={self.explicit_code})"


class StabilizeError(StabilizeBaseException):
    """An error of the engine or of its use."""

    code = 100


class TransientError(StabilizeError):
    """Raise it in a task to be run again later.

    Args:
        message: what went wrong.
        retry_after: delay in seconds before the next attempt; without it the engine backs off.
        context_update: merged into the stage's own context in the transaction that schedules the retry, so the next
            attempt can go on where this one stopped (seed document *Flow Control*, "Stateful Retries").

    Raises:
        TypeError, ValueError: ``retry_after`` is not a number of seconds from 0.
    """

    code = 101
    retry_after: float | None = None
    context_update: Mapping[str, Any] = {}

    def __init__(
        self,
        message: str = "",
        *,
        retry_after: float | None = None,
        context_update: Mapping[str, Any] | None = None,
        code: int | None = None,
        cause: BaseException | None = None,
        error_code: str | None = None,
    ) -> None:
        super().__init__(message, code=code, cause=cause, error_code=error_code)
        check_seconds(retry_after, f"retry_after of {type(self).__name__}")
        self.retry_after = retry_after
        self.context_update = dict(context_update or {})


class PermanentError(StabilizeError):
    """Raise it in a task to fail at once, whatever attempts are left."""

    code = 102


class RecoveryError(StabilizeError):
    """Recovery could not repair something."""

    code = 103


class ConfigurationError(StabilizeError):
    """A setting is missing or makes no sense."""

    code = 104


class ConcurrencyError(TransientError):
    """Two transactions collided; the loser is repeated."""

    code = 105


class TaskError(StabilizeError):
    """A task failed."""

    code = 200

    def __init__(
        self,
        message: str = "",
        *,
        task_name: str | None = None,
        stage_id: str | None = None,
        execution_id: str | None = None,
        details: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(message, **kwargs)
        self.task_name = task_name
        self.stage_id = stage_id
        self.execution_id = execution_id
        self.details = dict(details or {})


class TaskTimeoutError(TaskError):
    """A task ran longer than it may."""

    code = 201


class TaskNotFoundError(TaskError):
    """No task is registered for a type."""

    code = 202


class InvalidOutputError(TaskError):
    """A task returned something that cannot be stored: not JSON, or larger than the limit."""

    code = 203


class WorkflowError(StabilizeError):
    """An error about one workflow."""

    code = 300

    def __init__(self, message: str = "", *, execution_id: str | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.execution_id = execution_id


class WorkflowNotFoundError(WorkflowError):
    """The database holds no workflow of that id."""

    code = 301


class WorkflowFailedError(WorkflowError):
    """``get()`` on a workflow that ended TERMINAL.

    Attributes:
        errors: from the ref_ids of failed stages to what they reported: ``KeyError: 'b' (shop.py:5)``.
        traceback: those of the stages, as text, each after a line that names the stage; empty if none raised anything.
    """

    code = 302
    traceback: str = ""

    def __init__(
        self,
        message: str = "",
        *,
        errors: Mapping[str, Any] | None = None,
        traceback: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(message, **kwargs)
        self.errors = dict(errors or {})
        self.traceback = traceback


class WorkflowCanceledError(WorkflowError):
    """``get()`` on a workflow that was canceled."""

    code = 303


class WorkflowStateError(WorkflowError):
    """The workflow or stage is not in a state in which that can be done to it."""

    code = 304


class WorkflowTimeoutError(WorkflowError, TimeoutError):
    """``get()`` or ``run()`` waited as long as it was told to, and the workflow had not ended."""

    code = 305


class WorkflowFileError(WorkflowError):
    """A workflow file could not be read; the message says where."""

    code = 306


class StageError(StabilizeError):
    """An error about one stage."""

    code = 400


class StageNotFoundError(StageError):
    """The workflow has no such stage."""

    code = 401


class QueueError(StabilizeError):
    """An error about messages or the broker."""

    code = 500


class DeadLetterError(QueueError):
    """A message failed too often and was set aside."""

    code = 501


class UnknownMessageError(QueueError):
    """A message of a type or version this process does not know."""

    code = 502


class InvalidMessageError(QueueError):
    """A message whose fields do not have the form its type asks for."""

    code = 503


class StoreError(StabilizeError):
    """The database could not be used."""

    code = 510


class SchemaVersionError(StoreError):
    """The database's tables are not of the version this package needs; the message says what to run."""

    code = 511


class CommitUnknownError(StoreError):
    """The connection was lost during COMMIT: the transaction was committed, or it was not."""

    code = 513


class RepeatTransactionError(StoreError):
    """Another transaction was in the way of the caller's, which has to be repeated as a whole."""

    code = 514


class LeaseLostError(StabilizeError):
    """The worker that reports a result does not hold the lease of that task any more."""

    code = 512


class VerificationError(PermanentError):
    """An output did not verify."""

    code = 600

    def __init__(self, message: str = "", *, details: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.details = dict(details or {})


class TransientVerificationError(TransientError):
    """An output did not verify yet."""

    code = 601


class InvalidStateTransitionError(StabilizeError):
    """A status change that the transition table does not allow."""

    code = 106

    def __init__(
        self, current: Any, target: Any, entity_type: str = "entity", entity_id: str | None = None
    ) -> None:
        name = f"{entity_type} {entity_id}" if entity_id else entity_type
        super().__init__(f"{name} cannot go from {current} to {target}")
        self.current = current
        self.target = target
        self.entity_type = entity_type
        self.entity_id = entity_id


class InvalidWorkflowError(StabilizeError, ValueError):
    """A workflow definition that cannot be run; refused when it is created."""

    code = 107


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


_TRANSIENT_ERRNOS = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.ETIMEDOUT,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
    }
)


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
        told = "".join(traceback.format_exception(error))
    except Exception:
        # Something of it cannot be shown; where it was raised still can.
        told = "".join([*traceback.format_tb(error.__traceback__), named_text(error)])
    code = _attribute(error, "error_code")
    return {
        "details": {
            "error": error_text(error),
            "errors": [named_text(step, 10 * 1024) for step in _given_causes(error)[:10]],
            "type": type(error).__name__,
            "transient": is_transient(error) if transient is None else transient,
            "error_code": truncate_error(code, 200) if isinstance(code, str) else None,
            "where": _place_of(error),
            "traceback": truncate_error(told),
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
