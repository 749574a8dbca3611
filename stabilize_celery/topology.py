"""The order of a graph: which stage comes before which, decided from the requirements alone.

A graph is given as ``requires``: every ref_id with the ref_ids it directly requires.  All functions are pure,
iterative and take O((V+E) log V) at most, so that 100,000 stages are no special case.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping

from stabilize_celery.errors import CircularDependencyError

Requires = Mapping[str, Collection[str]]


def downstream_index(requires: Requires) -> dict[str, list[str]]:
    """Every ref_id with the ref_ids that directly require it, in the order of ``requires``.

    Raises:
        ValueError: a required ref_id is not in the graph.
    """
    index: dict[str, list[str]] = {ref: [] for ref in requires}
    for ref, needed in requires.items():
        for upstream in needed:
            if upstream not in index:
                raise ValueError(f"{ref!r} requires {upstream!r}, which is not in the graph")
            index[upstream].append(ref)
    return index


def topological_order(requires: Requires) -> list[str]:
    """The ref_ids in the order of the merge rule: of those that are ready, always the smallest one next.

    The order of a part of the graph that contains all its requirements is the same alone and in the whole, so
    "the last one survives" (behaviour: merge) does not change when unrelated stages are added.

    Raises:
        CircularDependencyError: some of them wait for each other.
        ValueError: a required ref_id is not in the graph.
    """
    order = _ready_first(requires)
    if len(order) < len(requires):
        cycle = find_cycle(requires)
        path = " -> ".join([*cycle, cycle[0]])
        raise CircularDependencyError(
            f"stages wait for each other in a circle: {path}; one of these requirements has to go", cycle
        )
    return order


def find_cycle(requires: Requires) -> list[str]:
    """The members of one cycle, the smallest first, each requiring the one before it; empty without a cycle.

    Raises:
        ValueError: a required ref_id is not in the graph.
    """
    stuck = requires.keys() - _ready_first(requires)
    if not stuck:
        return []
    # Whatever is stuck requires something that is stuck: walking up must come back to where it has been.
    seen: dict[str, int] = {}
    path: list[str] = []
    ref = min(stuck)
    while ref not in seen:
        seen[ref] = len(path)
        path.append(ref)
        ref = min(upstream for upstream in requires[ref] if upstream in stuck)
    cycle = path[seen[ref] :][::-1]
    start = cycle.index(min(cycle))
    return cycle[start:] + cycle[:start]


def downstream_closure(requires: Requires, ref: str) -> set[str]:
    """Everything that requires ``ref``, directly or not, without ``ref`` itself.

    Raises:
        ValueError: ``ref`` or a required ref_id is not in the graph.
    """
    return _closure(downstream_index(requires), ref)


def upstream_closure(requires: Requires, ref: str) -> set[str]:
    """Everything that ``ref`` requires, directly or not, without ``ref`` itself.

    Raises:
        ValueError: ``ref`` or a required ref_id is not in the graph.
    """
    return _closure(requires, ref)


def _ready_first(requires: Requires) -> list[str]:
    """Kahn's algorithm with a heap of the ready ones; stops short of cycles and of what follows them."""
    downstream = downstream_index(requires)
    open_count = {ref: len(needed) for ref, needed in requires.items()}
    ready = [ref for ref, count in open_count.items() if not count]
    heapq.heapify(ready)
    order: list[str] = []
    while ready:
        ref = heapq.heappop(ready)
        order.append(ref)
        for follower in downstream[ref]:
            open_count[follower] -= 1
            if not open_count[follower]:
                heapq.heappush(ready, follower)
    return order


def _closure(neighbours: Requires, ref: str) -> set[str]:
    found: set[str] = set()
    waiting = [ref]
    while waiting:
        current = waiting.pop()
        if current not in neighbours:
            raise ValueError(f"{current!r} is not in the graph")
        for neighbour in neighbours[current]:
            if neighbour not in found:
                found.add(neighbour)
                waiting.append(neighbour)
    found.discard(ref)
    return found
