"""What started a workflow, and who paused it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from typing import Any


@dataclass
class Trigger:
    """What started a workflow: kind, user, parameters.

    Attributes:
        traceparent: the span in which it was started, as W3C's Trace Context writes it, if there was one.
    """

    type: str = "manual"
    user: str = "anonymous"
    parameters: dict[str, Any] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    payload: dict[str, Any] = field(default_factory=dict)
    traceparent: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        said = asdict(self)
        if self.traceparent is None:
            del said["traceparent"]
        return said

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Trigger:
        """From the JSON form; unknown keys are ignored so that rows of a newer version can be read."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})


@dataclass
class PausedDetails:
    """Who paused a workflow, since when, and how long it has been paused in all (``paused_ms``)."""

    paused_by: str = ""
    pause_time: datetime | None = None
    resume_time: datetime | None = None
    paused_ms: int = 0

    @property
    def mark(self) -> str:
        """Tells the last pause, or the end of it, from any other: what a control carries that was sent since."""
        moment = self.resume_time or self.pause_time
        return "" if moment is None else moment.isoformat()

    @property
    def is_paused(self) -> bool:
        """Paused now."""
        return self.pause_time is not None and self.resume_time is None
