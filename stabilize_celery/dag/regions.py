"""Which stages a jump or a restart touches."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from stabilize_celery.dag.topology import downstream_closure, topological_order, upstream_closure


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
