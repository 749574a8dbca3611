"""What every part of the store has: the database, its statements, the time."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from stabilize_celery.clock import Clock
from stabilize_celery.persistence import message_queries, schema
from stabilize_celery.persistence.database import Database


class BaseStore:
    """One database.

    Args:
        url: see :class:`~stabilize_celery.persistence.database.Database`, as the other arguments.
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
        self.database = Database(
            url,
            clock=clock,
            pool_size=pool_size,
            prepare_statements=prepare_statements,
            listen_url=listen_url,
        )
        self.queries = message_queries.Queries(self.database.is_postgresql)
        self.url = url
        #: Where times come from.
        self.clock = self.database.clock
        #: The current time.
        self.now: Callable[[], datetime] = self.clock.now

    def create_tables(self) -> None:
        """Make the tables if they do not exist."""
        schema.create_all(self.database)

    def check_schema(self) -> None:
        """Refuse a database whose tables are missing or of another version."""
        schema.check(self.database)

    def close(self) -> None:
        """Close all connections."""
        self.database.dispose()
