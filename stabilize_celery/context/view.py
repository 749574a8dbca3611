"""What a stage sees when it runs: its own context over everything it inherits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stabilize_celery.context.reducers import reduce_values
from stabilize_celery.context.sources import resolve
from stabilize_celery.models.stage import StageExecution


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
