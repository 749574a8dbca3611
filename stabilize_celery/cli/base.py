"""What every command has: options, the engine and the run it works on, and errors without tracebacks."""

from __future__ import annotations

import getpass
import importlib
import json
import math
import sys
import traceback as tracebacks
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from stabilize_celery.cli.output import escape_unencodable, hide, printable
from stabilize_celery.clock import MAX_SECONDS
from stabilize_celery.engine import Stabilize
from stabilize_celery.errors import (
    ConfigurationError,
    StabilizeError,
    WorkflowFileError,
    WorkflowNotFoundError,
)
from stabilize_celery.persistence.store import newest_ids
from stabilize_celery.run import WorkflowRun

if TYPE_CHECKING:
    from celery import Celery

#: In ``ctx.meta``: whether tracebacks are to be shown.
TRACEBACK = "stabilize_celery.traceback"
#: In seconds: this process has no broker to send to, so the relays of the workers are to find its messages at once.
_AT_ONCE = 0.001
_ID_LENGTH = 26
#: Shorter than that, the end of an id means too many workflows.
_SHORTEST_END = 6


class _Seconds(click.FloatRange):
    """A finite number of seconds, 0 or more; ``above_0`` leaves 0 out."""

    def __init__(self, *, above_0: bool = False) -> None:
        super().__init__(0, MAX_SECONDS, min_open=above_0)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return seconds


class EngineCommand(click.Command):
    """A command with ``--json`` and ``--traceback``, whose failure is one message on stderr and exit code 1."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["as_json", "--json"], is_flag=True, help="Print JSON."),
            click.Option(["--traceback"], is_flag=True, help="Show where an error comes from."),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """Call it; an exception ends the command with one message."""
        show_where = ctx.meta[TRACEBACK] = ctx.params.pop("traceback", False)
        escape_unencodable()
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception as error:
            if show_where:
                raise
            known = isinstance(error, StabilizeError)
            message = str(error) if known else f"{type(error).__name__}: {error} (--traceback shows where)"
            if not isinstance(error, WorkflowFileError):
                # Messages of drivers may have several lines; of a file each problem has one.
                message = " ".join(message.split())
            click.secho(f"Error: {printable(message)}", err=True, fg="red")
            raise click.exceptions.Exit(1) from error


class Commands(click.Group):
    """The commands of one module, each an :class:`EngineCommand`."""

    command_class = EngineCommand
    group_class = type


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


user_option = click.option(
    "--user", default=_login_name, show_default="your login name", help="Who does this."
)


limit_option = click.option(
    "--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most so many."
)


def seconds(name: str, *, help: str, default: float | None = None, above_0: bool = False) -> Any:
    """An option that takes a number of seconds."""
    kind = _Seconds(above_0=above_0)
    return click.option(name, type=kind, metavar="SECONDS", default=default, show_default=True, help=help)


def json_object(ctx: click.Context, param: click.Parameter, value: str) -> dict[str, Any]:
    """A JSON object on the command line."""
    try:
        parsed = json.loads(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise click.BadParameter(f'it must be a JSON object such as {{"by": "kim"}}, not {value}')
    return parsed


# ---------------------------------------------------------------------------------------------- the engine


def app_of(ctx: click.Context) -> Celery | None:
    """The Celery app that was named, with its modules imported.

    Raises:
        ConfigurationError: it cannot be loaded.
    """
    named = ctx.find_root().params.get("app")
    if named is None:
        return None
    app = getattr(ctx.obj, "app", None)
    name = named if app is None else app.main
    try:
        if app is None:
            from celery.app.utils import find_app

            # As with `celery -A`: modules are looked for in the current folder as well.
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))
            importlib.invalidate_caches()
            app = find_app(named)
        app.loader.import_default_modules()
        app.finalize()
    except Exception as error:
        last = tracebacks.extract_tb(error.__traceback__)[-1]
        raise ConfigurationError(
            f"app {name} cannot be loaded: {type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        ) from error
    return app


def engine_of_app(ctx: click.Context) -> Stabilize | None:
    """The engine of the named app; ``None`` if no app was named.

    Raises:
        ConfigurationError: the app cannot be loaded, or has no engine.
    """
    app = app_of(ctx)
    if app is None:
        return None
    from stabilize_celery.engine import engine_of

    engine = engine_of(app)
    hide(engine.settings.redact_keys)
    return engine


def open_engine(ctx: click.Context, *, make_tables: bool = False, check: bool = True) -> Stabilize:
    """The engine a command works on; it is closed when the command ends.

    Args:
        ctx: of the command.
        make_tables: make those of a new SQLite file.
        check: refuse tables that are missing or of another version.

    Raises:
        StabilizeError: there is none, its database cannot be reached or does not have the right tables.
    """
    engine = engine_of_app(ctx)
    if engine is None:
        url = ctx.find_root().params.get("database_url")
        if url is None:
            raise click.UsageError(
                "name the app with -A, or the database with --database-url or STABILIZE_DATABASE_URL"
            )
        engine = Stabilize.embedded(url, create_tables=False, check_types=False, resend_delay=_AT_ONCE)
        hide(engine.settings.redact_keys)
    ctx.call_on_close(engine.close)
    if check:
        check_tables(engine, make_tables=make_tables)
    return engine


def check_tables(engine: Stabilize, *, make_tables: bool = False) -> None:
    """Refuse a database without the right tables.

    Raises:
        StabilizeError: saying what to run.
    """
    database = engine.store.database
    path = database.url.database
    if not database.is_postgresql and path and path != ":memory:":
        if not make_tables and not Path(path).exists():
            raise ConfigurationError(f"there is no database file {path}; `migrate` and `run` make one")
        if not Path(path).parent.is_dir():
            raise ConfigurationError(f"there is no folder {Path(path).parent} for the database file {path}")
    if make_tables and not database.is_postgresql:
        engine.create_tables()
    engine.store.check_schema()


def hint_without_workers(engine: Stabilize) -> None:
    """Say how a command takes effect on a database that may have no workers."""
    if engine.app is None and not engine.store.database.is_postgresql:
        click.echo(
            "No worker handles this database all the time: `run FILE --continue ID` does what is under way.",
            err=True,
        )


# ---------------------------------------------------------------------------------------------- the run


def find_run(engine: Stabilize, given: str) -> WorkflowRun:
    """The run of an id, or of the end of one that no other has.

    Raises:
        WorkflowNotFoundError: there is none, or more than one.
    """
    end = given.strip().upper()
    if len(end) == _ID_LENGTH and engine.store.exists(end):
        return engine.get(end)
    message = f"there is no workflow {given} in {engine.store.database.name}"
    if len(end) < _SHORTEST_END:
        raise WorkflowNotFoundError(
            f"{message}; write an id, or {_SHORTEST_END} or more characters of its end"
        )
    found = newest_ids(engine.store, 6, end) if len(end) < _ID_LENGTH and end.isalnum() else []
    if len(found) > 1:
        listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise WorkflowNotFoundError(f"{given} may be any of {listed}; write more of it")
    if found:
        return engine.get(found[0])
    # The end of an id is random; the beginning would make every id look alike.
    ends = {known[-len(end[-16:]) :]: known for known in newest_ids(engine.store, 2000)}
    close = get_close_matches(end[-16:], ends, n=1, cutoff=0.75)
    hint = f", did you mean {ends[close[0]]}?" if close else "; `list` shows those there are"
    raise WorkflowNotFoundError(message + hint)
