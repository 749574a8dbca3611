"""What a checkup finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    #: It works, but not as well, or not in every case.
    WARNING = "warning"
    #: Workflows do not run, or can be delayed without end.
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        area: ``database``, ``broker``, ``settings`` or ``workers``.
        what: the fact.
        advice: what to change; empty if nothing.
        why: the reason for the advice.
    """

    area: str
    level: Level
    what: str
    advice: str = ""
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "area": self.area,
            "level": str(self.level),
            "what": self.what,
            "advice": self.advice,
            "why": self.why,
        }
