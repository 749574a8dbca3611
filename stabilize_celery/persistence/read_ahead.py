"""What the handler of a task's result will ask for, read in the same round trip that takes its message."""

from __future__ import annotations

from typing import Any

from stabilize_celery.persistence import queries
from stabilize_celery.tasks.outcome import Attempt


def ahead_of(attempt: Attempt | None) -> list[tuple[Any, dict[str, Any]]]:
    """Statements with their parameters: the stage, and what follows it if the attempt may end it.

    Rows are locked in the order the handlers would lock them in.
    """
    if attempt is None or attempt.stage_id is None:
        return []
    parameters = {"stage_id": attempt.stage_id}
    wanted: list[tuple[Any, dict[str, Any]]] = [(queries.lock_stage, parameters)]
    if attempt.may_end_stage:
        wanted.append((queries.lock_downstream, parameters))
    return wanted
