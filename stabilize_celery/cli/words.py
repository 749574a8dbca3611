"""How statuses, times and errors are written for people."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta

from stabilize_celery.cli.discretion import shown
from stabilize_celery.errors import described_text
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S

#: status -> (symbol, symbol in ASCII, rich style): each can be told from the others without colour.
LOOKS: Mapping[S, tuple[str, str, str]] = {
    S.NOT_STARTED: ("○", "o", "dim"),
    S.RUNNING: ("▶", ">", "bold blue"),
    S.PAUSED: ("‖", "=", "magenta"),
    S.SUSPENDED: ("◌", "?", "magenta"),
    S.BUFFERED: ("◔", "~", "yellow"),
    S.REDIRECT: ("↷", "^", "cyan"),
    S.SUCCEEDED: ("✔", "+", "green"),
    S.SKIPPED: ("»", "-", "dim"),
    S.FAILED_CONTINUE: ("!", "!", "yellow"),
    S.TERMINAL: ("✘", "x", "bold red"),
    S.STOPPED: ("■", "#", "red"),
    S.CANCELED: ("⊘", "/", "dim"),
}


def duration(seconds: float) -> str:
    """As precise as is of interest: ``0.04s``, ``12.3s``, ``3m 05s``, ``2h 05m``, ``3d 04h``."""
    seconds = max(0.0, seconds)
    if seconds < 9.995:
        return f"{seconds:.2f}s"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"


def elapsed(start: datetime | None, end: datetime | None, now: datetime) -> str:
    """How long something has taken or is taking; nothing before it starts."""
    if start is None:
        return ""
    took: timedelta = (end or now) - start
    return duration(took.total_seconds())


def attempts(stage: StageExecution) -> int:
    """How often the task of a stage was started; of several tasks the most."""
    return max((task.attempts for task in stage.tasks), default=0)


def error_text(stage: StageExecution) -> str:
    """What went wrong in a stage that failed, or in the last attempt of one that is being retried."""
    return str(shown(_error_of(stage)))


def _error_of(stage: StageExecution) -> str:
    if stage.status.is_failure:
        own = stage.own_context
        return described_text(own.get("exception")) or str(own.get("error") or "")
    if not stage.status.is_complete:
        for task in stage.tasks:
            if task.last_error and not task.status.is_complete:
                return described_text(task.last_error)
    return ""
