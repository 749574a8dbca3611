"""Three workers, and what starts them again when they end: the part of systemd."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.processes import wait_until
from tests.worker import READY, Pool, WorkerProcess

APP = "tests.chaos.app"
POOLS: tuple[Pool, ...] = ("prefork", "prefork", "threads")
#: Between two looks at whether all are running.
_PAUSE = 0.2


class Crew:
    """The workers of a deployment."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.workers = [
            WorkerProcess(
                APP,
                log=folder / f"worker-{number}-{pool}.log",
                pool=pool,
                concurrency=2,
                env=environment,
                name=f"chaos{number}@localhost",
            )
            for number, pool in enumerate(POOLS)
        ]
        #: What each worker wrote last that ended without having been told to.
        self.deserters: list[str] = []
        self.restarts = 0
        #: How often one did not end when it was told to.
        self.stubborn = 0
        #: Held by whoever is doing something to a worker.
        self._hands_on = threading.Lock()
        self._over = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor")

    def start(self) -> None:
        """Start all, and wait until they are ready."""
        for worker in self.workers:
            worker.start()
        for worker in self.workers:
            worker.wait_ready(60)
        self._supervisor.start()

    def stop(self) -> None:
        """End all at once."""
        self._over.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        for worker in self.workers:
            worker.kill()

    @contextmanager
    def one(
        self, rng: random.Random, suitable: Callable[[WorkerProcess], bool] = lambda worker: True
    ) -> Iterator[WorkerProcess]:
        """A running worker that nobody touches until the end of the block."""
        with self._hands_on:
            self._wait_ready()
            yield rng.choice([worker for worker in self.workers if suitable(worker)])

    @contextmanager
    def one_to_end(self, rng: random.Random) -> Iterator[WorkerProcess]:
        """A running worker that is not running any more at the end of the block, and is started again."""
        with self.one(rng) as worker:
            yield worker
            self._restart(worker)

    def _wait_ready(self) -> None:
        """One that gives up at its start is started again, as often as it takes."""
        wait_until(lambda: all(map(self._is_ready, self.workers)), 120, "workers to be ready")

    def _is_ready(self, worker: WorkerProcess) -> bool:
        self._restart_ended()
        return READY.search(worker.output) is not None

    def _supervise(self) -> None:
        while not self._over.wait(_PAUSE):
            with self._hands_on:
                self._restart_ended()

    def _restart_ended(self) -> None:
        for worker in self.workers:
            if not worker.running:
                self.deserters.append(
                    f"{worker.name} ended with {worker.returncode}: {worker.output[-2000:]}"
                )
                self._restart(worker)

    def _restart(self, worker: WorkerProcess) -> None:
        worker.kill()
        self.restarts += 1
        worker.start()

    def count(self, text: str) -> int:
        """How often all of them have written something, since the beginning."""
        return sum(worker.log.read_text(errors="replace").count(text) for worker in self.workers)
