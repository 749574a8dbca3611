"""Which stage a value comes from.

A stage does not store copies of its ancestors' outputs.  It keeps, per key, the stage that produced the value that
survives, as ``key -> [stage id, *rank]``; values are read when a task runs.  A *rank* is a place in the topological
order: ``[5, 0]`` for the sixth stage of the workflow.  The synthetic stages of that stage have ranks that sort around
it, ``[5, -1, i, 0]`` before and ``[5, 1, i, 0]`` after, to any depth.  Of two stages with the same key the one later
in topological order wins (seed document *Data Flow*, "Key Collision Warning").  Because a stage's ancestors are closed
under "requires", merging the maps of its direct upstreams gives exactly what merging all ancestors would.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stabilize_celery.models.stage import Phase, StageExecution

#: key -> [id of the producing stage, *its rank]
Sources = dict[str, list[Any]]


def child_rank(parent: StageExecution, phase: Phase, index: int) -> list[int]:
    """The rank of the ``index``-th synthetic stage of a phase."""
    return [*parent.rank[:-1], -1 if phase is Phase.BEFORE else 1, index, 0]


def merge_sources(maps: Iterable[Mapping[str, list[Any]]]) -> Sources:
    """Per key the entry of the highest rank."""
    merged: Sources = {}
    for sources in maps:
        for key, entry in sources.items():
            known = merged.get(key)
            if known is None or known[1:] < entry[1:]:
                merged[key] = entry
    return merged


def exported_sources(stage: StageExecution) -> Sources:
    """What stages after this one see through it: what it saw, and its own outputs."""
    own: Sources = {key: [stage.id, *stage.rank] for key in stage.outputs}
    return merge_sources([stage.sources, own])


def producers(sources: Mapping[str, list[Any]]) -> set[str]:
    """The ids of the stages whose outputs are needed."""
    return {entry[0] for entry in sources.values()}


def resolve(sources: Mapping[str, list[Any]], outputs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The values: ``outputs`` maps stage ids to their outputs.  A key its producer does not have any more is left out."""
    values: dict[str, Any] = {}
    for key, entry in sources.items():
        produced = outputs.get(entry[0], {})
        if key in produced:
            values[key] = produced[key]
    return values
