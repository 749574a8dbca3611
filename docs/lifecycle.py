"""Writes the lifecycle page from the table of transitions that the engine enforces.

python docs/lifecycle.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from stabilize_celery.models.status import TRANSITIONS, WorkflowStatus

PAGE = Path(__file__).parent / "explanation" / "lifecycle.md"
HEAD = """\
# Lifecycle

Workflows, stages and tasks share one set of statuses. One function writes a status, looks the transition up in one table,
and appends it to the history. This page is made from that table by `python docs/lifecycle.py`.

"""
TAIL = """
A reset, by a jump or a restart, begins a new *generation* instead: the stage is NOT_STARTED again, and whatever was sent
to the generation before is dropped when it arrives.

## What each means

| status | has ended | nothing after it starts | counts as |
|---|---|---|---|
"""


def page() -> str:
    """The whole page."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> NOT_STARTED"]
    for status in WorkflowStatus:
        following = TRANSITIONS[status]
        lines += [f"    {status} --> {other}" for other in WorkflowStatus if other in following]
        if status.is_complete:
            lines.append(f"    {status} --> [*]")
    lines.append("```")
    rows = [
        f"| `{status}` | {_tick(status.is_complete)} | {_tick(status.is_halt)} | {_kind(status)} |"
        for status in WorkflowStatus
    ]
    return HEAD + "\n".join(lines) + "\n" + TAIL + "\n".join(rows) + "\n"


def _tick(flag: bool) -> str:
    return "yes" if flag else ""


def _kind(status: WorkflowStatus) -> str:
    if status.is_failure:
        return "failure"
    return "success" if status.is_successful else ""


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(PAGE.read_text(encoding="utf-8") != page())
    PAGE.write_text(page(), encoding="utf-8")
