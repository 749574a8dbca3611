"""The engine's tables as models to be read, made from the tables themselves; only the engine writes there.

Statuses are the names of :class:`~stabilize_celery.models.status.WorkflowStatus`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from django.db import models
from sqlalchemy import JSON, Boolean, Column, DateTime, Integer, String, Table, Text

from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence import tables
from stabilize_celery.persistence.tables import EnumName, UtcDateTime

STATUSES = [(status.name, status.name.replace("_", " ").lower()) for status in WorkflowStatus]


class Json(models.Field):
    """A ``json`` column: text on SQLite; on PostgreSQL a driver may have decoded it already.

    Django's own field is for ``jsonb``.
    """

    description = "JSON"

    def db_type(self, connection: Any) -> str:
        """The type of the column."""
        return "json" if connection.vendor == "postgresql" else "text"

    def from_db_value(self, value: Any, _expression: Any, _connection: Any) -> Any:
        """The value, decoded by the driver or here."""
        return json.loads(value) if isinstance(value, str) else value

    def get_prep_value(self, value: Any) -> Any:
        """For tests that make rows of their own; the engine does not write through Django."""
        return None if value is None else json.dumps(value)


_FIELDS: dict[type, type[models.Field]] = {
    Text: models.TextField,
    Boolean: models.BooleanField,
    Integer: models.IntegerField,
    DateTime: models.DateTimeField,
    UtcDateTime: models.DateTimeField,
    JSON: Json,
}


def _field(column: Column[Any]) -> models.Field:
    kind, null = column.type, bool(column.nullable)
    if column.primary_key:
        return models.CharField("ID", max_length=26, primary_key=True)
    if isinstance(kind, EnumName):
        choices = STATUSES if kind.enum is WorkflowStatus else None
        return models.CharField(max_length=32, null=null, choices=choices)
    if type(kind) is String:
        return models.CharField(max_length=kind.length, null=null)
    return _FIELDS[type(kind)](null=null)


def _model(
    name: str,
    table: Table,
    text: Callable[[Any], str],
    ordering: tuple[str, ...],
    related: dict[str, tuple[str, str]],
    **options: Any,
) -> Any:
    """A model for a table.

    Args:
        name: of the model.
        table: the engine's.
        text: what stands for a row in texts.
        ordering: of lists.
        related: column -> (model, name of the way back).  A row may be there whose workflow is gone.
        options: more for ``Meta``.
    """
    body: dict[str, Any] = {"__module__": __name__, "__doc__": f"A row of ``{table.name}``.", "__str__": text}
    for column in table.columns:
        if column.name in related:
            model, back = related[column.name]
            body[column.name.removesuffix("_id")] = models.ForeignKey(
                model, models.DO_NOTHING, db_constraint=False, null=True, related_name=back
            )
        else:
            body[column.name] = _field(column)
    meta = {"managed": False, "db_table": table.name, "ordering": ordering, **options}
    return type(name, (models.Model,), {**body, "Meta": type("Meta", (), meta)})


def _of_workflow(back: str) -> dict[str, tuple[str, str]]:
    return {"workflow_id": ("Workflow", back), "stage_id": ("Stage", back)}


def _label(row: Any) -> str:
    return f"{row.type} {row.label}".strip()


Workflow = _model(
    "Workflow",
    tables.workflows,
    lambda row: f"{row.name} {row.id}",
    ("-id",),
    {"parent_workflow_id": ("self", "sub_workflows")},
)
Stage = _model(
    "Stage",
    tables.stages,
    lambda row: str(row.name or row.ref_id),
    ("workflow", "position"),
    {"workflow_id": ("Workflow", "stages"), "parent_stage_id": ("self", "synthetic_stages")},
)
Transition = _model(
    "Transition",
    tables.history,
    lambda row: f"{row.event} {row.to_status or ''}".strip(),
    ("at", "step", "id"),
    _of_workflow("history"),
    verbose_name_plural="history",
)
Message = _model("Message", tables.messages, _label, ("due_at", "id"), _of_workflow("messages"))
DeadLetter = _model(
    "DeadLetter", tables.dead_letters, _label, ("-died_at", "-id"), _of_workflow("dead_letters")
)
