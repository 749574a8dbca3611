"""``validate`` and ``graph``, and what workflow files bring with them: a workflow, and in Python also tasks."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stabilize_celery.cli.base import EngineCommand, engine_of_app, open_engine
from stabilize_celery.cli.ids import find_run
from stabilize_celery.cli.output import print_json
from stabilize_celery.cli.terminal import harmless
from stabilize_celery.dag.render import to_dot, to_mermaid
from stabilize_celery.engine import Stabilize
from stabilize_celery.errors import WorkflowFileError
from stabilize_celery.files import WorkflowFile, read_workflow_file, workflow_schema
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
        engine.registry.register(name, source, replace=True)
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


def unknown_types(file: WorkflowFile, engine: Stabilize) -> list[WorkflowFileError]:
    """What is said of each stage with a task type that nobody registered, at its place."""
    return [
        file.error_of_stage(
            stage.ref_id,
            f"stage {stage.ref_id}: no task type {task.implementing_class!r} is registered"
            f"{engine.registry.suggest(task.implementing_class)}",
        )
        for stage in file.workflow.stages
        for task in stage.tasks
        if not engine.registry.knows(task.implementing_class)
    ]


@dataclass
class _Checked:
    """What is known of a file after it was checked."""

    file: str
    #: Each begins with ``file:line:column`` as far as these are known.
    problems: list[str]
    valid: bool = False
    workflow: Workflow | None = None

    def to_dict(self) -> dict[str, Any]:
        said: dict[str, Any] = {"file": self.file, "valid": self.valid, "problems": self.problems}
        if self.workflow is not None:
            told = self.workflow
            said |= {"application": told.application, "name": told.name, "stages": len(told.stages)}
        return said

    def show(self) -> None:
        for problem in self.problems:
            hint = "" if not self.valid else " here; name the app that knows it with -A"
            click.secho(harmless(f"{problem}{hint}"), err=True, fg="yellow" if self.valid else "red")
        if self.valid and self.workflow is not None:
            count = f"{len(self.workflow.stages):,} stage{'s' * (len(self.workflow.stages) != 1)}"
            name = f"{self.workflow.application}/{self.workflow.name}"
            click.echo(harmless(f"{self.file}: {name}, {count}, can be started"))


def _check(file: str, engine: Stabilize | None) -> _Checked:
    try:
        read = read_file(file)
        known = engine or own_engine(read) or Stabilize()
        brings = bring_tasks(read, known)
    except WorkflowFileError as error:
        return _Checked(file, str(error).splitlines())
    problems = [str(error) for error in unknown_types(read, known)]
    valid = not (problems and (brings or engine is not None))
    return _Checked(file, problems, valid, read.workflow)


@click.command("validate", cls=EngineCommand, short_help="Check workflow files.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.pass_context
def validate_command(ctx: click.Context, files: tuple[str, ...], as_json: bool) -> None:
    """Check workflow files; with -A also that the app knows their task types.

    Exit code 0 if all of them can be started, 1 if not. With --json one object for one file, a list for several.
    """
    engine = engine_of_app(ctx)
    checked = [_check(file, engine) for file in files]
    if as_json:
        shaped = [each.to_dict() for each in checked]
        print_json(shaped if len(files) > 1 else shaped[0])
    else:
        for each in checked:
            each.show()
    ctx.exit(0 if all(each.valid for each in checked) else 1)


@click.command("schema", short_help="Print the JSON Schema of workflow files.")
def schema_command() -> None:
    """Print the JSON Schema of workflow files in YAML and JSON, for editors and other programs."""
    click.echo(json.dumps(workflow_schema(), indent=2, ensure_ascii=False))


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
        click.echo(harmless(text), nl=False)
