"""A stage's context with a look-up through its ancestors, for a workflow that is loaded whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

from stabilize_celery.models.stage import StageExecution


class StageContext(MutableMapping[str, Any]):
    """Reads a key from the stage's own context, then from its ancestors' outputs, the topologically last one first.

    Iteration and length cover the own context only; :meth:`merge_with_ancestors` gives everything as one dict.
    """

    def __init__(self, stage: StageExecution, data: Mapping[str, Any] | None = None) -> None:
        self._stage = stage
        self._own = dict(stage.own_context if data is None else data)

    def _ancestors(self) -> list[StageExecution]:
        # The whole list, so that the exact rule "last in topological order wins" holds here too.
        return sorted(self._stage.ancestors(), key=lambda s: s.rank, reverse=True)

    def __getitem__(self, key: str) -> Any:
        if key in self._own:
            return self._own[key]
        for stage in self._ancestors():
            if key in stage.outputs:
                return stage.outputs[key]
        raise KeyError(key)

    def __setitem__(self, key: str, value: Any) -> None:
        self._own[key] = value

    def __delitem__(self, key: str) -> None:
        del self._own[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)

    def __contains__(self, key: object) -> bool:
        return key in self._own or any(key in stage.outputs for stage in self._ancestors())

    def get_current_only(self, key: str, default: Any = None) -> Any:
        """The stage's own value."""
        return self._own.get(key, default)

    def get_all(self, key: str) -> list[Any]:
        """Every ancestor's value of a key, the topologically last one first."""
        return [stage.outputs[key] for stage in self._ancestors() if key in stage.outputs]

    def merge_with_ancestors(self) -> dict[str, Any]:
        """Everything the stage sees, as one dict."""
        merged: dict[str, Any] = {}
        for stage in reversed(self._ancestors()):
            merged.update(stage.outputs)
        return {**merged, **self._own}


def get_merged_ancestor_outputs(stage: StageExecution) -> dict[str, Any]:
    """The outputs of all ancestors of a stage; of a key given twice the topologically last survives."""
    return StageContext(stage, {}).merge_with_ancestors()
