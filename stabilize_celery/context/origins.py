"""Where everything a stage sees comes from: the answer to "who set this value?"."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stabilize_celery.models.stage import StageExecution

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
    """Per key that ``stage`` sees, where its value comes from; in the layers of ``context/view.py``.

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
