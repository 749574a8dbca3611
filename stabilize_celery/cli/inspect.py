"""``list``, ``show``, ``watch``: which workflows there are, and their state, for people and in JSON."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.measure import Measurement
from rich.text import Text

from stabilize_celery.cli import base, output
from stabilize_celery.cli.tree import LiveTree, stage_tree, title
from stabilize_celery.models.json import WorkflowData, WorkflowWithStages, named_history, to_json
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.run import WorkflowRun, merged_outputs, stage_tracebacks

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_LONGEST_VALUE = 2000
#: Columns of a terminal that has room for when workflows started.
_NARROW = 76

commands = base.Commands()


def age_of(value: str) -> timedelta | None:
    """An age such as ``12h`` or ``30d``; ``None`` for another text."""
    found = re.fullmatch(r"(\d{1,6})\s*([smhdw])", value.strip())
    return None if found is None else timedelta(**{_UNITS[found[2]]: int(found[1])})


def _since(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        if (age := age_of(value)) is not None:
            return datetime.now(UTC) - age
        # A time without a zone is local time.
        return datetime.fromisoformat(value.strip()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r} is neither a time such as 2030-01-31T12:00 nor an age such as 30m, 2h, 7d"
        ) from None


@commands.command("list")
@click.option("--application", metavar="NAME", help="Only workflows of this application.")
@click.option("--name", metavar="NAME", help="Only workflows of this name.")
@click.option(
    "--status",
    type=click.Choice([status.name for status in WorkflowStatus], case_sensitive=False),
    metavar="STATUS",
    help="Only workflows in this status, such as RUNNING.",
)
@click.option(
    "--since", callback=_since, metavar="TIME", help="Only those made since then: a time, or 30m, 2h, 7d."
)
@base.limit_option
@click.pass_context
def _list(ctx: click.Context, /, status: str | None, as_json: bool, **filters: Any) -> None:
    """List workflows, the newest first."""
    engine = base.open_engine(ctx)
    chosen = None if status is None else WorkflowStatus[status.upper()]
    found = engine.store.find(status=chosen, **filters)
    now = engine.store.now()
    if as_json:
        output.print_json(to_json(list[WorkflowData], found, now))
    elif found:
        _print_workflows(found, now)
    else:
        click.echo("No workflows.", err=True)


@commands.command("show")
@click.argument("id")
@click.option("--history", is_flag=True, help="Also every transition so far.")
@click.option("--outputs", is_flag=True, help="Also the outputs of every stage.")
@click.option("--all", "everything", is_flag=True, help="Draw every stage, however many there are.")
@click.pass_context
def _show(ctx: click.Context, id: str, history: bool, outputs: bool, everything: bool, as_json: bool) -> None:
    """Show a workflow and its stages.

    With status, time, attempts and errors.  ID may be shortened to six or more characters of its end.  --traceback
    shows the tracebacks of failed stages.
    """
    engine = base.open_engine(ctx)
    run = base.find_run(engine, id)
    workflow, now = run.workflow(), engine.store.now()
    entries = named_history(run.history(), workflow) if history else []
    if as_json:
        output.print_json(_workflow_json(workflow, now) | ({"history": entries} if history else {}))
        return
    console = output.make_console()
    most = len(workflow.stages) if everything else 200
    console.print(stage_tree(workflow, now, most=most, ascii=output.knows_only_ascii(console)))
    if ctx.meta[base.TRACEBACK]:
        for ref, text in stage_tracebacks(workflow):
            click.echo(f"\nstage {output.printable(ref)}:\n{output.printable(text)}")
    if outputs:
        stages = sorted(workflow.stages, key=lambda stage: stage.rank)
        rows = [(title(stage), *cells) for stage in stages for cells in _output_cells(stage.outputs)]
        if rows:
            output.print_table(("stage", "output", "value"), rows)
    if history:
        output.print_table(("at", "what", "from", "to", "reason", "by"), map(_history_cells, entries))


@commands.command("watch")
@click.argument("id")
@base.seconds("--timeout", help="Stop watching after that time.")
@click.pass_context
def _watch(ctx: click.Context, id: str, timeout: float | None, as_json: bool) -> None:
    """Watch a workflow until it ends.

    Exit code 0 only if it SUCCEEDED.
    """
    follow(ctx, base.find_run(base.open_engine(ctx), id), timeout, as_json)


def follow(ctx: click.Context, run: WorkflowRun, timeout: float | None, as_json: bool) -> None:
    """Show a run that workers handle until it ends, then how it ended."""
    try:
        with contextlib.nullcontext() if as_json else LiveTree(run):
            run.wait(timeout)
    except KeyboardInterrupt:
        click.secho(
            f"\nWorkflow {run.id} goes on; `watch {run.id}` shows it again, `cancel {run.id}` ends it",
            err=True,
            fg="yellow",
        )
        ctx.exit(1)
    finish(ctx, run, as_json)


def finish(ctx: click.Context, run: WorkflowRun, as_json: bool) -> None:
    """Print the outputs of a run whose tree has been shown, and exit as it ended."""
    workflow = run.workflow()
    if as_json:
        output.print_json(_workflow_json(workflow, run._engine.store.now()))
    elif outputs := merged_outputs(workflow):
        output.print_table(("output", "value"), _output_cells(outputs))
    ctx.exit(0 if workflow.status is WorkflowStatus.SUCCEEDED else 1)


def _workflow_json(workflow: Workflow, now: datetime) -> dict[str, Any]:
    outputs = merged_outputs(workflow)
    return {**to_json(WorkflowWithStages, workflow, now), "outputs": outputs}


def _print_workflows(found: Sequence[Workflow], now: datetime) -> None:
    """A table of workflows without their stages, in fewer columns where all of them are too wide."""
    console = output.make_console()
    times = ("started", "elapsed") if console.width >= _NARROW else ("elapsed",)
    rows: list[tuple[str | Text, ...]] = []
    short: list[tuple[str | Text, ...]] = []
    for workflow in found:
        status, moment = output.styled(workflow.status), workflow.start_time or workflow.created_at
        started, took = output.local_time(moment), output.elapsed(workflow.start_time, workflow.end_time, now)
        rows.append((workflow.id, workflow.application, workflow.name, status, started, took))
        name = f"{workflow.application}/{workflow.name}"
        short.append((workflow.id, name, status, *(started[5:16], took)[-len(times) :]))
    columns = ("id", "application", "name", "status", "started", "elapsed")
    wide = console.options.update(width=10_000)
    if Measurement.get(console, wide, output.make_table(columns, rows)).maximum <= console.width:
        output.print_table(columns, rows)
    else:
        output.print_table(("id", "workflow", "status", *times), short)


def _output_cells(outputs: Mapping[str, Any]) -> list[tuple[Text, str]]:
    """Keys and their values."""
    cells = []
    for key, value in output.shown(outputs).items():
        text = json.dumps(value, ensure_ascii=False)
        if len(text) > _LONGEST_VALUE:
            text = f"{text[:_LONGEST_VALUE]} ... ({len(text):,} characters)"
        cells.append((Text(key, style="bold"), text))
    return cells


def _history_cells(entry: Mapping[str, Any]) -> tuple[str | Text, ...]:
    what = " ".join(filter(None, (entry["event"], entry["stage"])))
    if entry["task"] and entry["task"] != entry["stage"]:
        what += f" / {entry['task']}"
    return (
        datetime.fromisoformat(entry["at"]).astimezone().strftime("%H:%M:%S.%f")[:-3],
        what,
        entry["from"] or "",
        output.styled(WorkflowStatus[entry["to"]]) if entry["to"] else "",
        entry["reason"] or "",
        entry["actor"] or entry["worker"] or "",
    )
