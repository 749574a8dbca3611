"""What every command has: options, the engine it works on, and errors without tracebacks."""

from __future__ import annotations

import getpass
import importlib
import sys
import traceback as tracebacks
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from stabilize_celery.cli.discretion import hide, print_anything, printable
from stabilize_celery.engine import Stabilize
from stabilize_celery.errors import ConfigurationError, StabilizeError, WorkflowFileError

if TYPE_CHECKING:
    from celery import Celery

#: Nobody hears of a message that this process writes: whoever works on the database finds it as overdue.
_AT_ONCE = 0.001

#: In ``ctx.meta``: whether tracebacks are to be shown.
TRACEBACK = "stabilize_celery.traceback"
F = TypeVar("F", bound=Callable[..., Any])


class EngineCommand(click.Command):
    """A command with ``--json`` and ``--traceback``, whose failure is one message on stderr and exit code 1."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params += [
            click.Option(["as_json", "--json"], is_flag=True, help="Print JSON."),
            click.Option(["--traceback"], is_flag=True, help="Show where an error comes from."),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        """Call it; whatever it raises ends the command with one message."""
        show_where = ctx.meta[TRACEBACK] = ctx.params.pop("traceback", False)
        print_anything()
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
                # What drivers say may have several lines; of a file each problem has one.
                message = " ".join(message.split())
            click.secho(f"Error: {printable(message)}", err=True, fg="red")
            raise click.exceptions.Exit(1) from error


def user_option(function: F) -> F:
    """``--user``: on whose behalf."""
    option = click.option(
        "--user", default=_login_name, show_default="your login name", help="Who does this."
    )
    return option(function)


def _login_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


# ---------------------------------------------------------------------------------------------- the engine


def app_of(ctx: click.Context) -> Celery | None:
    """The Celery app that was named, with its modules imported.

    Raises:
        ConfigurationError: it cannot be loaded.
    """
    named = ctx.find_root().params.get("app")
    if named is None:
        return None
    given = getattr(ctx.obj, "app", None)
    app = _find_app(named) if given is None else given
    try:
        app.loader.import_default_modules()
        app.finalize()
    except Exception as error:
        raise _not_loaded(app.main, error) from error
    return app


def _find_app(name: str) -> Celery:
    from celery.app.utils import find_app

    # As with `celery -A`: modules are looked for in the current folder as well.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        return find_app(name)
    except Exception as error:
        raise _not_loaded(name, error) from error


def _not_loaded(name: str, error: Exception) -> ConfigurationError:
    last = tracebacks.extract_tb(error.__traceback__)[-1]
    return ConfigurationError(
        f"app {name} cannot be loaded: {type(error).__name__}: {error} ({last.filename}:{last.lineno})"
    )


def engine_of_app(ctx: click.Context) -> Stabilize | None:
    """The engine of the named app; ``None`` if no app was named.

    Raises:
        ConfigurationError: the app cannot be loaded, or has no engine.
    """
    app = app_of(ctx)
    if app is None:
        return None
    from stabilize_celery.delivery.install import engine_of

    engine = engine_of(app)
    hide(engine.settings.redact_keys)
    return engine


def database_url_of(ctx: click.Context) -> str | None:
    """What ``--database-url`` or its environment variable says."""
    url: str | None = ctx.find_root().params.get("database_url")
    return url


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
        url = database_url_of(ctx)
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


def has_workers(engine: Stabilize) -> bool:
    """Whether somebody else does what this process asks for."""
    return engine.app is not None or engine.store.database.is_postgresql
