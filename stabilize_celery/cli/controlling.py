"""``cancel``, ``pause``, ``signal`` and the like: what can be done to a workflow that runs.

The engine refuses what makes no sense at once; the rest is written down and done by whoever runs the workflow.
"""

from __future__ import annotations

import json
from typing import Any

import click

from stabilize_celery.cli.base import EngineCommand, has_workers, open_engine, user_option
from stabilize_celery.cli.ids import find_run
from stabilize_celery.cli.output import print_json
from stabilize_celery.cli.terminal import harmless
from stabilize_celery.engine import Stabilize
from stabilize_celery.run import WorkflowRun


def json_object(ctx: click.Context, param: click.Parameter, value: str) -> dict[str, Any]:
    """A JSON object on the command line."""
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise click.BadParameter(f'it must be a JSON object such as {{"by": "kim"}}, not {value}')
    return parsed


def _accepted(
    engine: Stabilize, run: WorkflowRun, command: str, as_json: bool, stage: str | None = None
) -> None:
    if as_json:
        print_json({"id": run.id, "command": command, "stage": stage, "accepted": True})
    else:
        told = f"{command} of {f'stage {stage} of ' if stage else ''}workflow {run.id} is under way"
        click.echo(harmless(told))
    if not has_workers(engine):
        click.echo(
            "Nobody works on this database all the time: `run FILE --continue ID` does what is under way.",
            err=True,
        )


_reason = click.option("--reason", default="", help="Why; it is kept in the history.")


@click.command("cancel", cls=EngineCommand, short_help="Cancel a workflow.")
@click.argument("id")
@click.option("--force", is_flag=True, help="End tasks that do not stop when they are asked to.")
@_reason
@user_option
@click.pass_context
def cancel_command(ctx: click.Context, id: str, force: bool, reason: str, user: str, as_json: bool) -> None:
    """Cancel a workflow: what runs is told to stop, nothing more starts."""
    engine = open_engine(ctx)
    run = find_run(engine, id)
    run.cancel(user=user, reason=reason, force=force)
    _accepted(engine, run, "cancel", as_json)


@click.command("cancel-stage", cls=EngineCommand)
@click.argument("id")
@click.argument("stage")
@_reason
@user_option
@click.pass_context
def cancel_stage_command(
    ctx: click.Context, id: str, stage: str, reason: str, user: str, as_json: bool
) -> None:
    """Cancel one stage; its branch ends with it."""
    engine = open_engine(ctx)
    run = find_run(engine, id)
    run.cancel_stage(stage, user=user, reason=reason)
    _accepted(engine, run, "cancel-stage", as_json, stage)


@click.command("pause", cls=EngineCommand, short_help="Pause a workflow.")
@click.argument("id")
@user_option
@click.pass_context
def pause_command(ctx: click.Context, id: str, user: str, as_json: bool) -> None:
    """Pause a workflow: what runs finishes, nothing more starts."""
    engine = open_engine(ctx)
    run = find_run(engine, id)
    run.pause(user=user)
    _accepted(engine, run, "pause", as_json)


@click.command("resume", cls=EngineCommand)
@click.argument("id")
@user_option
@click.pass_context
def resume_command(ctx: click.Context, id: str, user: str, as_json: bool) -> None:
    """Let a paused workflow go on."""
    engine = open_engine(ctx)
    run = find_run(engine, id)
    run.resume(user=user)
    _accepted(engine, run, "resume", as_json)


@click.command("restart", cls=EngineCommand, short_help="Run a stage again, and what comes after it.")
@click.argument("id")
@click.argument("stage")
@user_option
@click.pass_context
def restart_command(ctx: click.Context, id: str, stage: str, user: str, as_json: bool) -> None:
    """Run a stage that has ended again, and everything after it."""
    engine = open_engine(ctx)
    run = find_run(engine, id)
    run.restart_stage(stage, user=user)
    _accepted(engine, run, "restart", as_json, stage)


@click.command("skip", cls=EngineCommand, short_help="End a stage as SKIPPED.")
@click.argument("id")
@click.argument("stage")
@_reason
@user_option
@click.pass_context
def skip_command(ctx: click.Context, id: str, stage: str, reason: str, user: str, as_json: bool) -> None:
    """End a stage as SKIPPED; what comes after it goes on."""
    engine = open_engine(ctx)
    run = find_run(engine, id)
    run.skip_stage(stage, user=user, reason=reason)
    _accepted(engine, run, "skip", as_json, stage)


@click.command("signal", cls=EngineCommand, short_help="Send a signal to a stage that waits for one.")
@click.argument("id")
@click.argument("stage")
@click.argument("name")
@click.argument("data", callback=json_object, default="{}", metavar="[JSON]")
@click.option(
    "--transient", is_flag=True, help="Only for a stage that waits now; otherwise it is kept for it."
)
@user_option
@click.pass_context
def signal_command(
    ctx: click.Context,
    id: str,
    stage: str,
    name: str,
    data: dict[str, Any],
    transient: bool,
    user: str,
    as_json: bool,
) -> None:
    """Send a signal to a stage that waits for one, such as `approved '{"by": "kim"}'`."""
    engine = open_engine(ctx)
    run = find_run(engine, id)
    run.signal(stage, name, data, persistent=not transient, user=user)
    _accepted(engine, run, "signal", as_json, stage)
