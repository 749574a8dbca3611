"""The per-test database has the engine's tables and nobody else's rows."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, inspect, text


@pytest.mark.parametrize("turn", [1, 2])
def test_each_test_gets_a_clean_database_with_our_tables(postgres_url: str, turn: int) -> None:
    engine = create_engine(postgres_url)
    try:
        assert {"stabilize_workflows", "stabilize_messages"} <= set(inspect(engine).get_table_names())
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE left_behind (turn int)"))
    finally:
        engine.dispose()
