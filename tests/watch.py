"""Every statement an engine runs, wherever in it: those of the hot path, and those SQLAlchemy runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event

from stabilize_celery.persistence import pipeline


@contextmanager
def watching(
    engine: Engine, on_statement: Callable[[Connection, str, list[Any]], None], *, one_by_one: bool = False
) -> Iterator[None]:
    """Call ``on_statement`` before each statement within the block, with the parameters of each execution.

    Args:
        engine: of the database; statements of others are left out.
        one_by_one: batches are sent statement by statement, each answered before the next is shown.
    """

    def hot(connection: Connection, sql: str, parameters: list[Any]) -> None:
        if connection.engine.pool is engine.pool:
            on_statement(connection, sql, parameters)

    def cold(connection: Any, _cursor: Any, sql: str, parameters: Any, _context: Any, many: bool) -> None:
        on_statement(connection, sql, list(parameters) if many else [parameters])

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pipeline, "on_statement", hot)
        patched.setattr(pipeline, "batches", not one_by_one)
        event.listen(engine, "before_cursor_execute", cold)
        try:
            yield
        finally:
            event.remove(engine, "before_cursor_execute", cold)
