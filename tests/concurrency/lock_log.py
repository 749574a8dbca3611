"""In which order transactions lock rows, as the server sees it.

Between the statements of a transaction another connection looks which rows it cannot lock: those the statement
before has locked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy import event

from stabilize_celery import Stabilize
from tests.services import plain_address
from tests.watch import watching

#: The tables in the order in which their rows are locked; before all of them comes the gate of the workflow.
TABLES = ("messages", "slots", "stages", "workflows")
_KEYS = {table: "pipeline_config_id" if table == "slots" else "id" for table in TABLES}
#: The sides of a gate that a backend holds, and all rows that can not be locked.
_LOOK = """
SELECT count(*) FILTER (WHERE mode = 'ShareLock') > 0, count(*) FILTER (WHERE mode = 'ExclusiveLock') > 0,
    (SELECT coalesce(json_agg(json_build_array(place, key)), '[]') FROM ({held}) AS held)
FROM pg_locks WHERE pid = %(backend)s AND locktype = 'advisory' AND granted
""".format(
    held=" UNION ALL ".join(
        f"SELECT '{table}' AS place, {key} AS key FROM stabilize_{table} WHERE {key} NOT IN "
        f"(SELECT * FROM (SELECT {key} FROM stabilize_{table} FOR NO KEY UPDATE SKIP LOCKED) AS free)"
        for table, key in _KEYS.items()
    )
)


@dataclass
class Step:
    """What one statement has locked that was not locked before."""

    statement: str
    table: str
    rows: set[str]


@dataclass
class Transaction:
    """The locks of one transaction, in the order they were taken."""

    exclusive: bool = False
    gate: bool = False
    #: Rows were locked before the gate was entered.
    late_gate: bool = False
    steps: list[Step] = field(default_factory=list)
    last: str = ""
    locked: set[tuple[str, str]] = field(default_factory=set)


class LockLog:
    """Watches the transactions of one engine, which must be used by one thread."""

    def __init__(self, url: str) -> None:
        address = plain_address(url)
        self._server = psycopg.connect(address)
        self.transactions: list[Transaction] = []
        #: By id: where each stage stands in the order; see :meth:`_learn`.
        self.places: dict[str, tuple[Any, ...]] = {}
        self._current: Transaction | None = None
        self._backend = 0

    def close(self) -> None:
        self._server.close()

    def begin(self, connection: Any) -> None:
        self._backend = connection.connection.driver_connection.info.backend_pid
        self._current = Transaction()
        self.transactions.append(self._current)
        self._learn()

    def statement(self, _connection: Any, statement: str, _parameters: Any) -> None:
        if self._current is not None:
            self._look(self._current)
            self._current.last = statement

    def end(self, _connection: Any) -> None:
        if self._current is not None:
            self._look(self._current)
            self._current = None

    def _learn(self) -> None:
        """Stages go from upstream to downstream, children before their parent."""
        found = self._server.execute("SELECT id, topo, parent_stage_id FROM stabilize_stages").fetchall()
        self._server.rollback()
        by_id = {row[0]: row for row in found}
        for stage_id in by_id:
            path: list[tuple[float, str]] = []
            step: str | None = stage_id
            while step is not None and step in by_id:
                path.insert(0, (by_id[step][1], step))
                step = by_id[step][2]
            self.places[stage_id] = (*path, (float("inf"), ""))

    def _look(self, transaction: Transaction) -> None:
        *modes, held = self._server.execute(_LOOK, {"backend": self._backend}).fetchone() or ()
        self._server.rollback()
        shared, exclusive = modes
        if (shared or exclusive) and not transaction.gate:
            transaction.gate = True
            # The statement that takes a message enters the gate as well.
            transaction.late_gate = bool(transaction.steps)
        transaction.exclusive = transaction.exclusive or exclusive
        for table in TABLES:
            now = {key for name, key in held if name == table}
            new = {key for key in now if (table, key) not in transaction.locked}
            if new:
                transaction.locked |= {(table, key) for key in new}
                transaction.steps.append(Step(transaction.last, table, new))


@contextmanager
def lock_log(engine: Stabilize, url: str) -> Iterator[LockLog]:
    """Log the locks of everything the engine does within the block."""
    log = LockLog(url)
    sql = engine.store.database.engine
    listeners = {"begin": log.begin, "commit": log.end, "rollback": log.end}
    # One statement after the other, so that each can be looked at.
    with watching(sql, log.statement, one_by_one=True):
        for name, listener in listeners.items():
            event.listen(sql, name, listener)
        try:
            yield log
        finally:
            for name, listener in listeners.items():
                event.remove(sql, name, listener)
            log.close()
