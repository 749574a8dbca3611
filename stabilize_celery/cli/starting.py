"""``run`` and ``start``: from a file to a workflow that runs."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from typing import Any

import click

from stabilize_celery.cli.base import (
    EngineCommand,
    check_tables,
    database_url_of,
    engine_of_app,
    open_engine,
    user_option,
)
from stabilize_celery.cli.controlling import json_object
from stabilize_celery.cli.files import bring_tasks, own_engine, read_file
from stabilize_celery.cli.ids import find_run
from stabilize_celery.cli.looking import finish, follow
from stabilize_celery.cli.output import print_json
from stabilize_celery.cli.tree import LiveTree
from stabilize_celery.engine import Stabilize
from stabilize_celery.errors import ConfigurationError, WorkflowTimeoutError
from stabilize_celery.files import WorkflowFile
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.trigger import Trigger
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.run import WorkflowRun

#: How long tasks have to stop when a workflow in memory is given up.
_LAST_SECONDS = 5.0

_context = click.option(
    "--context",
    callback=json_object,
    default="{}",
    metavar="JSON",
    help="Merged into the workflow's context.",
)
_dedup_key = click.option("--dedup-key", metavar="KEY", help="Start it only once per application and key.")


def _prepared(file: WorkflowFile, user: str, context: dict[str, Any]) -> Workflow:
    workflow = file.workflow
    workflow.context.update(context)
    if workflow.trigger.user == Trigger().user:
        workflow.trigger.user = user
    return workflow


@click.command("start", cls=EngineCommand, short_help="Start the workflow of a file and print its id.")
@click.argument("file")
@_context
@_dedup_key
@user_option
@click.pass_context
def start_command(
    ctx: click.Context, file: str, context: dict[str, Any], dedup_key: str | None, user: str, as_json: bool
) -> None:
    """Start the workflow of FILE (Python, YAML or JSON) and print its id; workers run it."""
    workflow = _prepared(read_file(file), user, context)
    engine = open_engine(ctx, make_tables=True)
    run = engine.start(workflow, dedup_key=dedup_key)
    if as_json:
        print_json({"id": run.id, "status": str(run.status), "new": run.id == workflow.id})
    else:
        click.echo(run.id)


@click.command("run", cls=EngineCommand, short_help="Run the workflow of a file and show it.")
@click.argument("file")
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Give up after that time.")
@click.option("--concurrency", type=click.IntRange(1), default=4, show_default=True, help="Tasks at once.")
@click.option(
    "--continue",
    "continued",
    metavar="ID",
    help="Go on with that workflow of the database, with FILE's tasks.",
)
@_context
@_dedup_key
@user_option
@click.pass_context
def run_command(
    ctx: click.Context,
    file: str,
    timeout: float | None,
    concurrency: int,
    continued: str | None,
    context: dict[str, Any],
    dedup_key: str | None,
    user: str,
    as_json: bool,
) -> None:
    """Run the workflow of FILE (Python, YAML or JSON) and show it; exit code 0 only if it SUCCEEDED.

    It runs in this process, and in memory unless a database is named; with -A the app's workers run it.  A Python
    file brings its tasks as `tasks = {"name": function}`, or on an engine of its own called `stabilize`.
    """
    engine = engine_of_app(ctx)
    read = read_file(file)
    workflow = _prepared(read, user, context)
    if engine is not None:
        ctx.call_on_close(engine.close)
        check_tables(engine)
        run = find_run(engine, continued) if continued else engine.start(workflow, dedup_key=dedup_key)
        follow(ctx, run, timeout, as_json)
        return
    engine = _embedded(read, database_url_of(ctx), concurrency)
    ctx.call_on_close(engine.close)
    check_tables(engine, make_tables=True)
    # What tasks print must not get between the lines of the JSON document.
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        if continued:
            run = find_run(engine, continued)
        else:
            _refuse_the_work_of_others(engine)
            run = engine.start(workflow, dedup_key=dedup_key)
        if not _run_here(engine, run, timeout, as_json):
            ctx.exit(1)
    finish(ctx, run, as_json)


def _embedded(read: WorkflowFile, url: str | None, concurrency: int) -> Stabilize:
    """An engine in this process with the tasks of a file."""
    own = own_engine(read)
    if own is not None and own.app is None and own._settings is not None and url is None:
        bring_tasks(read, own)
        return own
    engine = Stabilize.embedded(url or "sqlite://", concurrency=concurrency, create_tables=False)
    if own is not None:
        engine.registry, engine.builders = own.registry, own.builders
    bring_tasks(read, engine)
    return engine


def _refuse_the_work_of_others(engine: Stabilize) -> None:
    # An embedded engine handles whatever falls due in its database.
    waiting = engine.store.count_messages()
    if waiting:
        raise ConfigurationError(
            f"{engine.store.database.name} holds {waiting} unfinished message{'s' * (waiting != 1)} of other "
            "workflows, which this process would handle without their tasks: use a database of its own, "
            "`start` or -A where workers run them, or --continue ID to go on with one"
        )


def _run_here(engine: Stabilize, run: WorkflowRun, timeout: float | None, as_json: bool) -> bool:
    """Run it as far as it goes; false if that was interrupted."""
    # The tree says what fails.
    logging.getLogger("stabilize_celery.worker.execution").addHandler(logging.NullHandler())
    try:
        with contextlib.nullcontext() if as_json else LiveTree(run):
            engine.processor.drain(timeout)
    except KeyboardInterrupt:
        _give_up(engine, run, "interrupted")
        said = f"\nWorkflow {run.id} was canceled, because it was interrupted{_how_to_go_on(engine, run)}"
        click.secho(said, err=True, fg="yellow")
        return False
    status = run.status
    if status.is_complete:
        return True
    if timeout is not None and engine.store.count_messages():
        _give_up(engine, run, f"not finished after {timeout:g} s")
        raise WorkflowTimeoutError(
            f"workflow {run.id} is {status} after {timeout:g} s{_how_to_go_on(engine, run)}"
        )
    waits = {
        WorkflowStatus.PAUSED: "is paused",
        WorkflowStatus.BUFFERED: "waits for a free slot of its configuration",
    }.get(status, "waits for a signal")
    click.secho(f"Workflow {run.id} {waits}{_how_to_go_on(engine, run)}", err=True, fg="yellow")
    return True


def _how_to_go_on(engine: Stabilize, run: WorkflowRun) -> str:
    if engine.store.database.url.database in (None, "", ":memory:"):
        return "; it was kept in memory, name a --database-url to be able to go on with it"
    return f"; `run FILE --continue {run.id}` goes on with it"


def _give_up(engine: Stabilize, run: WorkflowRun, reason: str) -> None:
    """Stop the tasks of a workflow that nobody can go on with; one in a database stays as it is."""
    if "kept in memory" in _how_to_go_on(engine, run) and not run.ready():
        run.cancel(user="command line", reason=reason, force=True)
        engine.processor.drain(_LAST_SECONDS)
        if run.ready():
            return
    # A task that does not stop would keep this process, and the lease on it lets another process take it over.
    sys.stdout.flush()
    click.secho(f"Error: {reason}{_how_to_go_on(engine, run)}", err=True, fg="red")
    os._exit(1)
