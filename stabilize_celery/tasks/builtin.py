"""The task types that need no registration by the user."""

from __future__ import annotations

from stabilize_celery.tasks.http import HTTPTask
from stabilize_celery.tasks.python import PythonTask
from stabilize_celery.tasks.registry import TaskRegistry
from stabilize_celery.tasks.shell import ShellTask


def register_builtin_tasks(registry: TaskRegistry) -> None:
    """Register ``python``, ``shell`` and ``http``."""
    registry.register("python", PythonTask)
    registry.register("shell", ShellTask)
    registry.register("http", HTTPTask)
