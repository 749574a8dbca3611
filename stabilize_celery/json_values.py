"""Only JSON is stored: one check for contexts, triggers and outputs, naming the key of what does not fit."""

from __future__ import annotations

import dataclasses
import json
import math
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from stabilize_celery.errors import InvalidOutputError, InvalidWorkflowError, StabilizeError

#: Levels of lists and mappings inside each other; every JSON reader in use can take that many.
MAX_DEPTH = 200

_CONTAINERS = (dict, list, tuple)
_UNSHOWN = "<...>"
_HINTS: tuple[tuple[tuple[type, ...], str], ...] = (
    ((set, frozenset), "give a list: sorted(value)"),
    ((bytes, bytearray, memoryview), "give text: value.decode(), or base64 for binary data"),
    ((date, time), "give text: value.isoformat()"),
    ((timedelta,), "give seconds: value.total_seconds()"),
    ((Decimal,), "give text or a number: str(value) or float(value)"),
    ((UUID, PurePath), "give text: str(value)"),
    ((Enum,), "give value.value"),
    ((Iterator,), "give a list: list(value)"),
    ((Mapping,), "give a plain mapping: dict(value)"),
)


def celery_form(value: Any) -> Any:
    """A value in the form in which Celery's JSON carries it, from which it is restored where a Celery task gets it.

    That is the type and a text of dates, times, decimals, UUIDs and bytes; anything else is given back as it is.
    """
    if isinstance(value, datetime | date | time):
        kind = "datetime" if isinstance(value, datetime) else "date" if isinstance(value, date) else "time"
        return {"__type__": kind, "__value__": value.isoformat()}
    if isinstance(value, Decimal):
        return {"__type__": "decimal", "__value__": str(value)}
    if isinstance(value, UUID):
        return {"__type__": "uuid", "__value__": {"hex": value.hex}}
    if isinstance(value, bytes):
        return {"__type__": "base64", "__value__": b64encode(value).decode()}
    return value


def ensure_json(value: Any, where: str, error: type[StabilizeError] = InvalidWorkflowError) -> None:
    """Check that ``value`` can be stored as JSON.

    JSON are mappings with text keys, lists, tuples (which come back as lists), text, finite numbers, true,
    false and null.

    Args:
        value: what is to be stored.
        where: what it is, for the message, such as ``stage a: context``.
        error: what to raise.

    Raises:
        InvalidWorkflowError: or ``error``; the message holds the path of keys and a way out.
    """
    dumps_json(value, where, error=error)


def dumps_json(
    value: Any, where: str, max_bytes: int | None = None, error: type[StabilizeError] = InvalidOutputError
) -> str:
    """The compact JSON text of ``value``, in ASCII.

    Args:
        value: what is to be stored.
        where: what it is, for the message.
        max_bytes: the largest accepted size of the text in bytes; ``None`` for no limit.
        error: what to raise.

    Raises:
        InvalidOutputError: or ``error``; it is not JSON (the path of keys is named) or too large (the largest
            keys are named).
    """
    try:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        text = ""
    if not text or not _has_text_keys_and_depth(value):
        steps, problem = json_fault(value) or ((), "it cannot be stored as JSON")
        path = "".join(
            f".{step}" if isinstance(step, str) and step.isidentifier() else f"[{step!r}]" for step in steps
        )
        shown = path if len(path) <= 200 else f"{path[:100]} ... {path[-60:]}"
        raise error(f"{where}{shown}: {problem}")
    if max_bytes is not None and len(text) > max_bytes:
        raise error(
            f"{where}: {len(text):,} bytes as JSON, the limit is {max_bytes:,}{_largest(value)};"
            " store large data elsewhere and pass a reference to it"
        )
    return text


def is_storable(value: Any) -> bool:
    """Whether it is text that a text column takes."""
    if not isinstance(value, str) or "\x00" in value:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _has_text_keys_and_depth(value: Any) -> bool:
    """json.dumps would turn a number used as a key into text without saying so."""
    level = [value] if isinstance(value, _CONTAINERS) else []
    for _ in range(MAX_DEPTH):
        if not level:
            return True
        below: list[Any] = []
        for container in level:
            children: Iterable[Any] = container
            if isinstance(container, dict):
                if not all(isinstance(key, str) for key in container):
                    return False
                children = container.values()
            below.extend(child for child in children if isinstance(child, _CONTAINERS))
        level = below
    return not level


def json_fault(value: Any, parents: tuple[int, ...] = ()) -> tuple[tuple[str | int, ...], str] | None:
    """The keys and indexes that lead to the first thing in ``value`` that is not JSON, and what is wrong with it."""
    if not isinstance(value, _CONTAINERS):
        wrong = _wrong_leaf(value)
        return None if wrong is None else ((), wrong)
    if id(value) in parents:
        return (), "it contains itself, which cannot be stored as JSON"
    if len(parents) >= MAX_DEPTH:
        return (), f"nested deeper than {MAX_DEPTH} levels"
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(value, dict) and not isinstance(key, str):
            shown = _shown(key)
            return (), f"the key {shown} is of type {type(key).__name__}; keys are text, give {shown!r}"
        found = json_fault(child, (*parents, id(value)))
        if found is not None:
            return (key, *found[0]), found[1]
    return None


def _wrong_leaf(value: Any) -> str | None:
    if value is None or isinstance(value, str | bool):
        return None
    if isinstance(value, float):
        return (
            None if math.isfinite(value) else f"{float.__repr__(value)} cannot be stored as JSON; give None"
        )
    if isinstance(value, int):
        return "the number has too many digits; give text" if _shown(int(value)) == _UNSHOWN else None
    return f"a value of type {type(value).__name__} cannot be stored as JSON{_hint(value)}"


def _hint(value: Any) -> str:
    for types, hint in _HINTS:
        if isinstance(value, types):
            return f"; {hint}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "; give dataclasses.asdict(value)"
    if hasattr(value, "model_dump"):
        return "; give value.model_dump(mode='json')"
    if hasattr(value, "tolist"):
        return "; give value.tolist()"
    return ""


def _shown(value: Any) -> str:
    try:
        return repr(value)[:100]
    except Exception:  # a number with too many digits, or a broken __repr__
        return _UNSHOWN


def _largest(value: Any) -> str:
    if not isinstance(value, dict) or not value:
        return ""
    sizes = sorted(((len(json.dumps(child)), key) for key, child in value.items()), reverse=True)
    return "; largest: " + ", ".join(f"{key} ({size:,})" for size, key in sizes[:3])
