"""``validate`` and ``graph``, and what workflow files bring with them: a workflow, and in Python also tasks."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import click

from stabilize_celery.cli.base import EngineCommand, engine_of_app, open_engine
from stabilize_celery.cli.ids import find_run
from stabilize_celery.cli.output import print_json
from stabilize_celery.dag.render import to_dot, to_mermaid
from stabilize_celery.engine import Stabilize
from stabilize_celery.errors import WorkflowFileError
from stabilize_celery.loader import WorkflowFile, read_workflow_file
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.stages.builder import StageDefinitionBuilder
from stabilize_celery.tasks.interface import Task

_SUFFIXES = (".py", ".yaml", ".yml", ".json")


def read_file(path: str) -> WorkflowFile:
    """A workflow file; what a Python file prints while it is read does not mix with what the command prints.

    Raises:
        WorkflowFileError: whatever is wrong with it.
    """
    with contextlib.redirect_stdout(sys.stderr):
        return read_workflow_file(path)


def own_engine(file: WorkflowFile) -> Stabilize | None:
    """The engine a Python file defines as ``stabilize``.

    Raises:
        WorkflowFileError: that name means something else in the file.
    """
    found = getattr(file.module, "stabilize", None)
    if found is None or isinstance(found, Stabilize):
        return found
    if isinstance(found, type(sys)):
        # `import stabilize...` of another package is no engine.
        return None
    raise WorkflowFileError(
        f"{file.path}: 'stabilize' is of type {type(found).__name__}; it must be a Stabilize"
    )


def bring_tasks(file: WorkflowFile, engine: Stabilize) -> bool:
    """Register what a Python file defines in ``tasks`` (name -> function or Task) and ``builders``.

    Returns:
        Whether the file brings anything, so that what it does not bring is missing.

    Raises:
        WorkflowFileError: they have another form.
    """
    tasks, builders = getattr(file.module, "tasks", None), getattr(file.module, "builders", None)
    for name, source in _mapping(file, tasks).items():
        engine.registry.register(name, source)
    for builder in builders or ():
        if not isinstance(builder, StageDefinitionBuilder):
            raise WorkflowFileError(
                f"{file.path}: 'builders' holds {builder!r}, which is no StageDefinitionBuilder"
            )
        engine.register_builder(builder)
    return own_engine(file) is not None or tasks is not None or builders is not None


def _mapping(file: WorkflowFile, tasks: Any) -> dict[str, Any]:
    if tasks is None:
        return {}
    if not isinstance(tasks, dict):
        kind = type(tasks).__name__
        raise WorkflowFileError(f"{file.path}: 'tasks' is of type {kind}; it must be a dict of name -> task")
    for name, source in tasks.items():
        if not isinstance(name, str) or not name or not (callable(source) or isinstance(source, Task)):
            raise WorkflowFileError(
                f"{file.path}: 'tasks' says {name!r}: {source!r}; it must be name -> task"
            )
    return tasks


def unknown_types(workflow: Workflow, engine: Stabilize) -> list[str]:
    """What is said of each stage with a task type that nobody registered."""
    return [
        f"stage {stage.ref_id}: no task type {task.implementing_class!r} is registered"
        f"{engine.registry.suggest(task.implementing_class)}"
        for stage in workflow.stages
        for task in stage.tasks
        if not engine.registry.knows(task.implementing_class)
    ]


@click.command("validate", cls=EngineCommand, short_help="Check a workflow file.")
@click.argument("file")
@click.pass_context
def validate_command(ctx: click.Context, file: str, as_json: bool) -> None:
    """Check a workflow file; with -A also that the app knows its task types."""
    engine = engine_of_app(ctx)
    try:
        read = read_file(file)
        known = engine or own_engine(read) or Stabilize()
        brings = bring_tasks(read, known)
    except WorkflowFileError as error:
        if as_json:
            print_json({"file": file, "valid": False, "problems": str(error).splitlines()})
            ctx.exit(1)
        raise
    workflow = read.workflow
    unknown = unknown_types(workflow, known)
    valid = not (unknown and (brings or engine is not None))
    if as_json:
        told = {"application": workflow.application, "name": workflow.name, "stages": len(workflow.stages)}
        print_json({"file": file, "valid": valid, "problems": unknown, **told})
    else:
        for problem in unknown:
            hint = "" if not valid else " here; name the app that knows it with -A"
            click.secho(f"{file}: {problem}{hint}", err=True, fg="yellow" if valid else "red")
        if valid:
            count = f"{len(workflow.stages):,} stage{'s' * (len(workflow.stages) != 1)}"
            click.echo(f"{file}: {workflow.application}/{workflow.name}, {count}, can be started")
    ctx.exit(0 if valid else 1)


@click.command("graph", cls=EngineCommand, short_help="Draw a workflow as Mermaid or DOT.")
@click.argument("what", metavar="ID|FILE")
@click.option(
    "style", "--format", type=click.Choice(["mermaid", "dot"]), default="mermaid", show_default=True
)
@click.pass_context
def graph_command(ctx: click.Context, what: str, style: str, as_json: bool) -> None:
    """Draw a workflow as Mermaid or DOT text: one that was started, with its statuses, or one in a file."""
    path = Path(what)
    if path.suffix.lower() in _SUFFIXES or path.exists():
        workflow = read_file(what).workflow
    else:
        workflow = find_run(open_engine(ctx), what).workflow()
    text = to_mermaid(workflow) if style == "mermaid" else to_dot(workflow)
    if as_json:
        print_json({"format": style, "graph": text})
    else:
        click.echo(text, nl=False)
