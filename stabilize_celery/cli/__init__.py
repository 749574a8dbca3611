"""The command line: ``celery -A app stabilize COMMAND`` and ``stabilize-celery COMMAND`` are the same commands.

Celery imports this module for each of its own commands, so what a command needs is imported when it is called.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import click

#: module of this package -> its commands, in the order in which the help lists them
_MODULES = {
    "run": ("run", "start", "validate", "graph", "schema"),
    "inspect": ("list", "show", "watch"),
    "control": (
        "pause",
        "resume",
        "cancel",
        "cancel-stage",
        "skip",
        "restart",
        "signal",
        "approve",
        "reject",
    ),
    "operate": ("migrate", "audit", "rebuild", "dead-letters", "prune", "flower", "doctor"),
}
_COMMANDS = {name: module for module, names in _MODULES.items() for name in names}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands of this package, then those that other distributions offer by entry points."""
        offered = {entry.name for entry in entry_points(group="stabilize_celery.commands")}
        return [*_COMMANDS, *sorted(offered - _COMMANDS.keys())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return _offered(cmd_name) if cmd_name in self.list_commands(ctx) else None
        module = import_module(f"stabilize_celery.cli.{_COMMANDS[cmd_name]}")
        command: click.Command | None = module.commands.get_command(ctx, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            from stabilize_celery.suggestions import did_you_mean

            ctx.fail(f"there is no command {args[0]!r}{did_you_mean(args[0], known)}")
        return super().resolve_command(ctx, args)


def _offered(name: str) -> click.Command:
    from stabilize_celery.errors import ConfigurationError
    from stabilize_celery.plugins import command

    try:
        found = command(name)
    except ConfigurationError as error:
        raise click.ClickException(str(error)) from error
    if not isinstance(found, click.Command):
        raise click.ClickException(f"the command {name} is a {type(found).__name__}, and no click.Command")
    return found


@click.group(cls=_Commands, no_args_is_help=True)
def stabilize(**_options: Any) -> None:
    """Durable workflows: start them, watch them, control them."""


@click.group(cls=_Commands, no_args_is_help=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-A", "--app", metavar="MODULE[:APP]", help="The Celery app whose workers do the work.")
@click.option(
    "--database-url",
    metavar="URL",
    envvar="STABILIZE_DATABASE_URL",
    help="The database that holds the workflows, where there is no app to ask.",
)
@click.version_option(package_name="stabilize-celery", message="%(prog)s %(version)s")
@click.pass_context
def main(ctx: click.Context, app: str | None, database_url: str | None) -> None:
    """Durable workflows: run them, watch them, control them.

    Without -A and --database-url, `run` keeps its workflow in memory.
    """
    if app is not None and ctx.get_parameter_source("database_url") is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("give either -A or --database-url: an app knows its database")
