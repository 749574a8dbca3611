"""``run``, ``start``, ``validate``, ``graph``, ``schema``: from a file to a workflow that runs."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from stabilize_celery.cli import base, output
from stabilize_celery.cli.inspect import finish, follow
from stabilize_celery.cli.tree import LiveTree
from stabilize_celery.dag.render import to_dot, to_mermaid
from stabilize_celery.engine import Stabilize
from stabilize_celery.errors import ConfigurationError, WorkflowFileError, WorkflowTimeoutError
from stabilize_celery.files import WorkflowFile, read_workflow_file, workflow_schema
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Trigger, Workflow
from stabilize_celery.run import WorkflowRun
from stabilize_celery.stages.builder import StageDefinitionBuilder
from stabilize_celery.tasks.interface import Task
from stabilize_celery.worker import attempt

_SUFFIXES = (".py", ".yaml", ".yml", ".json")
#: How long tasks have to stop when a workflow in memory is given up.
_LAST_SECONDS = 5.0

commands = base.Commands()
_context = click.option(
    "--context",
    callback=base.json_object,
    default="{}",
    metavar="JSON",
    help="Merged into the workflow's context.",
)
_dedup_key = click.option("--dedup-key", metavar="KEY", help="Start it only once per application and key.")


# ---------------------------------------------------------------------------------------------- workflow files


def _read(path: str) -> WorkflowFile:
    """A workflow file; what a Python file prints while it is read does not mix with what the command prints."""
    with contextlib.redirect_stdout(sys.stderr):
        return read_workflow_file(path)


def _own_engine(file: WorkflowFile) -> Stabilize | None:
    """The engine a Python file defines as ``stabilize``; a module of that name is none.

    Raises:
        WorkflowFileError: that name means something else in the file.
    """
    found = getattr(file.module, "stabilize", None)
    if found is None or isinstance(found, ModuleType):
        return None
    if isinstance(found, Stabilize):
        return found
    raise WorkflowFileError(
        f"{file.path}: 'stabilize' is of type {type(found).__name__}; it must be a Stabilize"
    )


def _bring_tasks(file: WorkflowFile, engine: Stabilize) -> bool:
    """Register what a Python file defines in ``tasks`` (name -> function or Task) and ``builders``.

    Returns:
        Whether the file brings anything, so that what it does not bring is missing.

    Raises:
        WorkflowFileError: they have another form.
    """
    tasks, builders = getattr(file.module, "tasks", None), getattr(file.module, "builders", None)
    if tasks is not None and not isinstance(tasks, dict):
        kind = type(tasks).__name__
        raise WorkflowFileError(f"{file.path}: 'tasks' is of type {kind}; it must be a dict of name -> task")
    for name, source in (tasks or {}).items():
        if not isinstance(name, str) or not name or not (callable(source) or isinstance(source, Task)):
            raise WorkflowFileError(
                f"{file.path}: 'tasks' says {name!r}: {source!r}; it must be name -> task"
            )
        engine.registry.register(name, source, replace=True)
    for builder in builders or ():
        if not isinstance(builder, StageDefinitionBuilder):
            raise WorkflowFileError(
                f"{file.path}: 'builders' holds {builder!r}, which is no StageDefinitionBuilder"
            )
        engine.register_builder(builder)
    return _own_engine(file) is not None or tasks is not None or builders is not None


def _unknown_types(file: WorkflowFile, engine: Stabilize) -> list[str]:
    """One message, with its place in the file, for each task of a type that is not registered."""
    return [
        str(
            file.type_error(
                stage.ref_id,
                index,
                f"stage {stage.ref_id}: no task type {task.implementing_class!r} is registered"
                f"{engine.registry.suggest(task.implementing_class)}",
            )
        )
        for stage in file.workflow.stages
        for index, task in enumerate(stage.tasks)
        if not engine.registry.knows(task.implementing_class)
    ]


@commands.command("validate")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.pass_context
def _validate(ctx: click.Context, files: tuple[str, ...], as_json: bool) -> None:
    """Check workflow files.

    With -A also that the app knows their task types.  Exit code 0 if all of them can be started, 1 if not.  With
    --json one object for one file, a list for several.
    """
    engine = base.engine_of_app(ctx)
    checked = [_check(file, engine) for file in files]
    if as_json:
        output.print_json(checked if len(files) > 1 else checked[0])
    else:
        for each in checked:
            _print_check(each)
    ctx.exit(0 if all(each["valid"] for each in checked) else 1)


def _check(path: str, engine: Stabilize | None) -> dict[str, Any]:
    """What ``validate`` says of a file, as JSON."""
    try:
        file = _read(path)
        known = engine or _own_engine(file) or Stabilize()
        brings = _bring_tasks(file, known)
    except WorkflowFileError as error:
        return {"file": path, "valid": False, "problems": str(error).splitlines()}
    problems, workflow = _unknown_types(file, known), file.workflow
    return {
        "file": path,
        "valid": not (problems and (brings or engine is not None)),
        "problems": problems,
        "application": workflow.application,
        "name": workflow.name,
        "stages": len(workflow.stages),
    }


def _print_check(checked: dict[str, Any]) -> None:
    valid = checked["valid"]
    for problem in checked["problems"]:
        hint = " here; name the app that knows it with -A" if valid else ""
        click.secho(output.harmless(f"{problem}{hint}"), err=True, fg="yellow" if valid else "red")
    if valid:
        name = f"{checked['application']}/{checked['name']}"
        click.echo(
            output.harmless(
                f"{checked['file']}: {name}, {output.stages_text(checked['stages'])}, can be started"
            )
        )


@commands.command("schema", cls=click.Command)
def _schema() -> None:
    """Print the JSON Schema of workflow files.

    Of those in YAML and JSON, for editors and other programs.
    """
    click.echo(json.dumps(workflow_schema(), indent=2, ensure_ascii=False))


@commands.command("graph")
@click.argument("what", metavar="ID|FILE")
@click.option(
    "style", "--format", type=click.Choice(["mermaid", "dot"]), default="mermaid", show_default=True
)
@click.pass_context
def _graph(ctx: click.Context, what: str, style: str, as_json: bool) -> None:
    """Draw a workflow as Mermaid or DOT text.

    One that was started is drawn with its statuses; or name a file.
    """
    path = Path(what)
    if path.suffix.lower() in _SUFFIXES or path.exists():
        workflow = _read(what).workflow
    else:
        workflow = base.find_run(base.open_engine(ctx), what).workflow()
    text = to_mermaid(workflow) if style == "mermaid" else to_dot(workflow)
    if as_json:
        output.print_json({"format": style, "graph": text})
    else:
        click.echo(output.harmless(text), nl=False)


# ---------------------------------------------------------------------------------------------- start, run


def _prepared(file: WorkflowFile, user: str, context: dict[str, Any]) -> Workflow:
    workflow = file.workflow
    workflow.context.update(context)
    if workflow.trigger.user == Trigger().user:
        workflow.trigger.user = user
    return workflow


@commands.command("start")
@click.argument("file")
@_context
@_dedup_key
@base.user_option
@click.pass_context
def _start(
    ctx: click.Context, file: str, context: dict[str, Any], dedup_key: str | None, user: str, as_json: bool
) -> None:
    """Start the workflow of a file and print its id.

    FILE is Python, YAML or JSON; workers run its workflow.
    """
    workflow = _prepared(_read(file), user, context)
    engine = base.open_engine(ctx, make_tables=True)
    run = engine.start(workflow, dedup_key=dedup_key)
    if as_json:
        output.print_json({"id": run.id, "status": str(run.status), "new": run.id == workflow.id})
    else:
        click.echo(run.id)


@commands.command("run")
@click.argument("file")
@base.seconds("--timeout", help="Give up after that time.")
@click.option("--concurrency", type=click.IntRange(1), default=4, show_default=True, help="Tasks at once.")
@click.option(
    "--continue",
    "continued",
    metavar="ID",
    help="Go on with that workflow of the database, with FILE's tasks.",
)
@_context
@_dedup_key
@base.user_option
@click.pass_context
def _run(
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
    """Run the workflow of a file and show it.

    FILE is Python, YAML or JSON; exit code 0 only if the workflow SUCCEEDED.  It runs in this process, and in memory
    unless a database is named; with -A the app's workers run it.  A Python file brings its tasks as
    `tasks = {"name": function}`, or on an engine of its own called `stabilize`.
    """
    engine = base.engine_of_app(ctx)
    read = _read(file)
    workflow = _prepared(read, user, context)
    on_workers = engine is not None
    engine = engine or _embedded(read, ctx.find_root().params.get("database_url"), concurrency)
    ctx.call_on_close(engine.close)
    base.check_tables(engine, make_tables=not on_workers)
    # What tasks print must not get between the lines of the JSON document.
    apart = as_json and not on_workers
    with contextlib.redirect_stdout(sys.stderr) if apart else contextlib.nullcontext():
        if not (on_workers or continued):
            _refuse_other_work(engine)
        run = base.find_run(engine, continued) if continued else engine.start(workflow, dedup_key=dedup_key)
        if not on_workers and not _run_here(engine, run, timeout, as_json):
            ctx.exit(1)
    if on_workers:
        follow(ctx, run, timeout, as_json)
    finish(ctx, run, as_json)


def _embedded(read: WorkflowFile, url: str | None, concurrency: int) -> Stabilize:
    """An engine in this process with the tasks of a file."""
    own = _own_engine(read)
    if own is not None and own.app is None and own._settings is not None and url is None:
        _bring_tasks(read, own)
        return own
    engine = Stabilize.embedded(url or "sqlite://", concurrency=concurrency, create_tables=False)
    if own is not None:
        engine.registry, engine.builders = own.registry, own.builders
    _bring_tasks(read, engine)
    return engine


def _refuse_other_work(engine: Stabilize) -> None:
    # An embedded engine handles everything that falls due in its database.
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
    logging.getLogger(attempt.__name__).addHandler(logging.NullHandler())
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


def _in_memory(engine: Stabilize) -> bool:
    return engine.store.database.url.database in (None, "", ":memory:")


def _how_to_go_on(engine: Stabilize, run: WorkflowRun) -> str:
    if _in_memory(engine):
        return "; it was kept in memory, name a --database-url to be able to go on with it"
    return f"; `run FILE --continue {run.id}` goes on with it"


def _give_up(engine: Stabilize, run: WorkflowRun, reason: str) -> None:
    """Stop the tasks of a workflow that ends with this process; one in a database stays as it is."""
    if _in_memory(engine) and not run.ready():
        run.cancel(user="command line", reason=reason, force=True)
        engine.processor.drain(_LAST_SECONDS)
        if run.ready():
            return
    # A task that does not stop would keep this process, and the lease on it lets another process take it over.
    sys.stdout.flush()
    click.secho(f"Error: {reason}{_how_to_go_on(engine, run)}", err=True, fg="red")
    os._exit(1)
