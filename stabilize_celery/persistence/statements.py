"""Running the statements of the hot path.

SQLAlchemy builds every statement, once.  Running one through it costs several times what the driver needs, for a
generality that is not wanted here: results are plain dictionaries, parameters are those the statement names.  So a
statement is compiled once per dialect, with its types' own conversions, and then given to the driver as text.  Errors
are SQLAlchemy's, and its events see every statement.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import psycopg
from psycopg import RawCursor
from sqlalchemy import Connection, Executable, Table, bindparam, insert
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler

Parameters = Mapping[str, Any]
Rows = list[dict[str, Any]]
_Convert = Callable[[Any], Any]


class _Prepared:
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
        """Bound parameters as listeners of SQLAlchemy's events know them, for :attr:`sql`."""
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


#: So many rows are inserted by one statement; more are given to the driver row by row, as the server would cache a
#: statement for every number of rows.
_TOGETHER = 8
_PLACEHOLDER = re.compile(r"%%|%\((\w+)\)s")
_prepared: dict[tuple[Any, ...], _Prepared] = {}


def _prepare(statement: Any, dialect: Dialect) -> _Prepared:
    key = (id(statement), dialect.name)
    found = _prepared.get(key)
    if found is None:
        found = _prepared[key] = _Prepared(statement, dialect)
    return found


def _prepare_insert(table: Table, keys: Sequence[str], count: int, dialect: Dialect) -> _Prepared:
    key = (table.name, tuple(keys), count, dialect.name)
    found = _prepared.get(key)
    if found is None:
        if count == 1:
            found = _Prepared(insert(table), dialect, keys)
        else:
            many = [
                {name: bindparam(f"{name}_{i}", type_=table.c[name].type) for name in keys}
                for i in range(count)
            ]
            found = _Prepared(insert(table).values(many), dialect)
        _prepared[key] = found
    return found


class Answer:
    """What a statement will answer; within a batch it is there when it is asked for."""

    __slots__ = ("_cursor", "_prepared")

    def __init__(self, prepared: _Prepared, cursor: Any) -> None:
        self._prepared = prepared
        self._cursor = cursor

    def rows(self) -> Rows:
        """The rows."""
        return self._prepared.rows(self._cursor.fetchall())


def answer_of(connection: Connection, statement: Executable, parameters: Parameters) -> Answer:
    """Run a statement whose rows are asked for later; otherwise like :func:`rows_of`."""
    prepared = _prepare(statement, connection.dialect)
    return Answer(prepared, _run(connection, prepared, [prepared.bind(parameters)]))


def rows_of(connection: Connection, statement: Executable, parameters: Parameters) -> Rows:
    """Run a statement and return its rows.

    Args:
        connection: where to.
        statement: one that lives as long as the process, without expanding parameters.
        parameters: a value for each parameter it names.

    Raises:
        DBAPIError: as SQLAlchemy raises it.
    """
    return answer_of(connection, statement, parameters).rows()


def row_of(connection: Connection, statement: Executable, parameters: Parameters) -> dict[str, Any] | None:
    """Run a statement that has at most one row, and return it."""
    found = rows_of(connection, statement, parameters)
    return found[0] if found else None


def write(connection: Connection, statement: Executable, parameters: Sequence[Parameters]) -> None:
    """Run a statement without a result, once for each of ``parameters``, in one round trip."""
    prepared = _prepare(statement, connection.dialect)
    _write(connection, prepared, parameters)


def insert_rows(connection: Connection, table: Table, rows: Sequence[Parameters]) -> None:
    """Insert rows, all with the same columns."""
    if 1 < len(rows) <= _TOGETHER:
        prepared = _prepare_insert(table, list(rows[0]), len(rows), connection.dialect)
        _write(connection, prepared, [{f"{k}_{i}": v for i, row in enumerate(rows) for k, v in row.items()}])
    elif rows:
        _write(connection, _prepare_insert(table, list(rows[0]), 1, connection.dialect), rows)


def _write(connection: Connection, prepared: _Prepared, parameters: Sequence[Parameters]) -> None:
    if parameters:
        _run(connection, prepared, [prepared.bind(each) for each in parameters])


def _run(connection: Connection, prepared: _Prepared, bound: list[tuple[Any, ...]]) -> Any:
    pooled: Any = connection.connection
    driver = pooled.driver_connection
    cursor = RawCursor(driver) if isinstance(driver, psycopg.Connection) else driver.cursor()
    many = len(bound) > 1
    for listener in connection.dispatch.before_cursor_execute:
        shown = [prepared.named(each) for each in bound]
        listener(connection, cursor, prepared.sql, shown if many else shown[0], None, many)
    try:
        if many:
            cursor.executemany(prepared.text, bound)
        else:
            cursor.execute(prepared.text, bound[0])
    except Exception as error:
        reraise(connection, error, cursor, prepared.sql)
    return cursor


def _numbered(sql: str) -> tuple[str, tuple[str, ...]]:
    """A statement with ``$1`` for ``%(name)s``, as the server itself wants it, and the names in order."""
    places: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        return places.setdefault(found[1], f"${len(places) + 1}")

    return _PLACEHOLDER.sub(number, sql), tuple(places)


def reraise(connection: Connection, error: Exception, cursor: Any = None, sql: str = "") -> NoReturn:
    """Raise a driver's error as SQLAlchemy would, and any other as it is; a connection that is lost is given up."""
    dialect = connection.dialect
    driver: Any = dialect.dbapi
    if not isinstance(error, driver.Error):
        raise error
    lost = dialect.is_disconnect(error, connection.connection.dbapi_connection, cursor)
    if lost:
        connection.invalidate(error)
    raise DBAPIError.instance(
        sql,
        None,
        error,
        driver.Error,
        hide_parameters=True,
        connection_invalidated=lost,
        dialect=dialect,
    ) from error
