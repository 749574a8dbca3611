"""A connection for one look at the database that must not take long."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy import Connection, text

from stabilize_celery.errors import StoreError
from stabilize_celery.persistence.database import is_canceled
from stabilize_celery.persistence.store import WorkflowStore

#: Nobody waits longer for a page; a search through too much is given up (PostgreSQL).
LONGEST_STATEMENT = timedelta(seconds=8)


@contextmanager
def reading(store: WorkflowStore) -> Iterator[Connection]:
    """A transaction that only reads, all of it as of nearly the same moment.

    Raises:
        StoreError: the database cannot be reached, or a statement took too long.
    """
    try:
        with store.database.begin() as connection:
            if store.database.is_postgresql:
                longest = int(LONGEST_STATEMENT.total_seconds() * 1000)
                connection.execute(text(f"SET LOCAL statement_timeout = {longest}"))
            yield connection
    except StoreError as error:
        if is_canceled(error):
            raise StoreError(
                f"database {store.database.name} took longer than {LONGEST_STATEMENT.total_seconds():g} s; "
                "ask for less: choose an application, a status or an id"
            ) from error
        raise
