"""The task types that need no registration by the user."""

from __future__ import annotations

from stabilize_celery.celery_tasks.task import CeleryResultsTask, CeleryStageBuilder, CeleryTask
from stabilize_celery.plugins import plugins
from stabilize_celery.settings import Settings
from stabilize_celery.stages.builder import register_builder
from stabilize_celery.tasks.approval import ApprovalTask
from stabilize_celery.tasks.http import HTTPTask
from stabilize_celery.tasks.python import PythonTask
from stabilize_celery.tasks.registry import TaskRegistry
from stabilize_celery.tasks.shell import ShellTask
from stabilize_celery.tasks.wait import WaitTask

#: Those that run programs, or reach other machines; a deployment may do without them.
OPTIONAL = ("python", "shell", "http", "docker")


def configure_builtin_tasks(registry: TaskRegistry, settings: Settings) -> None:
    """Apply what the settings say of built-in tasks, unless others were registered under their names."""
    registry.exclude(name for name in OPTIONAL if name not in settings.builtin_tasks)
    if settings.allow_private_urls and registry.source("http") is HTTPTask:
        task = HTTPTask()
        task.allow_private_urls_default = True
        registry.register("http", task)


def register_builtin_tasks(registry: TaskRegistry) -> None:
    """Register the task types of this package, and those of plugins."""
    registry.register("python", PythonTask)
    registry.register("shell", ShellTask)
    registry.register("http", HTTPTask)
    registry.register("celery", CeleryTask)
    registry.register("celery_results", CeleryResultsTask)
    register_builder(CeleryStageBuilder())
    registry.register("wait", WaitTask)
    registry.register("approval", ApprovalTask)
    for plugin in plugins():
        for name, task in plugin.task_types().items():
            registry.register(name, task)
