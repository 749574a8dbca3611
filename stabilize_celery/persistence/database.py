"""The connection to PostgreSQL or SQLite, and what differs between them."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Protocol, TypeVar

from sqlalchemy import (
    URL,
    Connection,
    Dialect,
    Engine,
    Executable,
    create_engine,
    event,
    func,
    make_url,
    select,
)
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)
from sqlalchemy.pool import StaticPool

from stabilize_celery.clock import Clock
from stabilize_celery.errors import (
    CommitUnknownError,
    ConfigurationError,
    RepeatTransactionError,
    SchemaVersionError,
    StoreError,
)
from stabilize_celery.persistence.pipeline import IN_COMMIT, alone, attach, committing, wire_of
from stabilize_celery.persistence.tables import dumps
from stabilize_celery.redaction import redact_text

logger = logging.getLogger(__name__)
T = TypeVar("T")
#: How often a transaction is run when others are in its way each time.
COLLISIONS = 10
#: What no two databases share: the server, the database on it, and the tables, which may be of one schema among several.
_IDENTITY = """
    SELECT current_database(), (SELECT system_identifier FROM pg_control_system()),
        (SELECT oid FROM pg_database WHERE datname = current_database()), to_regclass('stabilize_workflows')::oid
"""
_RETRYABLE_SQLSTATES = {"40001", "40P01", "55P03"}
_READ_ONLY, _CANCELED = "25006", "57014"
#: No connection, no resources, ended by the server (it shuts down or starts, or the session took too long), a standby.
_AWAY = ("08", "53", "57P", "25P03", "25P04", _READ_ONLY, _CANCELED)
_SQLITE_AWAY = ("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_FULL", "SQLITE_IOERR")
_FIRST_PAUSE = 0.05
#: How often in all a reading may be given up by the server before that is the answer.
_MOST_CANCELED = 3
#: How often the database is asked for the time at most, and how quick an answer must be to be trusted.
_MEASUREMENTS = 5
_QUICK = timedelta(milliseconds=2)


class Executor(Protocol):
    """What our statements need of a connection."""

    @property
    def dialect(self) -> Dialect:
        """Of which database."""

    def execute(self, statement: Executable, parameters: Any = None, /) -> Any:
        """Run a statement of SQLAlchemy Core, with one set of parameters or a list of them."""


class Database:
    """One database, reached through a pool of connections.

    Args:
        url: ``postgresql+psycopg://...``, or ``sqlite:///file.db``, or ``sqlite://`` for one in memory.
        pool_size: connections kept open per process.
        prepare_statements: prepare statements on the server; switch off behind PgBouncer before 1.21.
        listen_url: where to LISTEN if that is impossible at ``url``, a pooler in transaction mode.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Clock | None = None,
        pool_size: int = 5,
        prepare_statements: bool = True,
        listen_url: str | None = None,
    ) -> None:
        self.url = _parsed("stabilize_database_url", url)
        self.listen_url = (
            self.url if listen_url is None else _parsed("stabilize_database_listen_url", listen_url)
        )
        if self.url.drivername in ("postgresql", "postgres"):
            self.url = self.url.set(drivername="postgresql+psycopg")
        if self.url.get_backend_name() not in ("postgresql", "sqlite"):
            raise ConfigurationError(
                f"{self.url.get_backend_name()} is not supported; use PostgreSQL, or SQLite for one process"
            )
        self.is_postgresql = self.url.get_backend_name() == "postgresql"
        self.clock = clock or Clock()
        self._shared = threading.RLock() if self._in_memory else None
        self.engine = self._make_engine(pool_size, prepare_statements)
        _open_databases.add(self)

    @property
    def _in_memory(self) -> bool:
        return not self.is_postgresql and self.url.database in (None, "", ":memory:")

    @cached_property
    def name(self) -> str:
        """The URL without its password, for messages."""
        return redact_text(self.url.render_as_string(hide_password=True))

    @cached_property
    def identity(self) -> str:
        """What tells this database from others: its name and a few digits; a copy of it has others.

        Raises:
            StoreError: the database cannot be reached.
        """
        rest: list[Any]
        if self._in_memory:
            name, *rest = "memory", os.getpid(), id(self)
        elif self.is_postgresql:
            name, *rest = self._ask_for_identity()
        else:
            path = os.path.realpath(str(self.url.database))
            name, *rest = os.path.basename(path), path
        digits = hashlib.sha256(repr(rest).encode()).hexdigest()[:8]
        return f"{name[:24]}-{digits}"

    def _ask_for_identity(self) -> tuple[Any, ...]:
        try:
            with self.autocommit() as connection:
                return tuple(connection.exec_driver_sql(_IDENTITY).one())
        except ProgrammingError as error:
            # Some services keep pg_control_system() from their users.
            logger.warning(
                "database %s does not say on which server it is (%s): it is told from others by its name alone",
                self.name,
                " ".join(str(error.orig).split()),
            )
            return (str(self.url.database),)

    def _make_engine(self, pool_size: int, prepare_statements: bool) -> Engine:
        # Parameters are what users store, and an error that shows them ends up in logs.
        options: dict[str, Any] = {"json_serializer": dumps, "hide_parameters": True}
        if self.is_postgresql:
            connect_args: dict[str, Any] = {
                "connect_timeout": 10,
                "application_name": "stabilize",
                "client_encoding": "utf8",
                # psycopg forgets all prepared statements of a session when it rolls back, also those of the wire.
                "prepare_threshold": None,
            }
            options |= {
                "pool_size": pool_size,
                "max_overflow": 20,
                "connect_args": connect_args,
                # Said by each BEGIN, which costs nothing: what the server, the database or the role has as its default
                # is another matter, and to change it for the session is no use behind a pooler.
                "isolation_level": "READ COMMITTED",
            }
        else:
            options["connect_args"] = {"check_same_thread": False, "timeout": 30}
            if self._in_memory:
                options["poolclass"] = StaticPool
        try:
            engine = create_engine(self.url, **options)
        except (NoSuchModuleError, ImportError) as error:
            raise ConfigurationError(
                f"there is no driver for {self.name}: {error}; write postgresql+psycopg://..."
            ) from error
        if self.is_postgresql:

            @event.listens_for(engine, "connect")
            def connected(connection: Any, record: Any) -> None:
                self._check_encoding(connection)
                attach(
                    record.info, connection, prepares=prepare_statements, lone_begin=_needs_begin(connection)
                )
        else:
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_immediate)
        return engine

    def _check_encoding(self, connection: Any) -> None:
        encoding = (connection.pgconn.parameter_status(b"server_encoding") or b"UTF8").decode()
        if encoding != "UTF8":
            raise ConfigurationError(
                f"database {self.name} has the encoding {encoding}, in which not every text can be stored; make one "
                "with CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
            )

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction, READ COMMITTED: commits at the end of the block, rolls back on any exception.

        Raises:
            StoreError: the database cannot be used at the moment.
            CommitUnknownError: (a StoreError) it went away during the commit.
        """
        with self._exclusive_use(), self._reachable(), self.engine.begin() as connection:
            yield connection
            if self.is_postgresql:
                with committing():
                    connection.commit()

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """Single statements, each its own transaction: saves the round trips of BEGIN and COMMIT."""
        if not self.is_postgresql:
            with self.begin() as connection:
                yield connection
            return
        with self._reachable(), self.engine.connect() as connection:
            if wire_of(connection.connection).lone_begin:
                with connection.begin():
                    yield connection
            else:
                yield connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def alone(self) -> Iterator[Connection]:
        """Like :meth:`autocommit`, for what ``statements.py`` runs: it need not tell psycopg, which takes its time.

        What is run by other means has a transaction, which is rolled back.
        """
        if not self.is_postgresql:
            with self.begin() as connection:
                yield connection
            return
        with self._reachable(), self.engine.connect() as connection, alone(connection):
            yield connection

    @contextmanager
    def _exclusive_use(self) -> Iterator[None]:
        # All threads share the one connection of a database in memory, so only one may have a transaction.
        if self._shared is None:
            yield
            return
        with self._shared:
            yield

    @contextmanager
    def _reachable(self) -> Iterator[None]:
        if self.clock.is_stale():
            self._synchronise()
        try:
            with missing_tables_explained(self.name):
                yield
        except DBAPIError as error:
            if is_unavailable(error):
                raise self._unavailable(error) from _without_traceback(error)
            raise

    def _unavailable(self, error: DBAPIError) -> StoreError:
        what = " ".join(str(error.orig).split())
        if is_commit_unknown(error):
            return CommitUnknownError(
                f"the connection to database {self.name} was lost while a transaction was being committed, so it is not "
                f"known whether it was; look before you repeat what you did: {what}"
            )
        state = _sqlstate(error)
        if state == _READ_ONLY:
            return StoreError(
                f"database {self.name} is read-only: {what}. After a failover it has to become the primary; otherwise "
                "look at default_transaction_read_only of the server, the database and the role"
            )
        if state == _CANCELED:
            return StoreError(f"database {self.name} gave up a statement: {what}")
        return StoreError(
            f"database {self.name} cannot be reached; check stabilize_database_url and that the server runs: {what}"
        )

    def _synchronise(self) -> None:
        if not self.is_postgresql:
            self.clock.follow_wall()
            return
        first = not self.clock.is_known
        # Nothing that is done here, in any thread, begins this again.
        self.clock.was_asked()
        try:
            with self.engine.connect() as connection:
                _measure(connection, self.clock, first)
        except BaseException as error:
            self.clock.was_asked(answered=False)
            if isinstance(error, DBAPIError) and is_unavailable(error):
                raise self._unavailable(error) from _without_traceback(error)
            raise

    def dispose(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _parsed(setting: str, url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError(
            f"{setting} is not a database URL: {error}. "
            "Write postgresql+psycopg://user:password@host/database or sqlite:///file.db"
        ) from error


def _measure(connection: Connection, clock: Clock, first: bool) -> None:
    """Set the clock by the quickest of a few questions; one that was set before is left alone if the answer fits.

    A clock that is late by more than a message takes to arrive finds every message not due yet; so late it would be
    when the answer to a single question had to wait for a busy processor.
    """
    shortest: timedelta | None = None
    for _ in range(_MEASUREMENTS):
        asked = clock.reading()
        moment: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        answered = clock.reading()
        if not first and clock.agrees(moment, asked, answered):
            return
        took = answered - asked
        if shortest is None or took < shortest:
            shortest = took
            clock.synchronise(moment, asked + took / 2)
        if took < _QUICK:
            return


def is_retryable(error: BaseException) -> bool:
    """Whether repeating the whole transaction may succeed: deadlock, serialisation failure, a busy SQLite file."""
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.OperationalError):
        return "locked" in str(error.orig) or "busy" in str(error.orig)
    return getattr(error.orig, "sqlstate", None) in _RETRYABLE_SQLSTATES


def repeated(transaction: Callable[[], T], times: int = COLLISIONS) -> T:
    """Run a whole transaction, and again if it was given up for another one, such as to end a deadlock.

    Args:
        transaction: begins and commits it.
        times: at most so often.
    """
    for collision in range(times - 1):
        try:
            return transaction()
        except DBAPIError as error:
            if not is_retryable(error):
                raise
            time.sleep(random.uniform(0, 0.01 * 2**collision))
    return transaction()


def is_unavailable(error: BaseException) -> bool:
    """Whether the database, rather than the statement, is the problem: what was tried may be tried again later.

    It is away, has no resources left, is read-only (a standby after a failover), or has given up what took too long.
    """
    if isinstance(error, StoreError):
        return not isinstance(error, SchemaVersionError | RepeatTransactionError)
    if not isinstance(error, DBAPIError):
        return False
    if isinstance(error.orig, sqlite3.Error):
        return (getattr(error.orig, "sqlite_errorname", None) or "").startswith(_SQLITE_AWAY)
    state = _sqlstate(error)
    if state is None:
        # None at all: the connection was never made, or is gone.
        return error.connection_invalidated or isinstance(error, OperationalError)
    return error.connection_invalidated or state.startswith(_AWAY)


def is_canceled(error: BaseException) -> bool:
    """Whether the server gave up a statement that took too long: the next one may have the same fate, and the next."""
    return _sqlstate(error) in (_CANCELED, "25P04")


def is_commit_unknown(error: BaseException) -> bool:
    """Whether the connection was lost during the commit, which may have been done, or not."""
    return isinstance(error, CommitUnknownError) or bool(getattr(error, IN_COMMIT, False))


def patiently(
    read: Callable[[], T], seconds: float | None, given_up: Callable[[], bool] = lambda: False
) -> T:
    """Read, and again while the database is unavailable.

    Args:
        read: changes nothing, or nothing more when it is done twice.
        seconds: for how long; ``None`` for as long as it takes.
        given_up: whether the answer is not wanted any more.

    Raises:
        StoreError: it is unavailable still, or gave up the statement again and again.
    """
    end = None if seconds is None else time.monotonic() + seconds
    pause, canceled = _FIRST_PAUSE, 0
    while True:
        try:
            return read()
        except (StoreError, DBAPIError) as error:
            canceled += is_canceled(error)
            late = end is not None and time.monotonic() + pause > end
            if not is_unavailable(error) or late or canceled > _MOST_CANCELED or given_up():
                raise
            if pause == _FIRST_PAUSE:
                logger.warning("it is tried again: %s", error)
        time.sleep(pause)
        pause = min(pause * 2, 1.0)


def _without_traceback(error: DBAPIError) -> BaseException | None:
    """The driver's own error: a hundred lines of the layers in between say nothing that the sentence does not."""
    return None if error.orig is None else error.orig.with_traceback(None)


def _sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE of an error of the database, or of the one that a StoreError tells of."""
    if isinstance(error, StoreError) and error.__cause__ is not None:
        error = error.__cause__
    state = getattr(error.orig if isinstance(error, DBAPIError) else error, "sqlstate", None)
    return state if isinstance(state, str) else None


def is_duplicate(error: IntegrityError) -> bool:
    """Whether a row with that key is there already, rather than another rule of the table broken."""
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    name = getattr(error.orig, "sqlite_errorname", None)
    return state == "23505" or name in ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE")


def is_dedup_key(error: IntegrityError) -> bool:
    """Whether a workflow with that application and dedup_key is there already."""
    told = str(error.orig)
    return "uq_stabilize_workflows_application" in told or "stabilize_workflows.dedup_key" in told


@contextmanager
def missing_tables_explained(database: str) -> Iterator[None]:
    """Say what to run where a table of ours is missing.

    Raises:
        SchemaVersionError: it is.
    """
    try:
        yield
    except DBAPIError as error:
        undefined = getattr(error.orig, "sqlstate", None) == "42P01"
        if undefined or str(error.orig).startswith("no such table: stabilize_"):
            raise missing_tables(database) from None
        raise


def missing_tables(database: str) -> SchemaVersionError:
    """The error for a database without our tables."""
    return SchemaVersionError(
        f"the tables of stabilize_celery are missing in {database}: run "
        "`celery -A <your app> stabilize migrate`, or `stabilize.create_tables()` for a quick start"
    )


def _needs_begin(connection: Any) -> bool:
    """Whether a statement without BEGIN would not be READ COMMITTED here; asked once for each connection."""
    connection.autocommit = True
    try:
        shown = connection.execute("SHOW default_transaction_isolation", prepare=False).fetchone()
    finally:
        connection.autocommit = False
    return bool(shown[0] != "read committed")


def _configure_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    # The driver's own transaction handling begins too late for a write lock; see _begin_immediate.
    connection.isolation_level = None
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _begin_immediate(connection: Connection) -> None:
    # One writer at a time stands in for the row locks of PostgreSQL.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


_open_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def disconnect() -> None:
    """Close the connections of this process that are idle; they are made again when needed."""
    for database in list(_open_databases):
        if not database._in_memory:
            database.engine.dispose()


def _forget_inherited_connections() -> None:
    for database in list(_open_databases):
        database.engine.dispose(close=False)


# A forked pool child must not use its parent's sockets.
os.register_at_fork(after_in_child=_forget_inherited_connections)
