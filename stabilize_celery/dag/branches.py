"""Counting branches: how a workflow knows that nothing more will happen, without looking at all its stages.

A branch is a token: one for each stage that is active or about to start, and one for each stage that has ended and
whose successor, a join, still waits for others.  A stage that ends hands one on to each stage after it; a join that
starts swallows all but one of those that waited in it; a branch that leads nowhere ends.  The workflow has ended
exactly when no token is left (compare the marking of a workflow net: van der Aalst, "The Application of Petri Nets to
Workflow Management", 1998).  In the ordinary course of things the count is kept incrementally; whatever rewires the
workflow counts again with :func:`recount`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.topology import downstream_closure, topological_order, upstream_closure


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


def exclusive_downstream(requires: Mapping[str, Collection[str]], start: Collection[str]) -> set[str]:
    """``start`` and the stages that can only be reached through it.

    A join that is also fed from elsewhere is not among them: what it waits for has not become undone.
    """
    region = set(start)
    for ref in topological_order(requires):
        if requires[ref] and all(required in region for required in requires[ref]):
            region.add(ref)
    return region


def restart_region(
    requires: Mapping[str, Collection[str]], start: str, canceled_by: Mapping[str, Collection[str]]
) -> set[str]:
    """What runs again with ``start``: everything after it, what the failures of those stages canceled, and so on.

    Args:
        requires: the graph.
        start: the stage that is restarted.
        canceled_by: each stage that was canceled because others failed, with those.
    """
    region: set[str] = set()
    waiting = {start}
    while waiting:
        for ref in waiting:
            region |= {ref} | downstream_closure(requires, ref)
        waiting = {ref for ref, failed in canceled_by.items() if not region.isdisjoint(failed)} - region
    return region


def is_backward(requires: Mapping[str, Collection[str]], source: str, target: str) -> bool:
    """Whether a jump goes back: to itself, or to a stage the source comes after."""
    return target == source or source in downstream_closure(requires, target)


def jump_regions(
    requires: Mapping[str, Collection[str]], source: str, target: str
) -> tuple[set[str], set[str]]:
    """The stages that a jump resets, and those it passes over.

    Backwards: reset are the target, the way from it back to the source, and what can only be reached through
    those.  Forwards: reset are the target and what can only be reached through it; passed over is what can only be
    reached through the source and is neither the target nor comes after it.
    """
    if is_backward(requires, source, target):
        way = (downstream_closure(requires, target) & upstream_closure(requires, source)) | {source, target}
        return exclusive_downstream(requires, way), set()
    reset = exclusive_downstream(requires, {target})
    beyond = downstream_closure(requires, target) | {target}
    passed = exclusive_downstream(requires, {source}) - beyond - {source}
    return reset, passed
