"""Plugins: features that the engine does not know, and finds through entry points.

A distribution offers one in its ``pyproject.toml``; metrics, traces, Celery events, schedules and the task type
``docker`` are plugins of this one::

    [project.entry-points."stabilize_celery.plugins"]
    pagerduty = "shop.pagerduty:PagerDuty"

Each process loads them with its first engine.  One that cannot be loaded is an error in the log, and a
``ConfigurationError`` where a setting or a call needs it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from stabilize_celery.errors import ConfigurationError
from stabilize_celery.settings import Settings

logger = logging.getLogger(__name__)
GROUP = "stabilize_celery.plugins"
#: Commands of the command line: a ``click.Command``, or what the command of that name calls; loaded when it is called.
COMMANDS = "stabilize_celery.commands"
#: Settings that have no effect without a plugin.
_NEEDED_BY = {"metrics_port": "prometheus", "tracing": "opentelemetry", "send_events": "events"}

#: Entered around the code of an attempt, in its thread, with its :class:`~stabilize_celery.tasks.run.TaskRun`, stage and
#: task, and the name of the hook if it is ``on_cancel`` or ``on_cleanup``.  It gives a function that is called with
#: the :class:`~stabilize_celery.tasks.outcome.Outcome`, or with ``None`` if the time limit has ended the attempt.
AttemptHook = Callable[[Any, Any, Any, str], AbstractContextManager[Callable[[Any], None]]]


class Plugin:
    """A feature beside the engine; each method is a moment at which it may take part, and does nothing by default.

    ``engine`` is a :class:`~stabilize_celery.engine.Stabilize`.  Errors are passed on, but for those of attempt hooks.
    """

    def task_types(self) -> Mapping[str, Any]:
        """Task types by name, registered as the built-in ones are: a type of the user's takes their place."""
        return {}

    def connect(self, engine: Any) -> None:
        """An engine was made; its settings are not known yet.  The place for ``engine.observe``."""

    def install(self, app: Any, engine: Any) -> None:
        """The engine is installed on a Celery app, which is not configured yet: add tasks, bootsteps, options."""

    def attempt_hook(self, settings: Settings) -> AttemptHook | None:
        """What is entered around the code of each attempt in this process; ``None`` if nothing is.

        Raises:
            ConfigurationError: a setting asks for what cannot be had; a worker does not start then.
        """
        return None

    def starting(self, engine: Any, workflows: Sequence[Any]) -> None:
        """Workflows are about to be checked and stored; they may still be changed."""

    def dispatching(self, engine: Any, dispatcher: Any) -> None:
        """This process begins to handle messages, with this :class:`~stabilize_celery.delivery.dispatcher.Dispatcher`."""

    def close(self, engine: Any) -> None:
        """The engine is closed."""

    def show(self) -> None:
        """Flower is being prepared in this process; the app it shows is not known yet."""


def plugins() -> list[Plugin]:
    """Every plugin that could be loaded, by name."""
    return list(_loaded()[0].values())


def plugin(name: str, what: str) -> Any:
    """The plugin of that name.

    Args:
        name: of its entry point.
        what: needs it; the beginning of the error.

    Raises:
        ConfigurationError: it is not installed, or cannot be loaded.
    """
    found, failed = _loaded()
    if name not in found:
        reason = failed.get(
            name, "which is not installed: run `pip install --force-reinstall stabilize-celery`"
        )
        raise ConfigurationError(f"{what} needs the plugin {name!r}, {reason}")
    return found[name]


def command(name: str) -> Any:
    """What a command of the command line calls.

    Raises:
        ConfigurationError: it is not installed, or cannot be loaded.
    """
    for entry in entry_points(group=COMMANDS, name=name):
        try:
            return entry.load()
        except ImportError as error:
            raise ConfigurationError(
                f"the command {name} cannot be loaded from {entry.value}: {error}"
            ) from error
    raise ConfigurationError(f"the command {name} is not installed")


def check_plugins(settings: Settings) -> None:
    """Refuse settings that have no effect here.

    Raises:
        ConfigurationError: a plugin is missing.
    """
    for setting, name in _NEEDED_BY.items():
        if getattr(settings, setting):
            plugin(name, f"the setting stabilize_{setting}")


@cache
def _loaded() -> tuple[dict[str, Plugin], dict[str, str]]:
    """What could be loaded, and why the others could not."""
    found: dict[str, Plugin] = {}
    failed: dict[str, str] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            found[entry.name] = _made(entry)
        except Exception as error:
            failed[entry.name] = f"which cannot be loaded from {entry.value}: {type(error).__name__}: {error}"
            logger.error("the plugin %r is left out, %s", entry.name, failed[entry.name])
    return found, failed


def _made(entry: EntryPoint) -> Plugin:
    made = entry.load()()
    if not isinstance(made, Plugin):
        raise TypeError(f"it gives {type(made).__name__}, not a stabilize_celery.plugins.Plugin")
    return made
