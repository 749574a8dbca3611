"""Columns whose form Django's own fields do not read."""

from __future__ import annotations

import json
from typing import Any

from django.db import models


class Json(models.Field):
    """A ``json`` column: text on SQLite; on PostgreSQL a driver may have decoded it already.

    Django's own field is for ``jsonb``.
    """

    description = "JSON"

    def db_type(self, connection: Any) -> str:
        """The type of the column."""
        return "json" if connection.vendor == "postgresql" else "text"

    def from_db_value(self, value: Any, _expression: Any, _connection: Any) -> Any:
        """The value, whoever decodes it."""
        return json.loads(value) if isinstance(value, str) else value

    def get_prep_value(self, value: Any) -> Any:
        """For tests that make rows of their own; the engine does not write through Django."""
        return None if value is None else json.dumps(value)
