"""What an audit finds, and how it is mended."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from stabilize_celery.messages import Message
from stabilize_celery.models.stage import Phase, StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.topology import topological_order


class Remedy(Enum):
    """What mends a problem; each is carried out by :mod:`stabilize_celery.recovery.repair`."""

    #: Send the message that is missing.
    SEND = "send"
    #: Count branches and arrivals again, start what is ready, end the workflow if nothing is left.
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


def current_phase(stage: StageExecution) -> Phase | None:
    """The phase whose synthetic stages were planned last; ``None`` if none has any."""
    planned = [phase for phase, number in stage.planned.items() if number]
    return Phase(planned[-1]) if planned else None


class Family:
    """The synthetic stages of a workflow, by their parents."""

    def __init__(self, workflow: Workflow) -> None:
        self.by_id = {stage.id: stage for stage in workflow.stages}
        self.children: dict[str | None, list[StageExecution]] = defaultdict(list)
        for stage in workflow.stages:
            self.children[stage.parent_stage_id].append(stage)
        self._refs = {
            parent: {stage.ref_id: stage for stage in siblings} for parent, siblings in self.children.items()
        }

    def before(self, child: StageExecution) -> list[StageExecution]:
        """The siblings that a synthetic stage directly requires."""
        siblings = self._refs[child.parent_stage_id]
        return [siblings[ref] for ref in child.requisite_stage_ref_ids if ref in siblings]

    def live_children(self, stage: StageExecution) -> list[StageExecution]:
        """The synthetic stages that have not ended and still can."""
        return [c for c in self.children.get(stage.id, ()) if not c.status.is_complete and not c.blocked]

    def open_children(self, stage: StageExecution) -> int | None:
        """What a stage's count of open synthetic stages should be; ``None`` if it has none."""
        phase = current_phase(stage)
        if phase is None:
            return None
        return sum(child.phase is phase for child in self.live_children(stage))

    def wrong_arrivals(self, child: StageExecution) -> bool:
        """Whether a synthetic stage that waits cannot be waiting for as many as it says.

        A sibling that ended FAILED_CONTINUE may or may not let others follow: that is up to its context.
        """
        if child.upstream_count > len(child.requisite_stage_ref_ids):
            return child.open_upstreams != self._in_turn(child)
        before = self.before(child)
        most = sum(sibling.status not in (S.SUCCEEDED, S.SKIPPED) for sibling in before)
        least = sum(not sibling.status.is_continuable for sibling in before)
        stuck = all(sibling.status.is_complete or sibling.blocked for sibling in before)
        return stuck or not least <= child.open_upstreams <= most

    def _in_turn(self, child: StageExecution) -> int:
        """Whether a stage that waits for any of its siblings to end still does: one starts for each that has ended."""
        phase = [c for c in self.children[child.parent_stage_id] if c.phase is child.phase]
        at_once = sum(not c.upstream_count for c in phase)
        ended = sum(c.status.is_complete for c in phase)
        return int(phase.index(child) >= at_once + ended)

    def arrivals(self, stage: StageExecution) -> dict[str, tuple[int, bool]]:
        """For each synthetic stage that has not started: for how many it waits, and whether in vain."""
        children = {child.ref_id: child for child in self.children.get(stage.id, ())}
        found: dict[str, tuple[int, bool]] = {}
        blocked: set[str] = set()
        for ref in topological_order({ref: child.requisite_stage_ref_ids for ref, child in children.items()}):
            child = children[ref]
            if child.status is not S.NOT_STARTED:
                continue
            before = self.before(child)
            if any(b.ref_id in blocked or (b.status.is_complete and not _lets_follow(b)) for b in before):
                blocked.add(ref)
            if child.upstream_count > len(child.requisite_stage_ref_ids):
                found[child.id] = (self._in_turn(child), False)
                continue
            found[child.id] = (sum(not _lets_follow(b) for b in before), ref in blocked)
        return found


def _lets_follow(child: StageExecution) -> bool:
    if child.status is S.FAILED_CONTINUE:
        return bool(child.own_context.get("allowSiblingStagesToContinueOnFailure"))
    return child.status.is_continuable
