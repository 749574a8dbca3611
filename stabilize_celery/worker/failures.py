"""How a failed task is told to logs, to Celery, and to what listens to them: as an exception without secrets."""

from __future__ import annotations

import traceback
from contextlib import suppress
from typing import Any

from stabilize_celery.errors import TaskError
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.observe.logs import SCOPE, Scope
from stabilize_celery.tasks.outcome import Outcome


def failure_to_tell(outcome: Outcome, status: WorkflowStatus, scope: Scope) -> Exception:
    """What logs and other libraries are told of an outcome that is a failure: what was raised.

    It has a note and an attribute, ``stabilize_scope``, that say where it was raised.  Where its text tells a secret,
    is longer than what is stored, or cannot be read, another one of the same name stands for it.

    Args:
        outcome: without secrets, see :meth:`Outcome.redacted`.
        status: what came of it.
        scope: of the attempt.
    """
    error = outcome.exception
    if error is None:
        told: Exception = TaskError(outcome.reason or f"the task returned {status}")
    else:
        told = stand_in(error, outcome.reason)
        stored = (outcome.error or {}).get("details", {}).get("traceback")
        with suppress(Exception):
            shown = "".join(traceback.format_exception(error))
            if isinstance(error, Exception) and isinstance(str(error), str) and shown == stored:
                told = error
    return located(told, scope)


def stand_in(error: BaseException, text: str) -> Exception:
    """An exception of the name of another and from the same place, with another text; it can be pickled."""
    return _make(type(error).__module__, type(error).__name__, text).with_traceback(error.__traceback__)


def _make(module: str, name: str, text: str) -> Exception:
    def reduced(self: Exception) -> Any:
        return _make, (module, name, text), vars(self)

    made: Exception = type(name, (Exception,), {"__module__": module, "__reduce__": reduced})(text)
    return made


def located(error: Exception, scope: Scope) -> Exception:
    """The error with a note of where it was raised; one that is raised again and again says it of the last time."""
    earlier = getattr(error, SCOPE, None)
    with suppress(Exception):
        if earlier is not None:
            error.__notes__.remove(str(earlier))
    with suppress(Exception):
        setattr(error, SCOPE, scope)
        error.add_note(str(scope))
    return error
