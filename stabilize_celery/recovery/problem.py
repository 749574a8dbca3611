"""What an audit finds, and how it is mended."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from stabilize_celery.messages import Message


class Remedy(Enum):
    """What mends a problem; each is carried out by :mod:`stabilize_celery.recovery.mending`."""

    #: Send the message that is missing.
    SEND = "send"
    #: Count branches and arrivals anew, start what is ready, end the workflow if nothing is left.
    RECOUNT = "recount"
    #: The same among the synthetic stages of one stage.
    RECOUNT_CHILDREN = "recount children"
    #: Let a running stage take its next step again.
    DRIVE = "drive"
    #: Wake what a pause has parked.
    WAKE = "wake"
    #: End what was left active by a workflow that has ended.
    CANCEL = "cancel"
    #: Give a slot back, or take one.
    RELEASE_SLOT = "release slot"
    TAKE_SLOT = "take slot"
    #: Delete a message about nothing.
    DELETE = "delete"
    #: Send an existing message again.
    SEND_AGAIN = "send again"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Attributes:
        kind: a short name for it, which stays as it is.
        what: the problem, for people.
        workflow_id: of the workflow it is about; ``None`` for a message about none.
        stage: the ref_id of the stage, or the name of a synthetic one.
        advice: what a person can do, where nothing can be mended by itself.
        repaired: it was mended.
    """

    kind: str
    what: str
    workflow_id: str | None = None
    stage: str | None = None
    advice: str = ""
    repaired: bool = False
    remedy: Remedy | None = field(default=None, repr=False)
    stage_id: str | None = field(default=None, repr=False)
    task_id: str | None = field(default=None, repr=False)
    message_id: str | None = field(default=None, repr=False)
    message: Message | None = field(default=None, repr=False)
    #: Seconds until the message that is sent falls due.
    delay: float = field(default=0.0, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        shown = ("kind", "what", "workflow_id", "stage", "advice", "repaired")
        return {name: getattr(self, name) for name in shown} | {"repairable": self.remedy is not None}


@dataclass
class Audit:
    """What an audit found.

    Attributes:
        workflows: how many workflows that have not ended were looked at.
        causes: how often each thing was met that drives a workflow or a stage, or that it waits for.
        problems: everything else.
    """

    workflows: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    problems: list[Problem] = field(default_factory=list)

    @property
    def unrepaired(self) -> list[Problem]:
        """The problems that are still there."""
        return [problem for problem in self.problems if not problem.repaired]

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "workflows": self.workflows,
            "causes": dict(sorted(self.causes.items())),
            "problems": [problem.to_dict() for problem in self.problems],
        }
