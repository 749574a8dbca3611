"""What a stage sees when it runs, its own context over everything it inherits, and where each value comes from."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from stabilize_celery.context.sources import resolve
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.reducers import reduce_values


def inherited_values(
    stage: StageExecution,
    parents: Sequence[StageExecution],
    outputs: Mapping[str, Mapping[str, Any]],
    reduced: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
) -> dict[str, Any]:
    """Everything ``stage`` sees that is not its own.

    Args:
        stage: the stage.
        parents: for a synthetic stage its parent, that one's parent, and so on.
        outputs: outputs of the producing stages by id.
        reduced: for each of these that is a join with ``output_reducers``, by its id, the direct upstreams' values of
            each such key in rank order.

    A synthetic stage sees what its parent sees, the parent's context, and over both what its own sources name: the
    parent's outputs and those of the synthetic stages it requires.
    """
    values: dict[str, Any] = {}
    reduced = reduced or {}
    for parent in reversed(parents):
        values |= resolve(parent.sources, outputs)
        values |= _combined(parent, reduced)
        values |= parent.own_context
    values |= resolve(stage.sources, outputs)
    return values | _combined(stage, reduced)


def _combined(stage: StageExecution, reduced: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, Any]:
    return {
        key: reduce_values(stage.output_reducers[key], values, key)
        for key, values in reduced.get(stage.id, {}).items()
    }


def apply_view(stage: StageExecution, inherited: Mapping[str, Any]) -> None:
    """Let ``stage.context`` be what the stage sees, and ``stage.own_context`` its own part."""
    own = stage.own_context
    stage._own_context = own
    stage.context = {**inherited, **own}


#: ``own``: the stage's own context; ``parent``: the context of the stage it belongs to; ``output``: what another stage
#: gave; ``combined``: the outputs of the direct upstreams, put together by a reducer.
Kind = Literal["own", "parent", "output", "combined"]


@dataclass(frozen=True)
class Origin:
    """Where one value comes from, and the id of the stage that set it (of the join, if it was combined)."""

    kind: Kind
    stage_id: str


def origins(
    stage: StageExecution,
    parents: Sequence[StageExecution],
    combined: Mapping[str, Collection[str]] | None = None,
) -> dict[str, Origin]:
    """Per key that ``stage`` sees, where its value comes from; in the layers of :func:`inherited_values`.

    Args:
        stage: the stage.
        parents: for a synthetic stage its parent, that one's parent, and so on.
        combined: per join among these, by its id, the keys that a reducer combined.
    """
    found: dict[str, Origin] = {}
    combined = combined or {}
    for parent in reversed(parents):
        found |= _named(parent, combined)
        found |= {key: Origin("parent", parent.id) for key in parent.own_context}
    found |= _named(stage, combined)
    return found | {key: Origin("own", stage.id) for key in stage.own_context}


def _named(stage: StageExecution, combined: Mapping[str, Collection[str]]) -> dict[str, Origin]:
    produced = {key: Origin("output", entry[0]) for key, entry in stage.sources.items()}
    return produced | {key: Origin("combined", stage.id) for key in combined.get(stage.id, ())}
