"""Workflows to be drawn, at a fixed moment."""

from __future__ import annotations

import io
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)


def stage(
    ref: str,
    status: WorkflowStatus = WorkflowStatus.NOT_STARTED,
    requires: Iterable[str] = (),
    took: float = 1.0,
    **fields: Any,
) -> StageExecution:
    made = StageExecution.single(ref, "python", requires=requires, **fields)
    made.status = status
    if status is not WorkflowStatus.NOT_STARTED:
        made.start_time = NOW - timedelta(seconds=took)
        made.end_time = NOW if status.is_complete else None
    return made


def workflow(*stages: StageExecution) -> Workflow:
    made = Workflow.create("shop", "order", stages)
    made.id = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
    return made


def printed(what: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())
