"""Running the statements of the hot path.

SQLAlchemy builds every statement, once.  Running one through it costs several times what the driver needs, for a
generality that is not wanted here: results are plain dictionaries, parameters are those the statement names.  So a
statement is compiled once per dialect, with its types' own conversions (``prepared.py``), and then given as text to the
driver, or to PostgreSQL itself (``wire.py``).  Errors are SQLAlchemy's.  Its events of statements (``before_execute``,
``before_cursor_execute``, ``after_cursor_execute``, ``handle_error``) are not sent: there is no cursor and no execution
context for a listener to use, and what another library does in one must not come between us and the server.
"""

from __future__ import annotations

import itertools
import re
import select
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.types.json import set_json_loads
from sqlalchemy import Connection, Executable, Table, bindparam, insert
from sqlalchemy.engine.interfaces import Dialect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import SQLCompiler

from stabilize_celery.persistence.tables import loads

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


Row = tuple[Any, ...]
#: A session that has prepared so many statements is given others as they are: each costs it memory for as long as it lives.
MOST_PREPARED = 400
_KEY = "stabilize_wire"


class Reply:
    """What a statement answered, once it was sent."""

    __slots__ = ("_result", "_wire")

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._result: Any = None

    def arrived(self, result: Any) -> None:
        """Called with libpq's result."""
        self._result = result

    def fetchall(self) -> list[Row]:
        """The rows; sends the statement if it still waits in a batch.

        Raises:
            psycopg.Error: the statement failed, or one that was sent with it.
        """
        if self._result is None:
            self._wire.send()
        if self._result is None:
            raise psycopg.ProgrammingError("the statement was given up: another of its batch failed")
        return self._wire.rows(self._result)


class Wire:
    """A connection of psycopg's, spoken to directly.

    Args:
        connection: no other thread uses it at the same time.
        prepares: whether statements may be prepared in its session, and stay so.
        lone_begin: whether a statement that is a transaction by itself needs a BEGIN to be READ COMMITTED.
    """

    def __init__(
        self, connection: psycopg.Connection[Any], *, prepares: bool, lone_begin: bool = False
    ) -> None:
        self._connection = connection
        self._server = connection.pgconn
        self._values = Transformer(connection)
        self._arrival, self._either = select.poll(), select.poll()
        self._arrival.register(self._server.socket, select.POLLIN)
        self._either.register(self._server.socket, select.POLLIN | select.POLLOUT)
        self._prepares = prepares
        self._names: dict[str, bytes] = {}
        self._numbers = itertools.count()
        self._waiting: list[tuple[str, Sequence[Any], Reply]] = []
        self._batches = 0
        #: Whether a transaction is started where psycopg would.
        self.begins = True
        self.lone_begin = lone_begin

    def run(self, sql: str, bound: Sequence[Sequence[Any]]) -> Reply:
        """Run a statement, once for each of the parameters; within a batch it is sent with the others.

        Returns:
            The reply to the last of them.

        Raises:
            psycopg.Error: it failed.
        """
        for each in bound:
            reply = Reply(self)
            self._waiting.append((sql, each, reply))
        if not self._batches:
            self.send()
        return reply

    @contextmanager
    def batch(self, *, commit: bool = False) -> Iterator[None]:
        """Send what is run within the block when it ends, in one round trip; the commit as well, if asked for.

        Raises:
            psycopg.Error: a statement failed.
        """
        self._batches += 1
        try:
            yield
        except BaseException:
            self._waiting.clear()
            raise
        finally:
            self._batches -= 1
        if commit:
            self._waiting.append(("COMMIT", (), Reply(self)))
        self.send()

    def send(self) -> None:
        """Send what waits, and wait for the answers."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        if self._server.status != ConnStatus.OK:
            raise psycopg.OperationalError("the connection is closed")
        # As text of no type: each statement says itself of which type its parameters are.  A value that cannot be sent
        # is found here, before anything is.
        texts = [self._values.dump_sequence(each, [PyFormat.TEXT] * len(each)) for _, each, _ in waiting]
        fresh: list[str] = []
        try:
            self._server.enter_pipeline_mode()
            replies = self._begin()
            ends = bool(replies) and not self.begins
            for (sql, _, reply), values in zip(waiting, texts, strict=True):
                self._enqueue(sql, values, replies, fresh)
                replies.append(reply)
            if ends:
                self._server.send_query_params(b"COMMIT", None)
                replies.append(None)
            self._server.pipeline_sync()
            self._transmit()
            failure = self._receive(replies)
            self._server.exit_pipeline_mode()
        except BaseException as error:
            # A partial read would desynchronise the connection.
            self._server.finish()
            if isinstance(error, psycopg.OperationalError) or not isinstance(error, psycopg.Error):
                raise
            raise psycopg.OperationalError(str(error)) from error
        if failure is not None:
            for sql in fresh:
                # Whether it was prepared is not known; the next time it gets another name.
                self._names.pop(sql, None)
            raise failure

    def rows(self, result: Any) -> list[Row]:
        """The rows of a result, as psycopg converts them."""
        reader = Transformer(self._connection)
        reader.set_pgresult(result)
        return reader.load_rows(0, result.ntuples, tuple)

    def _begin(self) -> list[Reply | None]:
        connection = self._connection
        if (
            not (self.begins or self.lone_begin)
            or connection.autocommit
            or self._server.transaction_status != TransactionStatus.IDLE
        ):
            return []
        level = connection.isolation_level
        chosen = "" if level is None else f" ISOLATION LEVEL {level.name.replace('_', ' ')}"
        self._server.send_query_params(f"BEGIN{chosen}".encode(), None)
        return [None]

    def _enqueue(self, sql: str, texts: Sequence[Any], replies: list[Reply | None], fresh: list[str]) -> None:
        name = self._names.get(sql)
        if name is None and self._prepares and len(self._names) < MOST_PREPARED:
            name = self._names[sql] = b"stabilize_%d" % next(self._numbers)
            fresh.append(sql)
            self._server.send_prepare(name, sql.encode())
            replies.append(None)
        if name is None:
            self._server.send_query_params(sql.encode(), texts)
        else:
            self._server.send_query_prepared(name, texts)

    def _transmit(self) -> None:
        """Write what is not written yet; meanwhile the server may answer so much that it must be read."""
        while self._server.flush():
            for _, events in self._either.poll():
                if events & ~select.POLLOUT:
                    self._server.consume_input()

    def _results(self) -> Iterator[Any]:
        """What the server answers up to the end of the exchange."""
        while True:
            while self._server.is_busy():
                self._arrival.poll()
                self._server.consume_input()
            result = self._server.get_result()
            if result is None:
                # Between the results of two statements, or nothing will come any more.
                if self._server.status != ConnStatus.OK:
                    raise psycopg.OperationalError(self._server.get_error_message())
            elif result.status == ExecStatus.PIPELINE_SYNC:
                return
            else:
                yield result

    def _receive(self, replies: list[Reply | None]) -> psycopg.Error | None:
        """Give each reply its result; returns the first failure."""
        failure: psycopg.Error | None = None
        for reply, result in zip(replies, self._results(), strict=True):
            if result.status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
                if reply is not None:
                    reply.arrived(result)
            elif failure is None and result.status != ExecStatus.PIPELINE_ABORTED:
                failure = error_from_result(result, encoding=self._connection.info.encoding)
        return failure


def wire_of(pooled: Any) -> Wire:
    """The wire of a pooled connection of psycopg; one connection has one."""
    wire: Wire | None = pooled.info.get(_KEY)
    if wire is None or wire._connection is not pooled.driver_connection:
        # On a foreign connection other code may prepare, and deallocate, statements.
        wire = pooled.info[_KEY] = Wire(pooled.driver_connection, prepares=False)
    return wire


def is_ours(pooled: Any) -> bool:
    """Whether a connection comes from a pool of ours."""
    return _KEY in pooled.info


def attach(
    info: dict[str, Any], connection: psycopg.Connection[Any], *, prepares: bool, lone_begin: bool
) -> None:
    """Give a new connection of a pool of ours its wire."""
    set_json_loads(loads, connection)
    info[_KEY] = Wire(connection, prepares=prepares, lone_begin=lone_begin)


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
    """Send the statements of the block, whose results are not read within it, in one round trip.

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
