"""The round trips of the hot path: statements given to libpq itself, any number of them at once.

psycopg's cursors serve everybody, and its pipeline keeps the state that this takes; here it is known beforehand what is
sent and what comes back.  That costs a quarter of the processor time, see decision 0014.  The connection stays psycopg's:
it converts the values and makes the errors, and its cursors may be used in between, in the same transaction.
"""

from __future__ import annotations

import itertools
import select
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg.adapt import PyFormat, Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus
from psycopg.types.json import set_json_loads

from stabilize_celery.persistence.types import loads

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
        connection: nobody else uses it at the same time.
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
        #: Whether a transaction is begun where psycopg would.
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
            # Half of an exchange: whoever came next would be given the rest of it.
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
        # Of somebody else's connection it is not known who else prepares, and forgets, statements there.
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
