"""What happened, step by step, for a person to read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Step:
    """One thing that happened.  ``depth`` counts the processes that hang meanwhile."""

    seconds: float
    depth: int
    text: str


class Story:
    """A list of steps, numbered when it is told."""

    def __init__(self, begin: datetime) -> None:
        self._begin = begin
        self.steps: list[Step] = []

    def add(self, at: datetime, depth: int, text: str) -> None:
        """Something happened."""
        self.steps.append(Step((at - self._begin).total_seconds(), depth, text))

    def __str__(self) -> str:
        lines = []
        for number, step in enumerate(self.steps, 1):
            margin = "  | " * step.depth
            lines.append(f"{number:4}  {step.seconds:8.2f} s  {margin}{step.text}")
        return "\n".join(lines)
