"""What a contender is, and how its workers are started."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack

from benchmarks.servers import Servers
from benchmarks.shapes import SHAPES, Shape
from tests.services import ROOT
from tests.worker import Pool, WorkerProcess

#: How often everybody looks whether a run has ended, in seconds.
LOOK = 0.02
LONGEST_RUN = 1800.0


class Contender(ABC):
    """One way to run the shapes.

    Args:
        name: for the table; also names its databases and its virtual host.
        shapes: those it can do.
        processes: of its worker.
    """

    def __init__(self, name: str, shapes: list[Shape] | None = None, *, processes: int = 2) -> None:
        self.name = name
        self.shapes = list(SHAPES.values()) if shapes is None else shapes
        self.processes = processes
        self.stack = ExitStack()
        self.workers: list[WorkerProcess] = []

    @property
    def slug(self) -> str:
        """Its name where only letters and digits will do."""
        return "".join(letter if letter.isalnum() else "_" for letter in self.name.lower())

    @abstractmethod
    def start(self, servers: Servers) -> None:
        """Get ready: databases, a virtual host, workers."""

    @abstractmethod
    def run(self, shape: Shape, size: int) -> float:
        """Run so many stages from the start to the end, and return the seconds it took."""

    def version(self) -> str:
        """Of what is measured, for the report."""
        return ""

    def stop(self) -> None:
        """End what `start` began."""
        self.stack.close()

    def start_worker(
        self, servers: Servers, app: str, environment: Mapping[str, str], pool: Pool = "prefork"
    ) -> WorkerProcess:
        """A worker that ends with the contender."""
        worker = WorkerProcess(
            app,
            log=servers.folder / f"{self.slug}-{len(self.workers)}.log",
            pool=pool,
            concurrency=self.processes,
            cwd=ROOT,
            env=environment,
            # Every contender's worker does without a line in the log for each task.
            arguments=["--loglevel", "WARNING"],
        )
        self.stack.callback(worker.kill)
        worker.start()
        worker.wait_ready(120)
        self.workers.append(worker)
        return worker


def wait_for(ended: Callable[[], bool]) -> None:
    """Wait until a run has ended.

    Raises:
        TimeoutError: it takes too long.
    """
    deadline = time.monotonic() + LONGEST_RUN
    while not ended():
        if time.monotonic() > deadline:
            raise TimeoutError(f"a run has not ended after {LONGEST_RUN:g} s")
        time.sleep(LOOK)
