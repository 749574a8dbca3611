"""``migrate``: the tables of the database, in the version this release needs."""

from __future__ import annotations

import click

from stabilize_celery.cli.base import EngineCommand, open_engine
from stabilize_celery.cli.output import print_json


@click.command("migrate", cls=EngineCommand, short_help="Make or update the tables.")
@click.option("--sql", is_flag=True, help="Change nothing; print the statements for somebody else to run.")
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 if there is something to do.")
@click.pass_context
def migrate_command(ctx: click.Context, sql: bool, check: bool, as_json: bool) -> None:
    """Make the tables, or bring them to the version this release needs."""
    from stabilize_celery.persistence.migrate import pending, upgrade

    if sql and check:
        raise click.UsageError("--sql and --check exclude each other")
    database = open_engine(ctx, check=False).store.database
    done = pending(database) if check else upgrade(database, sql=sql)
    if as_json:
        changed = bool(done.steps) and not (sql or check)
        shape = {"before": done.before, "after": done.after, "steps": list(done.steps), "changed": changed}
        print_json({**shape, "sql": done.sql} if sql else shape)
    elif sql:
        click.echo(done.sql or f"-- {database.name} is of version {done.after} already", nl=not done.sql)
    elif not done.steps:
        click.echo(f"{database.name}: version {done.after}, nothing to do")
    else:
        came_from = f"version {done.before}" if done.before else "no tables"
        click.echo(
            f"{database.name}: from {came_from} to version {done.after}{' is to be done' if check else ''}"
        )
        for step in done.steps:
            click.echo(f"  {step}")
    if check and done.steps:
        ctx.exit(1)
