"""``dead-letters``: messages that failed too often and were set aside."""

from __future__ import annotations

from typing import Any

import click

from stabilize_celery.cli.base import EngineCommand, has_workers, open_engine, user_option
from stabilize_celery.cli.columns import print_columns
from stabilize_celery.cli.discretion import printable, shown
from stabilize_celery.cli.ids import find_run
from stabilize_celery.cli.output import print_json
from stabilize_celery.cli.shapes import time_of
from stabilize_celery.messages import MESSAGE_TYPES


@click.group("dead-letters", short_help="List messages that failed too often; try them again, or drop them.")
def dead_letters_command() -> None:
    """Messages that failed too often and were set aside; their workflows ended TERMINAL."""


@dead_letters_command.command("list", cls=EngineCommand)
@click.option("--workflow", metavar="ID", help="Only letters about this workflow.")
@click.option(
    "--type",
    "kind",
    type=click.Choice(sorted(MESSAGE_TYPES), case_sensitive=False),
    metavar="TYPE",
    help="Only messages of this type, such as CompleteStage.",
)
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many."
)
@click.pass_context
def list_letters_command(
    ctx: click.Context, workflow: str | None, kind: str | None, limit: int, as_json: bool
) -> None:
    """List dead letters, the latest first."""
    engine = open_engine(ctx)
    workflow_id = None if workflow is None else find_run(engine, workflow).id
    found = engine.dead_letters(workflow_id=workflow_id, type=kind, limit=limit)
    if as_json:
        print_json([_shape(letter) for letter in found])
    elif found:
        print_columns(
            ("id", "type", "about", "workflow", "died", "error"),
            [
                (
                    letter["id"],
                    letter["type"],
                    letter["label"],
                    letter["workflow_id"] or "",
                    letter["died_at"].astimezone().strftime("%Y-%m-%d %H:%M:%S"),
                    _told(letter),
                )
                for letter in found
            ],
        )
    else:
        click.echo("No dead letters.", err=True)


@dead_letters_command.command("show", cls=EngineCommand)
@click.argument("id")
@click.pass_context
def show_letter_command(ctx: click.Context, id: str, as_json: bool) -> None:
    """Show a dead letter: what it was about, and where its error came from."""
    letter = open_engine(ctx).dead_letter(_id(id))
    if as_json:
        print_json({**_shape(letter), "row": letter["row"], "error_details": letter["error"]})
        return
    row = letter["row"]
    click.echo(printable(f"{letter['type']} {letter['id']}  {letter['label']}"))
    for name in ("workflow_id", "stage_id", "task_id", "generation", "payload", "queue", "created_at"):
        if row.get(name) not in (None, {}):
            click.echo(f"  {name:<12}{printable(row[name])}")
    click.echo(f"  {'attempts':<12}{letter['attempts']}")
    click.echo(f"  {'died at':<12}{letter['died_at'].astimezone().isoformat(sep=' ', timespec='seconds')}")
    click.echo(printable(letter["error"].get("details", {}).get("traceback") or _told(letter)))


@dead_letters_command.command("retry", cls=EngineCommand)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@user_option
@click.pass_context
def retry_letter_command(ctx: click.Context, ids: tuple[str, ...], user: str, as_json: bool) -> None:
    """Try dead letters again, when what made them fail is mended.

    The workflow that ended because of a letter goes on: stages that were at work then begin anew.
    """
    engine = open_engine(ctx)
    done = []
    for letter_id in map(_id, ids):
        told = engine.retry_dead_letter(letter_id, user=user)
        done.append({"id": letter_id, "command": "retry", "done": told})
        if not as_json:
            click.echo(f"{letter_id}: {told}")
    if as_json:
        print_json(done)
    if not has_workers(engine):
        click.echo("Nobody works on this database all the time: `run FILE --continue ID` goes on.", err=True)


@dead_letters_command.command("drop", cls=EngineCommand)
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@user_option
@click.pass_context
def drop_letter_command(ctx: click.Context, ids: tuple[str, ...], user: str, as_json: bool) -> None:
    """Forget dead letters; their workflows stay as they are."""
    engine = open_engine(ctx)
    done = []
    for letter_id in map(_id, ids):
        engine.drop_dead_letter(letter_id, user=user)
        done.append({"id": letter_id, "command": "drop", "done": "dropped"})
        if not as_json:
            click.echo(f"{letter_id}: dropped")
    if as_json:
        print_json(done)


def _id(given: str) -> str:
    return given.strip().upper()


def _told(letter: dict[str, Any]) -> str:
    details = letter["error"].get("details", {})
    return str(shown(f"{details.get('type', '')}: {details.get('error', '')}".removeprefix(": ")))


def _shape(letter: dict[str, Any]) -> dict[str, Any]:
    names = ("id", "type", "label", "workflow_id", "stage_id", "task_id", "attempts")
    return {
        **{name: letter[name] for name in names},
        "died_at": time_of(letter["died_at"]),
        "error": _told(letter),
    }
