"""The release after this one, as the tests make it up: two more revisions, and code that writes what they bring.

The first adds a column, and is for before the deploy.  The second insists on it, which this release does not know to
fill, and is for after the deploy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from alembic.config import Config
from sqlalchemy import Column, Text, text

from stabilize_celery.persistence import migrate, schema, tables

#: The newest revision of this release, whatever a test pretends.
RELEASED = schema.CURRENT
EXPAND, CONTRACT = "9001", "9002"
VERSIONS = Path(__file__).parent / "versions"


def become_newer() -> None:
    """Make this process one of the newer release: for processes of their own, it cannot be undone."""
    schema.CURRENT, schema.NEEDED, schema.COMPATIBLE_SINCE = CONTRACT, EXPAND, EXPAND
    tables.history.append_column(Column("release", Text, default=text("'newer'")))


@contextmanager
def newer_migrations() -> Iterator[None]:
    """Within the block the commands and functions that migrate are those of the newer release."""
    known = migrate._config

    def config(*arguments: object) -> Config:
        made = known(*arguments)  # type: ignore[arg-type]
        made.set_main_option("path_separator", "newline")
        made.set_main_option("version_locations", f"{migrate.FOLDER / 'versions'}\n{VERSIONS}")
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrate, "_config", config)
        patch.setattr(schema, "CURRENT", CONTRACT)
        patch.setattr(schema, "NEEDED", EXPAND)
        yield
