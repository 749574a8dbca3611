"""Running the statements of the hot path.

SQLAlchemy builds every statement, once.  Running one through it costs several times what the driver needs, for a
generality that is not wanted here: results are plain dictionaries, parameters are those the statement names.  So a
statement is compiled once per dialect, with its types' own conversions (``prepared.py``), and then given as text to the
driver, or to PostgreSQL itself (``wire.py``).  Errors are SQLAlchemy's.  Its events of statements (``before_execute``,
``before_cursor_execute``, ``after_cursor_execute``, ``handle_error``) are not sent: there is no cursor and no execution
context for a listener to use, and what another library does in one must not come between us and the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import psycopg
from sqlalchemy import Connection, Executable, Table, insert
from sqlalchemy.exc import DBAPIError

from stabilize_celery.persistence.prepared import Parameters, Prepared, Rows, prepare, prepare_insert
from stabilize_celery.persistence.wire import is_ours, wire_of

#: The note on an error that was raised during a commit.
IN_COMMIT = "stabilize_in_commit"
#: Rows are inserted so many at a time: a statement for each number of rows would fill the memory of the session.
_TOGETHER = (50, 8, 7, 6, 5, 4, 3, 2, 1)
#: The seam of tests that count statements, or decide when each may run.  Called in the thread that runs the statement,
#: before it, with the connection, the SQL as SQLAlchemy writes it, and a list with the parameters of each execution.
#: What it raises is raised in place of the statement, and the connection stays usable.  Statements that SQLAlchemy runs
#: itself, and BEGIN, COMMIT and ROLLBACK, are seen through SQLAlchemy's events; ``tests/watch.py`` joins the two.
on_statement: Callable[[Connection, str, list[Any]], None] | None = None
#: False: a batch and its commit, and the executions of a list, are sent one by one, and each is answered before
#: ``on_statement`` is called for the next.
batches = True


class Answer:
    """What a statement will answer; within a batch it is there when it is asked for."""

    __slots__ = ("_connection", "_prepared", "_replies")

    def __init__(self, connection: Connection, prepared: Prepared, replies: Any) -> None:
        self._connection = connection
        self._prepared = prepared
        self._replies = replies

    def rows(self) -> Rows:
        """The rows.

        Raises:
            DBAPIError: as SQLAlchemy raises it.
        """
        try:
            found = self._replies.fetchall()
        except BaseException as error:
            reraise(self._connection, error, self._prepared.sql)
        return self._prepared.rows(found)


def answer_of(connection: Connection, statement: Executable, parameters: Parameters) -> Answer:
    """Run a statement whose rows are asked for later; otherwise like :func:`rows_of`."""
    prepared = prepare(statement, connection.dialect)
    return Answer(connection, prepared, _run(connection, prepared, [prepared.bind(parameters)]))


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
    _write(connection, prepare(statement, connection.dialect), parameters)


def insert_rows(connection: Connection, table: Table, rows: Sequence[Parameters]) -> None:
    """Insert rows, all with the same columns."""
    rest = rows
    for together in _TOGETHER:
        while len(rest) >= together:
            some, rest = rest[:together], rest[together:]
            prepared = prepare_insert(table, list(rows[0]), together, connection.dialect)
            if together > 1:
                some = [{f"{k}_{i}": v for i, row in enumerate(some) for k, v in row.items()}]
            _write(connection, prepared, some)


def add_rows(connection: Any, table: Table, rows: Sequence[Parameters]) -> None:
    """Insert rows through a connection of ours, or through whatever a caller brought along that executes statements."""
    if isinstance(connection, Connection) and is_ours(connection.connection):
        insert_rows(connection, table, rows)
    elif rows:
        connection.execute(insert(table), rows)


@contextmanager
def batch(connection: Connection, *, commit: bool = False) -> Iterator[None]:
    """Send the statements of the block, whose results nobody looks at within it, in one round trip.

    Args:
        connection: in a transaction.
        commit: let the commit travel with them.

    Raises:
        DBAPIError: as SQLAlchemy raises it; for PostgreSQL whichever statement failed first.
    """
    if not batches or not isinstance(connection.connection.driver_connection, psycopg.Connection):
        yield
        return
    try:
        with wire_of(connection.connection).batch(commit=commit):
            yield
    except BaseException as error:
        if not commit:
            reraise(connection, error)
        with committing():
            reraise(connection, error)


@contextmanager
def committing() -> Iterator[None]:
    """The block commits: on an error with which the connection was lost it is noted that this was the moment."""
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated:
            setattr(error, IN_COMMIT, True)
        raise


@contextmanager
def alone(connection: Connection) -> Iterator[None]:
    """On PostgreSQL each statement of the block is a transaction by itself."""
    wire = wire_of(connection.connection)
    wire.begins = False
    try:
        yield
    finally:
        wire.begins = True


def _write(connection: Connection, prepared: Prepared, parameters: Sequence[Parameters]) -> None:
    if parameters:
        _run(connection, prepared, [prepared.bind(each) for each in parameters])


def _run(connection: Connection, prepared: Prepared, bound: list[tuple[Any, ...]]) -> Any:
    """Run it, and return what has its rows."""
    if not batches and len(bound) > 1:
        return [_run(connection, prepared, [each]) for each in bound][-1]
    if on_statement is not None:
        on_statement(connection, prepared.sql, [prepared.named(each) for each in bound])
    pooled: Any = connection.connection
    try:
        if isinstance(pooled.driver_connection, psycopg.Connection):
            return wire_of(pooled).run(prepared.text, bound)
        cursor = pooled.driver_connection.cursor()
        if len(bound) > 1:
            cursor.executemany(prepared.text, bound)
        else:
            cursor.execute(prepared.text, bound[0])
    except BaseException as error:
        reraise(connection, error, prepared.sql)
    return cursor


def reraise(connection: Connection, error: BaseException, sql: str = "") -> NoReturn:
    """Raise a driver's error as SQLAlchemy would, and any other as it is; a connection that is lost is given up."""
    dialect = connection.dialect
    driver: Any = dialect.dbapi
    if not isinstance(error, driver.Error):
        if not connection.invalidated and getattr(connection.connection.dbapi_connection, "closed", False):
            # Interrupted in the middle of an exchange: there is nothing left to roll back.
            connection.invalidate(error)
        raise error
    lost = dialect.is_disconnect(error, connection.connection.dbapi_connection, None)
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
