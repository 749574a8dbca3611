"""``migrate``, ``audit``, ``rebuild``, ``dead-letters``, ``prune``, ``doctor``, ``flower``: for operators."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import click
from rich.text import Text

from stabilize_celery.cli import base, output
from stabilize_celery.cli.inspect import age_of
from stabilize_celery.engine import Stabilize
from stabilize_celery.maintenance import OVERDUE
from stabilize_celery.messages import MESSAGE_TYPES
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence.retention import ENDS
from stabilize_celery.recovery.findings import Audit, Problem

if TYPE_CHECKING:
    from stabilize_celery.persistence.migrate import Migration
    from stabilize_celery.persistence.phases import Phase

commands = base.Commands()


# ---------------------------------------------------------------------------------------------- migrate


@commands.command("migrate")
@click.option(
    "--sql", is_flag=True, help="Change nothing; print the statements for a database administrator."
)
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if there is something to do.")
@click.option(
    "--before-deploy",
    is_flag=True,
    help="Only what workers of the release before can live with: while they run, before new ones start.",
)
@click.option("--after-deploy", is_flag=True, help="Only what is left, when no older worker runs any more.")
@click.pass_context
def _migrate(
    ctx: click.Context, sql: bool, check: bool, before_deploy: bool, after_deploy: bool, as_json: bool
) -> None:
    """Make or update the tables.

    They get the version this release needs.  Without --before-deploy and --after-deploy everything is done at once,
    for which all workers have to be stopped unless --check names no step "after deploy".
    """
    from stabilize_celery.persistence.migrate import pending, upgrade

    if sql and check:
        raise click.UsageError("--sql and --check exclude each other")
    if before_deploy and after_deploy:
        raise click.UsageError(
            "--before-deploy and --after-deploy exclude each other; without them all is done"
        )
    phase: Phase | None = "expand" if before_deploy else "contract" if after_deploy else None
    database = base.open_engine(ctx, check=False).store.database
    done = pending(database, phase) if check else upgrade(database, sql=sql, phase=phase)
    if as_json:
        shape = _migration_json(done) | {"changed": bool(done.steps) and not (sql or check)}
        output.print_json({**shape, "sql": done.sql} if sql else shape)
    elif sql:
        click.echo(done.sql or f"-- {database.name} is of version {done.after} already", nl=not done.sql)
    else:
        _print_migration(database.name, done, check)
    if check and done.steps:
        ctx.exit(1)


def _migration_json(done: Migration) -> dict[str, Any]:
    steps, left = (
        [{"revision": step.revision, "title": step.title, "phase": step.phase} for step in part]
        for part in (done.steps, done.left)
    )
    return {"before": done.before, "after": done.after, "steps": steps, "left": left}


def _print_migration(name: str, done: Migration, check: bool) -> None:
    if not done.steps:
        click.echo(f"{name}: version {done.after}, nothing to do")
    else:
        came_from = f"version {done.before}" if done.before else "no tables"
        click.echo(f"{name}: from {came_from} to version {done.after}{' is to be done' if check else ''}")
    for step in done.steps:
        click.echo(f"  {step}{'' if step.phase == 'expand' else ' (after deploy)'}")
    if done.left:
        click.echo("left for --after-deploy, when no older worker runs any more:")
    for step in done.left:
        click.echo(f"  {step}")


# ---------------------------------------------------------------------------------------------- audit, rebuild


@commands.command("audit")
@click.argument("id", required=False)
@click.option("--repair", is_flag=True, help="Mend what can be mended.")
@base.seconds("--overdue", default=OVERDUE, help="After how long a message that is not sent is a problem.")
@base.user_option
@click.pass_context
def _audit(
    ctx: click.Context, id: str | None, repair: bool, overdue: float, user: str, as_json: bool
) -> None:
    """Find workflows that nothing drives, and mend them.

    Looks at the workflow ID, or at all of them, and sees whether everything that has not ended is driven by something
    or waits for something; workers may run meanwhile.  Exit code 1 if something is wrong and was not repaired.
    """
    engine = base.open_engine(ctx)
    workflow_id = None if id is None else base.find_run(engine, id).id
    with output.progress("workflows") as show:
        found = engine.audit(
            workflow_id,
            repair=repair,
            user=user,
            overdue=overdue,
            on_progress=lambda so_far: show(so_far.workflows),
        )
    if as_json:
        output.print_json(found.to_dict())
    else:
        _print_audit(found, repair)
    if found.unrepaired:
        ctx.exit(1)


def _print_audit(found: Audit, repair: bool) -> None:
    def outcome(problem: Problem) -> str:
        if problem.repaired:
            return "yes"
        return "with --repair" if problem.remedy and not repair else problem.advice

    click.echo(f"{found.workflows:,} workflows have not ended")
    for cause, number in found.causes.most_common():
        click.echo(f"  {number:>8,}  {cause}")
    if not found.problems:
        click.echo("Nothing is wrong.")
        return
    output.print_table(
        ("workflow", "stage", "kind", "what is wrong", "repaired" if repair else "repair"),
        [
            (each.workflow_id or "", each.stage or "", each.kind, each.what, outcome(each))
            for each in found.problems
        ],
    )


@commands.command("rebuild")
@click.pass_context
def _rebuild(ctx: click.Context, as_json: bool) -> None:
    """Refill an empty broker from the database.

    Sends everything again that a worker could handle now: for a broker that was wiped or replaced.  Workers may run
    meanwhile: what is delivered twice is handled once.
    """
    engine = base.open_engine(ctx)
    if engine.app is None:
        raise click.UsageError("name the app whose broker is to be refilled with -A")
    with output.progress("messages") as show:
        done = engine.rebuild(lambda so_far: show(so_far.sent))
    if as_json:
        output.print_json({"sent": done.sent, "refused": done.refused})
    else:
        click.echo(f"{done.sent:,} messages were sent again")
    if done.refused:
        click.echo(f"{done.refused:,} were refused by the broker; relays try them again", err=True)
        ctx.exit(1)


# ---------------------------------------------------------------------------------------------- dead letters


@commands.group("dead-letters")
def _dead_letters() -> None:
    """List messages that failed too often; retry or drop them.

    They were set aside, and their workflows ended TERMINAL.
    """


@_dead_letters.command("list")
@click.option("--workflow", metavar="ID", help="Only dead letters about this workflow.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(sorted(MESSAGE_TYPES), case_sensitive=False),
    metavar="TYPE",
    help="Only messages of this type, such as CompleteStage.",
)
@base.limit_option
@click.pass_context
def _list_dead(ctx: click.Context, workflow: str | None, kind: str | None, limit: int, as_json: bool) -> None:
    """List dead letters, the latest first."""
    engine = base.open_engine(ctx)
    workflow_id = None if workflow is None else base.find_run(engine, workflow).id
    found = engine.dead_letters(workflow_id=workflow_id, type=kind, limit=limit)
    if as_json:
        output.print_json([_dead_json(dead) for dead in found])
    elif found:
        rows = [
            (
                dead["id"],
                dead["type"],
                dead["label"],
                dead["workflow_id"] or "",
                output.local_time(dead["died_at"]),
                _error(dead),
            )
            for dead in found
        ]
        output.print_table(("id", "type", "about", "workflow", "died", "error"), rows)
    else:
        click.echo("No dead letters.", err=True)


@_dead_letters.command("show")
@click.argument("id")
@click.pass_context
def _show_dead(ctx: click.Context, id: str, as_json: bool) -> None:
    """Show what a dead letter was about, and its error."""
    dead = base.open_engine(ctx).dead_letter(_id(id))
    row = dead["row"]
    if as_json:
        output.print_json(_dead_json(dead) | {"row": row, "error_details": dead["error"]})
        return
    click.echo(output.printable(f"{dead['type']} {dead['id']}  {dead['label']}"))
    for name in ("workflow_id", "stage_id", "task_id", "generation", "payload", "queue", "created_at"):
        if row.get(name) not in (None, {}):
            click.echo(f"  {name:<12}{output.printable(row[name])}")
    click.echo(f"  {'attempts':<12}{dead['attempts']}")
    click.echo(f"  {'died at':<12}{output.local_time(dead['died_at'])}")
    click.echo(output.printable(dead["error"].get("details", {}).get("traceback") or _error(dead)))


def _dead_verb(name: str, do: Callable[[Stabilize, str, str], str], help: str) -> None:
    """Add a command that does something to dead letters."""

    @_dead_letters.command(name, help=help)
    @click.argument("ids", nargs=-1, required=True, metavar="ID...")
    @base.user_option
    @click.pass_context
    def command(ctx: click.Context, ids: tuple[str, ...], user: str, as_json: bool) -> None:
        engine = base.open_engine(ctx)
        done = []
        for dead_id in map(_id, ids):
            done.append({"id": dead_id, "command": name, "done": do(engine, dead_id, user)})
            if not as_json:
                click.echo(f"{dead_id}: {done[-1]['done']}")
        if as_json:
            output.print_json(done)
        if name == "retry":
            base.hint_without_workers(engine)


def _drop(engine: Stabilize, dead_id: str, user: str) -> str:
    engine.drop_dead_letter(dead_id, user=user)
    return "dropped"


_dead_verb(
    "retry",
    lambda engine, dead_id, user: engine.retry_dead_letter(dead_id, user=user),
    "Try dead letters again, when what made them fail is mended.\n\n"
    "The workflow that ended because of one goes on: stages that were at work then start again.",
)
_dead_verb("drop", _drop, "Forget dead letters; their workflows stay as they are.")


def _id(given: str) -> str:
    return given.strip().upper()


def _error(dead: dict[str, Any]) -> str:
    details = dead["error"].get("details", {})
    return str(output.shown(f"{details.get('type', '')}: {details.get('error', '')}".removeprefix(": ")))


def _dead_json(dead: dict[str, Any]) -> dict[str, Any]:
    names = ("id", "type", "label", "workflow_id", "stage_id", "task_id", "attempts")
    written = {name: dead[name] for name in names}
    return {**written, "died_at": dead["died_at"].isoformat(), "error": _error(dead)}


# ---------------------------------------------------------------------------------------------- prune


def _age(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    if value is None:
        return None
    if (age := age_of(value)) is None:
        raise click.BadParameter(f"{value!r} is no age such as 12h, 30d or 8w")
    return age


def _statuses(ctx: click.Context, param: click.Parameter, value: str) -> list[WorkflowStatus]:
    names = [name.strip().upper() for name in value.split(",") if name.strip()]
    ends = [status.name for status in ENDS]
    unknown = [name for name in names if name not in ends]
    if unknown or not names:
        raise click.BadParameter(
            f"{', '.join(unknown) or 'nothing'} is not how a workflow ends: {', '.join(ends)}"
        )
    return [WorkflowStatus[name] for name in names]


@commands.command("prune")
@click.option(
    "--older-than",
    callback=_age,
    metavar="AGE",
    help="Ended so long ago, such as 30d; or stabilize_retention.",
)
@click.option(
    "--status",
    callback=_statuses,
    default=",".join(status.name for status in ENDS),
    show_default=True,
    metavar="STATUS,...",
    help="How they ended.",
)
@click.option("--batch", type=click.IntRange(1), default=100, show_default=True, help="Deleted at once.")
@click.option("--dry-run", is_flag=True, help="Only count.")
@click.pass_context
def _prune(
    ctx: click.Context,
    older_than: timedelta | None,
    status: list[WorkflowStatus],
    batch: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete workflows that ended long ago.

    With their history and their dead letters.  Never one that has not ended, or that something alive needs; workers
    may run meanwhile.
    """
    engine = base.open_engine(ctx)
    if older_than is None and engine.settings.retention is None:
        raise click.UsageError("say how old with --older-than, or set stabilize_retention")
    with output.progress("workflows") as show:
        done = engine.prune(
            older_than,
            statuses=status,
            batch=batch,
            dry_run=dry_run,
            on_progress=lambda so_far: show(so_far.total),
        )
    if as_json:
        output.print_json(done.to_dict())
        return
    verb = "would be deleted" if dry_run else "were deleted"
    each = ", ".join(f"{number:,} {status}" for status, number in sorted(done.workflows.items(), key=str))
    click.echo(
        f"{done.total:,} workflows{f' ({each})' if each else ''} and {done.dead_letters:,} dead letters {verb}"
    )


# ---------------------------------------------------------------------------------------------- doctor, flower


@commands.command("doctor")
@base.seconds("--timeout", default=2.0, above_0=True, help="How long broker and workers have to answer.")
@click.pass_context
def _doctor(ctx: click.Context, timeout: float, as_json: bool) -> None:
    """Check broker, database, workers and settings.

    Says what to change; exit code 1 if there are errors.
    """
    from stabilize_celery.plugins import command

    found = command("doctor")(base.open_engine(ctx, check=False), timeout)
    errors, warnings = (sum(finding.level == level for finding in found) for level in ("error", "warning"))
    if as_json:
        output.print_json({"healthy": not errors, "findings": [finding.to_dict() for finding in found]})
    else:
        _print_findings(found)
        click.echo(f"{errors} errors, {warnings} warnings")
    ctx.exit(1 if errors else 0)


def _print_findings(found: list[Any]) -> None:
    looks = {"ok": ("✔", "+", "green"), "warning": ("!", "!", "yellow"), "error": ("✖", "x", "red")}
    console = output.make_console()
    area = ""
    for finding in found:
        if finding.area != area:
            area = finding.area
            console.print(Text(area.capitalize(), style="bold"))
        symbol, plain, style = looks[finding.level.value]
        line = Text(f"  {plain if output.knows_only_ascii(console) else symbol} ", style=style)
        console.print(line.append(finding.what, style="default"), soft_wrap=True)
        for text, dim in ((finding.advice, ""), (finding.why, "dim")):
            if text:
                console.print(Text(f"      {text}", style=dim), soft_wrap=True)


@commands.command(
    "flower", cls=click.Command, context_settings={"ignore_unknown_options": True}, add_help_option=False
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[FLOWER OPTIONS]")
@click.pass_context
def _flower(ctx: click.Context, arguments: tuple[str, ...]) -> None:
    """Start Flower with the Workflows page.

    Takes what `celery flower` takes, and --stabilize_read_only.
    """
    from stabilize_celery.contrib.flower import install
    from stabilize_celery.errors import StabilizeError

    try:
        app = base.app_of(ctx)
        if app is None:
            raise click.UsageError("name the app with -A")
        install()
    except StabilizeError as error:
        raise click.ClickException(str(error)) from error
    from celery.bin.base import CLIContext
    from flower.command import flower

    if ctx.obj is None:
        ctx.obj = CLIContext(app=app, no_color=False, workdir=None)
    ctx.invoke(flower, tornado_argv=arguments)
