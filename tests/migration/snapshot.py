"""Everything a database says about its tables, for comparing two of them."""

from __future__ import annotations

import re
from typing import Any

from sqlalchemy import Connection, text

from stabilize_celery.persistence.database import Database

_POSTGRESQL = {
    "columns": """
        SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
               pg_get_expr(d.adbin, d.adrelid)
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace ORDER BY c.relname, a.attnum""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2""",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
    "storage": """
        SELECT relname, reloptions FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND reloptions IS NOT NULL ORDER BY 1""",
}


def snapshot(database: Database) -> dict[str, list[Any]]:
    """Columns in their order, constraints, indexes, storage parameters."""
    with database.begin() as connection:
        if database.is_postgresql:
            return {
                kind: [tuple(row) for row in connection.execute(text(query))]
                for kind, query in _POSTGRESQL.items()
            }
        return _sqlite(connection)


def _sqlite(connection: Connection) -> dict[str, list[Any]]:
    statements = connection.execute(
        text("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY type, name")
    ).all()
    found: dict[str, list[Any]] = {"columns": [], "constraints": [], "indexes": []}
    for kind, name, statement in statements:
        said = " ".join(statement.split())
        if kind == "index":
            found["indexes"].append((name, said))
            continue
        body = said[said.index("(") + 1 : said.rindex(")")]
        parts = [part.strip() for part in re.split(r",(?![^(]*\))", body)]
        found["columns"] += [(name, part) for part in parts if not part.startswith("CONSTRAINT")]
        # Constraints have names: the order in which they are written means nothing.
        found["constraints"] += sorted((name, part) for part in parts if part.startswith("CONSTRAINT"))
    return found
