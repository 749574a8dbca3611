"""``migrate``: the tables of the database, in the version this release needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from stabilize_celery.cli.base import EngineCommand, open_engine
from stabilize_celery.cli.output import print_json

if TYPE_CHECKING:
    from stabilize_celery.persistence.migrate import Migration
    from stabilize_celery.persistence.phases import Phase, Step


@click.command("migrate", cls=EngineCommand, short_help="Make or update the tables.")
@click.option("--sql", is_flag=True, help="Change nothing; print the statements for somebody else to run.")
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if there is something to do.")
@click.option(
    "--before-deploy",
    is_flag=True,
    help="Only what workers of the release before can live with: while they run, before new ones start.",
)
@click.option("--after-deploy", is_flag=True, help="Only what is left, when no older worker runs any more.")
@click.pass_context
def migrate_command(
    ctx: click.Context, sql: bool, check: bool, before_deploy: bool, after_deploy: bool, as_json: bool
) -> None:
    """Make the tables, or bring them to the version this release needs.

    Without --before-deploy and --after-deploy everything is done at once, for which all workers have to be stopped
    unless --check names no step "after deploy".
    """
    from stabilize_celery.persistence.migrate import pending, upgrade

    if sql and check:
        raise click.UsageError("--sql and --check exclude each other")
    if before_deploy and after_deploy:
        raise click.UsageError(
            "--before-deploy and --after-deploy exclude each other; without them all is done"
        )
    phase: Phase | None = "expand" if before_deploy else "contract" if after_deploy else None
    database = open_engine(ctx, check=False).store.database
    done = pending(database, phase) if check else upgrade(database, sql=sql, phase=phase)
    if as_json:
        shape = _shape(done, changed=bool(done.steps) and not (sql or check))
        print_json({**shape, "sql": done.sql} if sql else shape)
    elif sql:
        click.echo(done.sql or f"-- {database.name} is of version {done.after} already", nl=not done.sql)
    else:
        _print(database.name, done, check)
    if check and done.steps:
        ctx.exit(1)


def _shape(done: Migration, changed: bool) -> dict[str, Any]:
    return {
        "before": done.before,
        "after": done.after,
        "steps": [_step(step) for step in done.steps],
        "left": [_step(step) for step in done.left],
        "changed": changed,
    }


def _step(step: Step) -> dict[str, str]:
    return {"revision": step.revision, "title": step.title, "phase": step.phase}


def _print(name: str, done: Migration, check: bool) -> None:
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
