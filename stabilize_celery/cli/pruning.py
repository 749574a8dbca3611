"""``prune``: delete what ended long ago."""

from __future__ import annotations

import re
from datetime import timedelta

import click

from stabilize_celery.cli.base import EngineCommand, open_engine
from stabilize_celery.cli.output import print_json
from stabilize_celery.cli.terminal import progress
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence.retention import ENDS

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _age(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,6})\s*([smhdw])", value.strip())
    if found is None:
        raise click.BadParameter(f"{value!r} is no age such as 12h, 30d or 8w")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def _statuses(ctx: click.Context, param: click.Parameter, value: str) -> list[WorkflowStatus]:
    names = [name.strip().upper() for name in value.split(",") if name.strip()]
    unknown = [name for name in names if name not in [status.name for status in ENDS]]
    if unknown or not names:
        raise click.BadParameter(
            f"{', '.join(unknown) or 'nothing'} is not how a workflow ends: "
            f"{', '.join(status.name for status in ENDS)}"
        )
    return [WorkflowStatus[name] for name in names]


@click.command("prune", cls=EngineCommand, short_help="Delete workflows that ended long ago.")
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
def prune_command(
    ctx: click.Context,
    older_than: timedelta | None,
    status: list[WorkflowStatus],
    batch: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete workflows that ended long ago, with their history and their dead letters.

    Never one that has not ended, or with which something alive has to do; workers may run meanwhile.
    """
    engine = open_engine(ctx)
    if older_than is None and engine.settings.retention is None:
        raise click.UsageError("say how old with --older-than, or set stabilize_retention")
    with progress("workflows") as show:
        done = engine.prune(
            older_than,
            statuses=status,
            batch=batch,
            dry_run=dry_run,
            on_progress=lambda so_far: show(so_far.total),
        )
    if as_json:
        print_json(done.to_dict())
        return
    verb = "would be deleted" if dry_run else "were deleted"
    each = ", ".join(f"{number:,} {status}" for status, number in sorted(done.workflows.items(), key=str))
    click.echo(
        f"{done.total:,} workflows{f' ({each})' if each else ''} and {done.dead_letters:,} dead letters {verb}"
    )
