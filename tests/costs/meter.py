"""Counts what an engine costs where the machine does not matter: statements, transactions, log bytes, rows, messages."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from celery import Celery
from sqlalchemy import text

from stabilize_celery import Stabilize
from stabilize_celery.delivery.publisher import task_message
from stabilize_celery.persistence.tables import PREFIX
from tests.watch import watching

#: Statements by which the processor of an embedded engine finds out that nothing is left to do.
POLLS = ("min(stabilize_messages.send_at)", "SKIP LOCKED")


@dataclass
class Costs:
    """What was counted while a block ran."""

    statements: Counter[str] = field(default_factory=Counter)
    #: Transactions that wrote something.
    transactions: int = 0
    wal_bytes: int = 0
    #: Rows inserted, updated and deleted.
    rows: int = 0
    #: Rows looked at, wherever they were found.
    read: int = 0
    published: int = 0
    published_bytes: int = 0

    @property
    def total(self) -> int:
        """All statements."""
        return self.statements.total()

    def per(self, many: int, other: Costs, few: int) -> dict[str, float]:
        """What one more costs, between a run of ``few`` (``other``) and this one of ``many``."""
        return {
            name: (getattr(self, name) - getattr(other, name)) / (many - few)
            for name in ("total", "transactions", "wal_bytes", "rows", "read", "published", "published_bytes")
        }


class Meter:
    """Measures an embedded engine on PostgreSQL."""

    def __init__(self, engine: Stabilize) -> None:
        self._engine = engine
        self._app = Celery("costs", broker="memory://", set_as_current=False)
        self._costs: Costs | None = None
        # Asked for once in a process.
        database = engine.store.database.identity
        publish = engine.publisher.publish

        def counted(outgoing: list[Any]) -> None:
            if self._costs is not None:
                for message in outgoing:
                    built = task_message(self._app, message, database)
                    self._costs.published += 1
                    self._costs.published_bytes += len(json.dumps([built.body, built.headers]))
            publish(outgoing)

        engine.publisher.publish = counted

    @contextmanager
    def _counting(self, statements: Counter[str]) -> Iterator[None]:
        def executed(_connection: Any, sql: str, _parameters: Any) -> None:
            if not any(poll in sql for poll in POLLS):
                statements[" ".join(sql.split())[:120]] += 1

        with watching(self._engine.store.database.engine, executed):
            yield

    @contextmanager
    def measuring(self) -> Iterator[Costs]:
        """Count while the block runs."""
        costs = Costs()
        before = self._read()
        self._costs = costs
        try:
            with self._counting(costs.statements):
                yield costs
        finally:
            self._costs = None
        transactions, log, rows, read = (now - then for now, then in zip(self._read(), before, strict=True))
        # Reading the counters takes a transaction number as well.
        costs.transactions, costs.wal_bytes, costs.rows, costs.read = transactions - 1, log, rows, read

    def _read(self) -> tuple[int, ...]:
        with self._engine.store.database.engine.connect() as connection:
            # Counters of this session's own changes are sent when it is told to.
            connection.execute(text("SELECT pg_stat_force_next_flush()"))
            connection.commit()
            connection.execute(text("SELECT pg_stat_clear_snapshot()"))
            row = connection.execute(
                text(
                    "SELECT pg_current_xact_id()::text::bigint, "
                    "pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, "
                    "coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint, "
                    "coalesce(sum(seq_tup_read + idx_tup_fetch), 0)::bigint "
                    "FROM pg_stat_user_tables WHERE starts_with(relname, :prefix)"
                ),
                {"prefix": PREFIX},
            ).one()
            connection.commit()
        return tuple(map(int, row))
