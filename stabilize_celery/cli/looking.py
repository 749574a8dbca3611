"""``list``, ``show``, ``watch``: what is there, and how it stands."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta

import click

from stabilize_celery.cli.base import TRACEBACK, EngineCommand, open_engine
from stabilize_celery.cli.discretion import printable
from stabilize_celery.cli.ids import find_run
from stabilize_celery.cli.output import (
    print_history,
    print_json,
    print_outputs,
    print_stage_outputs,
    print_workflows,
)
from stabilize_celery.cli.shapes import head_shape, history_shape, workflow_shape
from stabilize_celery.cli.terminal import knows_only_ascii, make_console
from stabilize_celery.cli.tree import LiveTree, stage_tree
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.run import WorkflowRun, merged_outputs, stage_tracebacks

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _since(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """A time, or how long ago it was."""
    if value is None:
        return None
    ago = re.fullmatch(r"(\d{1,6})\s*([smhdw])", value.strip())
    try:
        if ago:
            return datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        # A time without a zone is the one on the clock of whoever types it.
        return datetime.fromisoformat(value.strip()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{value!r} is neither a time such as 2030-01-31T12:00 nor an age such as 30m, 2h, 7d"
        ) from None


@click.command("list", cls=EngineCommand)
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
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many."
)
@click.pass_context
def list_command(
    ctx: click.Context,
    application: str | None,
    name: str | None,
    status: str | None,
    since: datetime | None,
    limit: int,
    as_json: bool,
) -> None:
    """List workflows, the newest first."""
    engine = open_engine(ctx)
    chosen = None if status is None else WorkflowStatus[status.upper()]
    found = engine.store.find(application=application, name=name, status=chosen, since=since, limit=limit)
    now = engine.store.now()
    if as_json:
        print_json([head_shape(workflow, now) for workflow in found])
    elif found:
        print_workflows(found, now)
    else:
        click.echo("No workflows.", err=True)


@click.command("show", cls=EngineCommand, short_help="Show a workflow and its stages.")
@click.argument("id")
@click.option("--history", is_flag=True, help="Also every transition so far.")
@click.option("--outputs", is_flag=True, help="Also the outputs of every stage.")
@click.option("--all", "everything", is_flag=True, help="Draw every stage, however many there are.")
@click.pass_context
def show_command(
    ctx: click.Context, id: str, history: bool, outputs: bool, everything: bool, as_json: bool
) -> None:
    """Show a workflow: its stages with status, time, attempts and errors.

    ID may be shortened to six or more characters of its end.  --traceback shows those of failed stages.
    """
    engine = open_engine(ctx)
    run = find_run(engine, id)
    workflow, now = run.workflow(), engine.store.now()
    entries = run.history() if history else []
    if as_json:
        shape = workflow_shape(workflow, now)
        print_json({**shape, "history": history_shape(entries, workflow)} if history else shape)
        return
    console = make_console()
    most = len(workflow.stages) if everything else 200
    console.print(stage_tree(workflow, now, most=most, ascii=knows_only_ascii(console)))
    if ctx.meta[TRACEBACK]:
        for ref, text in stage_tracebacks(workflow):
            click.echo(f"\nstage {printable(ref)}:\n{printable(text)}")
    if outputs:
        print_stage_outputs(workflow)
    if history:
        print_history(entries, workflow)


@click.command("watch", cls=EngineCommand, short_help="Watch a workflow until it ends.")
@click.argument("id")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Stop watching after that time.")
@click.pass_context
def watch_command(ctx: click.Context, id: str, timeout: float | None, as_json: bool) -> None:
    """Watch a workflow until it ends; exit code 0 only if it SUCCEEDED."""
    run = find_run(open_engine(ctx), id)
    follow(ctx, run, timeout, as_json)


def follow(ctx: click.Context, run: WorkflowRun, timeout: float | None, as_json: bool) -> None:
    """Show a run that others work on until it ends, then how it ended."""
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
    """Print what came of a run whose tree has been shown, and exit as it ended."""
    workflow = run.workflow()
    if as_json:
        print_json(workflow_shape(workflow, run._engine.store.now()))
    else:
        print_outputs(merged_outputs(workflow))
    ctx.exit(0 if workflow.status is WorkflowStatus.SUCCEEDED else 1)
