"""Which stages a jump or a restart touches."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from stabilize_celery.dag.topology import downstream_closure, topological_order


def exclusive_downstream(requires: Mapping[str, Collection[str]], start: str) -> set[str]:
    """``start`` and the stages that can only be reached through it.

    A join that is also fed from elsewhere is not among them: what it waits for has not become undone.
    """
    region = {start}
    for ref in topological_order(requires):
        if ref != start and requires[ref] and all(required in region for required in requires[ref]):
            region.add(ref)
    return region


def is_backward(requires: Mapping[str, Collection[str]], source: str, target: str) -> bool:
    """Whether a jump goes back: to itself, or to a stage the source comes after."""
    return target == source or source in downstream_closure(requires, target)


def jump_regions(
    requires: Mapping[str, Collection[str]], source: str, target: str
) -> tuple[set[str], set[str]]:
    """The stages that a jump resets, and those it passes over.

    Backwards: reset are the target, what can only be reached through it, and the source.  Forwards: reset are the
    target and what can only be reached through it; passed over is what can only be reached through the source and is
    neither the target nor comes after it.
    """
    reset = exclusive_downstream(requires, target)
    if is_backward(requires, source, target):
        return reset | {source}, set()
    beyond = downstream_closure(requires, target) | {target}
    passed = exclusive_downstream(requires, source) - beyond - {source}
    return reset, passed
