"""Counting branches: how a workflow knows that nothing more will happen, without looking at all its stages.

A branch is a token: one for each stage that is active or about to start, and one for each stage that has ended and
whose successor, a join, still waits for others.  A stage that ends hands one on to each stage after it; a join that
starts swallows all but one of those that waited in it; a branch that leads nowhere ends.  The workflow has ended
exactly when no token is left (compare the marking of a workflow net: van der Aalst, "The Application of Petri Nets to
Workflow Management", 1998).  In the ordinary course of things the count is kept incrementally; whatever rewires the
workflow counts anew with :func:`recount`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from stabilize_celery.dag.topology import topological_order
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S


@dataclass
class Count:
    """What :func:`recount` finds.  ``arrivals`` maps a stage's id to (open upstreams, blocked)."""

    live: int = 0
    halted: bool = False
    arrivals: dict[str, tuple[int, bool]] = field(default_factory=dict)
    ready: list[StageExecution] = field(default_factory=list)


def recount(stages: Iterable[StageExecution]) -> Count:
    """Count branches from the statuses alone, given all stages of the workflow itself without synthetic ones."""
    by_ref = {stage.ref_id: stage for stage in stages}
    count = Count()
    blocked: set[str] = set()
    for ref in topological_order({ref: stage.requisite_stage_ref_ids for ref, stage in by_ref.items()}):
        stage = by_ref[ref]
        if stage.status.is_halt:
            count.halted = True
        if stage.status.is_complete:
            continue
        if stage.status is not S.NOT_STARTED:
            count.live += 1
            continue
        upstreams = [by_ref[r] for r in stage.requisite_stage_ref_ids]
        is_blocked = any(u.status.is_halt or u.ref_id in blocked for u in upstreams)
        still_open = sum(not u.status.is_continuable for u in upstreams)
        if stage.released:
            is_blocked, still_open = False, 0
        if is_blocked:
            blocked.add(ref)
        elif still_open == 0:
            count.live += 1
            count.ready.append(stage)
        else:
            count.live += len(upstreams) - still_open
        count.arrivals[stage.id] = (still_open, is_blocked)
    return count
