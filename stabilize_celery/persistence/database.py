"""The connection to PostgreSQL or SQLite, and what differs between them."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, make_url, select
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError, NoSuchModuleError, OperationalError
from sqlalchemy.pool import StaticPool

from stabilize_celery.clock import Clock
from stabilize_celery.errors import ConfigurationError, SchemaVersionError, StoreError
from stabilize_celery.persistence.statements import alone
from stabilize_celery.persistence.types import dumps
from stabilize_celery.persistence.wire import attach
from stabilize_celery.redaction import redact_text

T = TypeVar("T")
#: How often a transaction is run when others are in its way each time.
COLLISIONS = 10
_RETRYABLE_SQLSTATES = {"40001", "40P01", "55P03"}
#: How often the database is asked for the time at most, and how quick an answer must be to be trusted.
_MEASUREMENTS = 5
_QUICK = timedelta(milliseconds=2)


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
        self._synchronised = False
        self.engine = self._make_engine(pool_size, prepare_statements)
        _open_databases.add(self)

    @property
    def _in_memory(self) -> bool:
        return not self.is_postgresql and self.url.database in (None, "", ":memory:")

    @cached_property
    def name(self) -> str:
        """The URL without its password, for messages."""
        return redact_text(self.url.render_as_string(hide_password=True))

    def _make_engine(self, pool_size: int, prepare_statements: bool) -> Engine:
        # Parameters are what users store, and an error that shows them ends up in logs.
        options: dict[str, Any] = {"json_serializer": dumps, "hide_parameters": True}
        if self.is_postgresql:
            connect_args: dict[str, Any] = {
                "connect_timeout": 10,
                "application_name": "stabilize",
                # psycopg forgets all prepared statements of a session when it rolls back, also those of the wire.
                "prepare_threshold": None,
            }
            options |= {"pool_size": pool_size, "max_overflow": 20, "connect_args": connect_args}
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
                attach(record.info, connection, prepares=prepare_statements)
        else:
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_immediate)
        return engine

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction: commits at the end of the block, rolls back on any exception.

        Raises:
            StoreError: the database cannot be reached.
        """
        with self._exclusive_use(), self._reachable(), self.engine.begin() as connection:
            yield connection

    @contextmanager
    def autocommit(self) -> Iterator[Connection]:
        """Single statements, each its own transaction: saves the round trips of BEGIN and COMMIT."""
        if not self.is_postgresql:
            with self.begin() as connection:
                yield connection
            return
        with self._reachable(), self.engine.connect() as connection:
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
        if self.is_postgresql and not self._synchronised:
            self._synchronise()
        try:
            with missing_tables_explained(self.name):
                yield
        except OperationalError as error:
            if error.connection_invalidated or _is_connection_failure(error):
                raise StoreError(
                    f"database {self.name} cannot be reached: {error.orig}", cause=None
                ) from error
            raise

    def _synchronise(self) -> None:
        self._synchronised = True
        try:
            with self.engine.connect() as connection:
                _measure(connection, self.clock)
        except OperationalError as error:
            self._synchronised = False
            raise StoreError(
                f"database {self.name} cannot be reached; check stabilize_database_url and that the server runs: "
                f"{' '.join(str(error.orig).split())}"
            ) from error

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


def _measure(connection: Connection, clock: Clock) -> None:
    """Set the clock by the quickest of a few questions.

    A clock that is late by more than a message takes to arrive finds every message not due yet; so late it would be
    when the answer to a single question had to wait for a busy processor.
    """
    shortest: timedelta | None = None
    for _ in range(_MEASUREMENTS):
        asked = datetime.now(UTC)
        moment: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        took = datetime.now(UTC) - asked
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
    """Whether the database, rather than the statement, is the problem."""
    if isinstance(error, StoreError):
        return True
    return isinstance(error, OperationalError) and (
        error.connection_invalidated or _is_connection_failure(error)
    )


def is_duplicate(error: IntegrityError) -> bool:
    """Whether a row with that key is there already, rather than another rule of the table broken."""
    state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    name = getattr(error.orig, "sqlite_errorname", None)
    return state == "23505" or name in ("SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE")


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
            raise missing_tables(database) from error
        raise


def missing_tables(database: str) -> SchemaVersionError:
    """The error for a database without our tables."""
    return SchemaVersionError(
        f"the tables of stabilize_celery are missing in {database}: run "
        "`celery -A <your app> stabilize migrate`, or `stabilize.create_tables()` for a quick start"
    )


def _is_connection_failure(error: OperationalError) -> bool:
    if isinstance(error.orig, sqlite3.OperationalError):
        return "unable to open" in str(error.orig)
    sqlstate = getattr(error.orig, "sqlstate", None)
    # 08: connection exceptions, 57P: the server is shutting down; none at all: the connection was never made.
    return sqlstate is None or sqlstate.startswith(("08", "57P"))


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
    """Close the connections of this process that nobody uses at the moment; they are made again when needed."""
    for database in list(_open_databases):
        if not database._in_memory:
            database.engine.dispose()


def _forget_inherited_connections() -> None:
    for database in list(_open_databases):
        database.engine.dispose(close=False)


# A forked pool child must not use its parent's sockets.
os.register_at_fork(after_in_child=_forget_inherited_connections)
