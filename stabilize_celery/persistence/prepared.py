"""Statements as text: SQLAlchemy builds each of them once, and then only their parameters change."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Table, bindparam, insert
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.sql.compiler import SQLCompiler

Parameters = Mapping[str, Any]
Rows = list[dict[str, Any]]
_Convert = Callable[[Any], Any]
_PLACEHOLDER = re.compile(r"%%|%\((\w+)\)s")


class Prepared:
    """A statement as text for one dialect, with what turns parameters and results into what the driver takes."""

    __slots__ = ("_names", "_parameters", "_positions", "_results", "_statement", "_static", "sql", "text")

    def __init__(self, statement: Any, dialect: Dialect, column_keys: Sequence[str] | None = None) -> None:
        compiled: SQLCompiler = statement.compile(dialect=dialect, column_keys=column_keys)
        self._statement = statement  # kept: its id is the key of the cache
        #: As SQLAlchemy writes it, and as the driver takes it without looking for parameters again.
        self.text = self.sql = str(compiled)
        self._static: dict[str, Any] = {}
        parameters: dict[str, tuple[str, _Convert | None]] = {}
        for bind, key in compiled.bind_names.items():
            name = compiled.escaped_bind_names.get(key, key)
            convert: _Convert | None = bind.type.dialect_impl(dialect).bind_processor(dialect)
            if bind.required:
                parameters[name] = (bind.key, convert)
            else:
                value = bind.effective_value
                self._static[name] = value if convert is None else convert(value)
        self._parameters = [(name, *rest) for name, rest in parameters.items()]
        self._positions = tuple(compiled.positiontup or ())
        if not compiled.positional:
            self.text, self._positions = _numbered(self.sql)
        columns: Iterable[Any] = getattr(statement, "exported_columns", ())
        self._results = [
            (column.key, column.type.dialect_impl(dialect).result_processor(dialect, None))
            for column in columns
        ]
        self._names = [name for name, _ in self._results]

    def bind(self, given: Parameters) -> tuple[Any, ...]:
        values = dict(self._static)
        for name, key, convert in self._parameters:
            value = given[key]
            values[name] = value if convert is None else convert(value)
        return tuple([values[name] for name in self._positions])

    def named(self, bound: Sequence[Any]) -> Any:
        """Bound parameters as SQLAlchemy's events show them, for :attr:`sql`."""
        return dict(zip(self._positions, bound, strict=True)) if self.text is not self.sql else bound

    def rows(self, found: Iterable[Sequence[Any]]) -> Rows:
        conversions = [(i, name, convert) for i, (name, convert) in enumerate(self._results) if convert]
        rows = []
        for values in found:
            row = dict(zip(self._names, values, strict=True))
            for i, name, convert in conversions:
                if values[i] is not None:
                    row[name] = convert(values[i])
            rows.append(row)
        return rows


_prepared: dict[tuple[Any, ...], Prepared] = {}


def prepare(statement: Any, dialect: Dialect) -> Prepared:
    """A statement that lives as long as the process."""
    key = (id(statement), dialect.name)
    found = _prepared.get(key)
    if found is None:
        found = _prepared[key] = Prepared(statement, dialect)
    return found


def prepare_insert(table: Table, keys: Sequence[str], count: int, dialect: Dialect) -> Prepared:
    """An insert of so many rows; the parameters of row ``i`` end in ``_i`` if it is more than one."""
    key = (table.name, tuple(keys), count, dialect.name)
    found = _prepared.get(key)
    if found is None:
        if count == 1:
            found = Prepared(insert(table), dialect, keys)
        else:
            many = [
                {name: bindparam(f"{name}_{i}", type_=table.c[name].type) for name in keys}
                for i in range(count)
            ]
            found = Prepared(insert(table).values(many), dialect)
        _prepared[key] = found
    return found


def _numbered(sql: str) -> tuple[str, tuple[str, ...]]:
    """A statement with ``$1`` for ``%(name)s``, as the server itself wants it, and the names in order."""
    places: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        return places.setdefault(found[1], f"${len(places) + 1}")

    return _PLACEHOLDER.sub(number, sql), tuple(places)
