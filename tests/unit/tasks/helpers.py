"""What the tests of the built-in tasks share."""

from __future__ import annotations

import os
import select
from collections.abc import Mapping
from typing import Any

from stabilize_celery.models.stage import StageExecution

#: Seconds nothing here comes near to; a test that reaches it has hung.
PATIENCE = 60.0


def stage_of(
    own: Mapping[str, Any], inherited: Mapping[str, Any] | None = None, ref: str = "s"
) -> StageExecution:
    """A stage as a task gets it: own context, and what it sees of others."""
    stage = StageExecution(ref_id=ref, type="t", name=ref, context={**(inherited or {}), **own})
    if inherited is not None:
        stage._own_context = dict(own)
    return stage


def await_end(pid: int) -> bool:
    """Wait until the process has ended; false if it does not."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], PATIENCE)[0])
    finally:
        os.close(fd)


def is_running(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
