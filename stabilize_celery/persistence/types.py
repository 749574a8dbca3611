"""Column types that mean the same on PostgreSQL and SQLite."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from sqlalchemy import JSON, DateTime, Dialect, String
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware time: ``timestamptz`` on PostgreSQL, UTC text on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class EnumName(TypeDecorator[Any]):
    """An enum member stored under its name, as text that any tool can read."""

    impl = String
    cache_ok = True

    def __init__(self, enum: type[Enum]) -> None:
        super().__init__(32)
        self.enum = enum

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else value.name

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else self.enum[value]


#: Text JSON, not ``jsonb``: it keeps what it is given (key order, escaped NUL) and is cheaper to write.
Json = JSON(none_as_null=True)


#: What most columns hold.
_EMPTY: dict[type[Any], str] = {dict: "{}", list: "[]"}
_EMPTY_TEXTS = {text: empty for empty, text in _EMPTY.items()}


def dumps(value: Any) -> str:
    """JSON as it is stored: ASCII only, so that no character can offend a database; no NaN."""
    if not value and type(value) in _EMPTY:
        return _EMPTY[type(value)]
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def loads(stored: str | bytes) -> Any:
    """The inverse, for drivers."""
    text = stored if isinstance(stored, str) else stored.decode()
    empty = _EMPTY_TEXTS.get(text) if len(text) == 2 else None
    return json.loads(text) if empty is None else empty()
