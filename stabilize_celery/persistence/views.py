"""Reading what a stage sees: the values behind its sources."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection

from stabilize_celery.context.sources import producers
from stabilize_celery.context.view import inherited_values
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.persistence import queries
from stabilize_celery.persistence.statements import rows_of


def read_inherited(
    connection: Connection,
    stage: StageExecution,
    parents: list[StageExecution],
    known: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Everything ``stage`` sees that is not its own; ``known`` are outputs, by stage id, that need not be read."""
    known = known or {}
    needed = producers(stage.sources).union(*(producers(parent.sources) for parent in parents))
    outputs = {stage_id: known[stage_id] for stage_id in needed if stage_id in known}
    outputs |= read_outputs(connection, needed - outputs.keys())
    reduced = {each.id: _reduced(connection, each) for each in (stage, *parents) if each.output_reducers}
    return inherited_values(stage, parents, outputs, reduced)


def read_outputs(connection: Connection, stage_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The outputs of some stages, by id."""
    found: dict[str, dict[str, Any]] = {}
    for batch in queries.chunks(sorted(stage_ids)):
        if len(batch) == 1:
            rows = rows_of(connection, queries.read_one_output, {"stage_id": batch[0]})
            found.update((row["id"], row["outputs"]) for row in rows)
        else:
            many = connection.execute(queries.read_outputs, {"stage_ids": batch})
            found.update((row.id, row.outputs) for row in many)
    return found


def _reduced(connection: Connection, stage: StageExecution) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = defaultdict(list)
    rows = rows_of(connection, queries.read_upstream_outputs, {"stage_id": stage.id})
    for row in sorted(rows, key=lambda row: list(row["rank"])):
        for key in stage.output_reducers:
            if key in row["outputs"]:
                values[key].append(row["outputs"][key])
    return dict(values)
