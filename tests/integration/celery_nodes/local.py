"""Nodes that are processes of this machine, behind pytest-celery's own classes for containers."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import RabbitMQContainer

from tests.integration.celery_nodes.setup import DATABASE, NodesWorker
from tests.services import RabbitService
from tests.worker import WorkerProcess


def _number(given: str | int | None) -> int:
    if given is None:
        return signal.SIGKILL
    return signal.Signals[given] if isinstance(given, str) else given


class LocalProcess:
    """What of Docker's container object the classes of pytest-celery and pytest-docker-tools use."""

    def __init__(self, name: str) -> None:
        self.id = uuid.uuid4().hex
        self.name = name
        self.attrs: dict[str, Any] = {
            "Config": {"Hostname": "localhost", "Env": []},
            "HostConfig": {"PortBindings": {}},
            "NetworkSettings": {"Networks": {}, "Ports": {}},
        }

    def reload(self) -> None:
        """Nothing is remembered that could be out of date."""


class LocalBroker(LocalProcess):
    """The tests' own RabbitMQ."""

    def __init__(self, service: RabbitService) -> None:
        super().__init__("rabbitmq")
        self.service = service
        self.status = "running"

    def kill(self, given: str | int | None = None) -> None:
        self.status = "exited"
        self.service.kill(_number(given))

    def restart(self, timeout: int = 10) -> None:
        if self.status == "running":
            self.service.stop()
        self.service.start()
        self.status = "running"

    def logs(self) -> bytes:
        return b""


class LocalWorkerProcess(LocalProcess):
    """A worker in a folder of its own, which is what the container's volume would be."""

    def __init__(
        self, command: list[str], folder: Path, content: dict[str, bytes], env: dict[str, str]
    ) -> None:
        super().__init__(folder.name)
        for name, source in content.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(source)
        command = [sys.executable, "-m", *(word.replace("%h", self.id[:12]) for word in command)]
        self.folder = folder
        self.process = WorkerProcess("app", log=folder / "worker.log", cwd=folder, env=env, command=command)
        self.process.start()

    @property
    def status(self) -> str:
        return "running" if self.process.running else "exited"

    def kill(self, given: str | int | None = None) -> None:
        self.process.kill(_number(given))

    def restart(self, timeout: int = 10) -> None:
        if self.process.running:
            self.process.stop(timeout)
        self.process.start()

    def logs(self) -> bytes:
        return self.process.output.encode()

    def exec_run(self, command: str, **_: Any) -> tuple[int, bytes]:
        words = [sys.executable if word == "python" else word for word in shlex.split(command)]
        done = subprocess.run(words, cwd=self.folder, capture_output=True, check=False)
        return done.returncode, done.stdout + done.stderr


class LocalRabbitMQ(RabbitMQContainer):  # type: ignore[misc]
    """A virtual host of the tests' own broker: the same address from everywhere."""

    def __init__(self, broker: LocalBroker, url: str) -> None:
        super().__init__(broker)
        self._url = url

    @property
    def url(self) -> str:
        return self._url

    @property
    def host_url(self) -> str:
        return self._url

    @property
    def port(self) -> int:
        return int(self._container.service.port)

    @property
    def vhost(self) -> str:
        return self._url.rsplit("/", 1)[1]

    @property
    def ready_prompt(self) -> str | None:
        # The service waits by itself until the broker answers.
        return None


@pytest.fixture
def default_rabbitmq_broker(rabbit_service: RabbitService, broker_url: str) -> Iterator[LocalRabbitMQ]:
    broker = LocalBroker(rabbit_service)
    yield LocalRabbitMQ(broker, broker_url)
    if broker.status != "running":
        rabbit_service.start()


@pytest.fixture
def database_urls(postgres_url: str) -> tuple[str, str]:
    """The database as this process and as workers see it."""
    return postgres_url, postgres_url


@pytest.fixture
def default_worker_container(
    default_worker_command: list[str],
    default_worker_initial_content: dict[str, bytes],
    default_worker_env: dict[str, str],
    tmp_path: Path,
) -> Iterator[NodesWorker]:
    yield from _worker(
        default_worker_command, tmp_path / "worker", default_worker_initial_content, default_worker_env
    )


@pytest.fixture
def payments_container(
    payments_command: list[str],
    default_worker_initial_content: dict[str, bytes],
    default_worker_env: dict[str, str],
    tmp_path: Path,
) -> Iterator[NodesWorker]:
    yield from _worker(
        payments_command, tmp_path / "payments", default_worker_initial_content, default_worker_env
    )


def _worker(
    command: list[str], folder: Path, content: dict[str, bytes], env: dict[str, str]
) -> Iterator[NodesWorker]:
    # Where the code is found on this machine is known to WorkerProcess; in a container it is /app.
    env = {name: value for name, value in env.items() if name != "PYTHONPATH"}
    assert DATABASE in env
    worker = LocalWorkerProcess(command, folder, content, env)
    yield NodesWorker(worker)
    worker.kill()
