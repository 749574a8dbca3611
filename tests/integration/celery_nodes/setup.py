"""What is the same in containers and on this machine: the configuration, the command, the files of a worker."""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

from celery import Celery
from pytest_celery import CeleryTestSetup, CeleryWorkerContainer

from tests.integration.celery_nodes import work, worker_app
from tests.services import docker_answers

#: ``local`` or ``docker``: instead of looking whether a Docker engine answers.
MODE = "STABILIZE_TEST_NODES"
DATABASE = "STABILIZE_DATABASE_URL"
QUEUES = "celery,stabilize,stabilize.tasks"
PAYMENTS = "payments"
SETTINGS = {
    "stabilize_lease": 2.0,
    "stabilize_heartbeat": 0.2,
    "stabilize_relay_interval": 0.2,
    "stabilize_resend_delay": 1.0,
    "stabilize_task_routes": {"charge": {"queue": PAYMENTS}},
    "broker_connection_retry_on_startup": True,
    "worker_prefetch_multiplier": 1,
}


def in_containers() -> bool:
    """Whether nodes are containers."""
    chosen = os.environ.get(MODE)
    if chosen not in (None, "", "local", "docker"):
        raise ValueError(f"{MODE} is {chosen!r}; it must be local or docker")
    return chosen == "docker" if chosen else docker_answers()


class NodesSetup(CeleryTestSetup):  # type: ignore[misc]
    """Workers and the test's own app have the same settings."""

    @classmethod
    def update_app_config(cls, app: Celery) -> None:
        app.conf.update(SETTINGS)


class NodesWorker(CeleryWorkerContainer):  # type: ignore[misc]
    """A worker with the engine on its app."""

    @classmethod
    def worker_command(cls, pool: str, queues: str, name: str) -> list[str]:
        """The command line: pytest-celery's own, with our pool, queues and name."""
        command: list[str] = cls.command(
            "--pool", pool, "--concurrency", "2", "--without-gossip", "--without-mingle"
        )
        command[command.index("-Q") + 1] = queues
        command[command.index("-n") + 1] = f"{name}@%h"
        return command

    @classmethod
    def app_module(cls) -> ModuleType:
        return worker_app

    @classmethod
    def tasks_modules(cls) -> set[Any]:
        return {work}
