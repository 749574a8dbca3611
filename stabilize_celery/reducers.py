"""Reducers: how a join combines the values that several direct upstreams give under one key.

Without a reducer the last value in topological order survives (seed document *Data Flow*).  The names come
from the behaviour contract, section 4; users add their own with :func:`register_reducer`, in every process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stabilize_celery.errors import StageError, UnknownReducerError
from stabilize_celery.json_values import ensure_json
from stabilize_celery.suggestions import did_you_mean

#: Gets the values in topological order of their stages, at least one, and gives the combined value.
Reducer = Callable[[list[Any]], Any]


def _sum(values: list[Any]) -> Any:
    _require(values, (int, float), "numbers")
    return sum(values)


def _extend(values: list[Any]) -> list[Any]:
    _require(values, (list, tuple), "lists")
    return [item for value in values for item in value]


def _merge(values: list[Any]) -> dict[str, Any]:
    _require(values, (dict,), "mappings")
    merged: dict[str, Any] = {}
    for value in values:
        merged.update(value)
    return merged


def _require(values: list[Any], types: tuple[type, ...], what: str) -> None:
    if not all(isinstance(value, types) for value in values):
        raise TypeError(f"it takes {what} only")


_BUILT_IN: dict[str, Reducer] = {
    "collect": list,
    "append": list,
    "extend": _extend,
    "sum": _sum,
    "max": max,
    "min": min,
    "merge": _merge,
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
}
_registered: dict[str, Reducer] = {}


def register_reducer(name: str, fn: Reducer) -> None:
    """Make ``fn`` known as ``name``; a second registration of the same name replaces the first.

    Raises:
        ValueError: the name is empty or that of a built-in reducer.
    """
    if not name or name in _BUILT_IN:
        raise ValueError(f"a reducer cannot be registered as {name!r}: the name is empty or built in")
    _registered[name] = fn


def known_reducers() -> list[str]:
    """The names that ``output_reducers`` may use, sorted."""
    return sorted({**_BUILT_IN, **_registered})


def reduce_values(name: str, values: Sequence[Any], key: str = "") -> Any:
    """The values of one key, combined.

    Args:
        name: the reducer.
        values: in topological order of the stages they come from; at least one.
        key: the key they were given under, for error messages.

    Raises:
        UnknownReducerError: no such reducer in this process.
        StageError: the reducer failed, or gave something that is not JSON.
    """
    reducer = _BUILT_IN.get(name) or _registered.get(name)
    if reducer is None:
        raise UnknownReducerError(unknown_reducer(name, f"key {key!r}" if key else "the values"))
    of_key = f" of key {key!r}" if key else ""
    if not values:
        raise StageError(f"the reducer {name!r}{of_key} got no values")
    try:
        reduced = reducer(list(values))
    except BaseException as failure:
        # An exit too is its own: signals that end the process wait while the engine works.
        types = ", ".join(type(value).__name__ for value in values[:10])
        more = f" and {len(values) - 10} more" if len(values) > 10 else ""
        raise StageError(
            f"the reducer {name!r} cannot combine the values{of_key} (types: {types}{more})", cause=failure
        ) from failure
    ensure_json(reduced, f"result of the reducer {name!r}{of_key}", error=StageError)
    return reduced


def unknown_reducer(name: str, where: str) -> str:
    """The error text of a reducer that is not registered, used ``where``."""
    known = known_reducers()
    return (
        f"{where}: there is no reducer {name!r}{did_you_mean(str(name), known)};"
        f" known are {', '.join(known)}; register_reducer adds others"
    )
