"""Printing: JSON for programs, tables for people."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import click
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from stabilize_celery.cli.discretion import shown
from stabilize_celery.cli.layout import title
from stabilize_celery.cli.shapes import history_shape
from stabilize_celery.cli.terminal import make_console
from stabilize_celery.cli.words import LOOKS, elapsed
from stabilize_celery.models.workflow import Workflow

_LONGEST_VALUE = 2000
#: Columns of a terminal that has room for when workflows started.
_NARROW = 76


def print_json(value: Any) -> None:
    """One JSON document."""
    written = json.dumps(shown(value), indent=2, ensure_ascii=False)
    # JSON itself leaves these as they are, and some terminals obey them.
    click.echo(re.sub(r"[\x7f-\x9f]", lambda found: f"\\u{ord(found[0]):04x}", written))


def print_workflows(found: Sequence[Workflow], now: datetime) -> None:
    """A table of workflows without their stages, in fewer columns where all of them are too wide."""
    console = make_console()
    whole, narrow, narrowest = (
        _table(*columns)
        for columns in (
            ("id", "application", "name", "status", "started", "elapsed"),
            ("id", "workflow", "status", "started", "elapsed"),
            ("id", "workflow", "status", "elapsed"),
        )
    )
    for workflow in found:
        status = Text(str(workflow.status), style=LOOKS[workflow.status][2])
        moment = _local(workflow.start_time or workflow.created_at)
        took = elapsed(workflow.start_time, workflow.end_time, now)
        named = Text(f"{workflow.application}/{workflow.name}")
        whole.add_row(workflow.id, Text(workflow.application), Text(workflow.name), status, moment, took)
        narrow.add_row(workflow.id, named, status, moment[5:16], took)
        narrowest.add_row(workflow.id, named, status, took)
    if Measurement.get(console, console.options.update(width=10_000), whole).maximum <= console.width:
        _print(whole)
    else:
        _print(narrow if console.width >= _NARROW else narrowest)


def print_outputs(outputs: Mapping[str, Any]) -> None:
    """Keys and their values."""
    if outputs:
        table = _table("output", "value")
        for key, value in shown(outputs).items():
            table.add_row(Text(key, style="bold"), _value(value))
        _print(table)


def print_stage_outputs(workflow: Workflow) -> None:
    """Keys and their values, stage by stage."""
    rows = [(stage, key, value) for stage in workflow.stages for key, value in shown(stage.outputs).items()]
    if rows:
        table = _table("stage", "output", "value")
        for stage, key, value in sorted(rows, key=lambda row: row[0].rank):
            table.add_row(Text(title(stage)), Text(key, style="bold"), _value(value))
        _print(table)


def print_history(entries: Sequence[Mapping[str, Any]], workflow: Workflow) -> None:
    """Transitions, oldest first."""
    table = _table("at", "what", "from", "to", "reason", "by")
    for shaped, entry in zip(history_shape(entries, workflow), entries, strict=True):
        what = shaped["event"]
        if shaped["stage"]:
            what += f" {shaped['stage']}"
        if shaped["task"] and shaped["task"] != shaped["stage"]:
            what += f" / {shaped['task']}"
        table.add_row(
            _local(entry["at"], precise=True),
            Text(what),
            shaped["from"] or "",
            Text(shaped["to"] or "", style=LOOKS[entry["to_status"]][2] if entry["to_status"] else ""),
            Text(shaped["reason"] or ""),
            Text(shaped["actor"] or shaped["worker"] or ""),
        )
    _print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column.upper(), overflow="fold", no_wrap=column in ("id", "status", "started", "at"))
    return table


def _print(table: Table) -> None:
    console = make_console()
    with console.capture() as written:
        console.print(table)
    # A table fills its last column with spaces.
    click.echo(re.sub(r" +$", "", written.get(), flags=re.MULTILINE), nl=False)


def _value(value: Any) -> Text:
    text = json.dumps(value, ensure_ascii=False)
    return Text(
        text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]} ... ({len(text):,} characters)"
    )


def _local(moment: datetime | None, *, precise: bool = False) -> str:
    if moment is None:
        return ""
    local = moment.astimezone()
    return local.strftime("%H:%M:%S.%f")[:-3] if precise else local.strftime("%Y-%m-%d %H:%M:%S")
