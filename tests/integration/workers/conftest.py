"""Real deployments made for one test: a database, a virtual host, and workers that are started when it says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from stabilize_celery import Workflow, WorkflowRun
from tests.conformance.deployment import BROKER, DATABASE, INLINE, MORE, make_app
from tests.conformance.harness import Result, WorkersEngine
from tests.integration.workers import stops_app
from tests.integration.workers.stops_app import notes
from tests.services import RabbitService, choose_rabbit
from tests.worker import WorkerProcess, wait_until


@dataclass
class Deployment:
    """An app with the engine, as its users see it, and its workers."""

    engine: WorkersEngine
    broker_url: str
    environment: dict[str, str]
    start: Callable[..., WorkerProcess]
    workers: list[WorkerProcess] = field(default_factory=list)

    def worker(self, **options: Any) -> WorkerProcess:
        """Start a worker; takes what the fixture ``start_worker`` takes, all of it by name."""
        options.setdefault("pool", "threads")
        options.setdefault("concurrency", 2)
        worker = self.start(
            options.pop("app", "tests.conformance.deployment"), env=self.environment, **options
        )
        self.workers.append(worker)
        return worker

    def two_workers(self, **options: Any) -> list[WorkerProcess]:
        """Start two at the same time."""
        workers = [self.worker(wait=False, **options) for _ in range(2)]
        return [worker.wait_ready(60) for worker in workers]

    def worker_of(self, pid: int) -> WorkerProcess:
        """The worker that a process belongs to."""
        for worker in self.workers:
            if worker.running and pid in pids_of(worker):
                return worker
        raise AssertionError(f"process {pid} belongs to no worker")


Deploy = Callable[..., Deployment]


@pytest.fixture
def deploy(
    postgres_url: str, broker_url: str, tmp_path: Path, start_worker: Callable[..., WorkerProcess]
) -> Iterator[Deploy]:
    """Make a deployment: `deploy(inline=True, broker=..., database=..., stabilize_lease=1.0, ...)`."""
    made: list[Deployment] = []

    def make(
        *, inline: bool = True, broker: str = broker_url, database: str = postgres_url, **settings: Any
    ) -> Deployment:
        _, stabilize = make_app(broker, database, inline=inline, **settings)
        environment = {
            BROKER: broker,
            DATABASE: database,
            INLINE: str(int(inline)),
            MORE: json.dumps(settings),
        }
        workers: list[WorkerProcess] = []
        engine = WorkersEngine("deployment", stabilize, tmp_path, workers)
        made.append(Deployment(engine, broker, environment, start_worker, workers))
        return made[-1]

    yield make
    for deployment in made:
        deployment.engine.close()
        deployment.engine.stabilize.close()
        if deployment.engine.stabilize.app is not None:
            deployment.engine.stabilize.app.close()


@pytest.fixture(scope="module")
def own_rabbit() -> Iterator[RabbitService]:
    """A broker that tests may kill and wipe without disturbing others."""
    service = choose_rabbit()
    service.start()
    yield service
    service.discard()


def processes_of(result: Result, ref: str) -> list[int]:
    """The processes that ran the task bodies of a stage, in order."""
    return [entry["pid"] for entry in result.events("start", ref)]


def pids_of(worker: WorkerProcess) -> set[int]:
    """A worker's processes."""
    return {worker.pid, *(child.pid for child in psutil.Process(worker.pid).children(recursive=True))}


class Place:
    """A deployment of ``stops_app``, whose workers are stopped."""

    def __init__(
        self,
        broker: str,
        database: str,
        folder: Path,
        start: Callable[..., WorkerProcess],
        conf: dict[str, Any] | None = None,
    ) -> None:
        self.folder = folder
        self.broker, self.database = broker, database
        self._start = start
        self.conf = conf or {}
        self.app, self.stabilize = stops_app.make_app(broker, database, **self.conf)

    def worker(self, pool: str, **options: Any) -> WorkerProcess:
        env = {
            stops_app.BROKER: self.broker,
            stops_app.DATABASE: self.database,
            stops_app.FOLDER: str(self.folder),
            stops_app.MORE: json.dumps({**self.conf, **options.pop("conf", {})}),
            **options.pop("env", {}),
        }
        queues = ("celery", "stabilize", "stabilize.tasks")
        options.setdefault("concurrency", 1)
        wait = options.pop("wait", True)
        started = self._start(
            "tests.integration.workers.stops_app", pool=pool, queues=queues, env=env, wait=False, **options
        )
        return started.wait_ready(60) if wait else started

    def two_workers(self, pool: str, **options: Any) -> list[WorkerProcess]:
        """Start two at the same time."""
        workers = [self.worker(pool, wait=False, **options) for _ in range(2)]
        return [worker.wait_ready(60) for worker in workers]

    def start(self, kind: str, **context: Any) -> WorkflowRun:
        stage = stops_app.body(kind, self.folder, **context)
        return self.stabilize.start(Workflow.create("stops", kind, [stage]))

    def begun(self, count: int = 1, within: float = 30) -> list[dict[str, Any]]:
        """Wait until bodies were begun so often."""
        wait_until(lambda: len(notes(self.folder, "begun")) >= count, within, f"beginning {count}")
        return notes(self.folder, "begun")

    def open(self) -> None:
        (self.folder / "gate").touch()

    def close(self) -> None:
        self.open()
        self.stabilize.close()
        self.app.close()


@pytest.fixture
def place(
    broker_url: str,
    postgres_url: str,
    tmp_path: Path,
    start_worker: Callable[..., WorkerProcess],
    request: pytest.FixtureRequest,
) -> Iterator[Place]:
    """Its configuration may be given as an indirect parameter."""
    made = Place(broker_url, postgres_url, tmp_path, start_worker, getattr(request, "param", None))
    yield made
    made.close()
