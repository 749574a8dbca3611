"""The shop's app with workers of it: what the tests of Celery stages hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import Celery

from stabilize_celery import Stabilize, StageExecution, Workflow, WorkflowRun
from tests.processes import wait_until
from tests.services import RabbitService
from tests.worker import WorkerProcess

APP = "tests.integration.celery_shop"


class Shop:
    """A client of the app, and the workers it was given."""

    def __init__(
        self,
        app: Celery,
        stabilize: Stabilize,
        rabbit: RabbitService,
        broker: str,
        folder: Path,
        start_worker: Callable[..., WorkerProcess],
    ) -> None:
        self.app, self.stabilize = app, stabilize
        self.rabbit, self.broker, self.folder = rabbit, broker, folder
        self._start_worker = start_worker
        self.log = folder / "shop.log"
        self.workers: list[WorkerProcess] = []

    def worker(self, **options: Any) -> WorkerProcess:
        made = self._start_worker(APP, **options)
        self.workers.append(made)
        return made

    def sig(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.app.tasks[f"shop.{name}"].s(*args, **kwargs)

    def stage(self, ref: str, sig: Any, after: tuple[str, ...] = (), **context: Any) -> StageExecution:
        return StageExecution.celery(ref, sig, requires=after, context=context)

    def start(self, *stages: StageExecution) -> WorkflowRun:
        return self.stabilize.start(Workflow.create("shop", "order", list(stages)))

    def start_one(self, name: str, *args: Any, **kwargs: Any) -> WorkflowRun:
        return self.start(self.stage(name, self.sig(name, *args, **kwargs)))

    def events(self, event: str) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [entry for entry in map(json.loads, lines) if entry["event"] == event]

    def wait_event(self, event: str, count: int = 1, **wanted: Any) -> dict[str, Any]:
        def found() -> list[dict[str, Any]]:
            return [e for e in self.events(event) if all(e.get(k) == v for k, v in wanted.items())]

        self.until(lambda: len(found()) >= count, f"{count} of event {event} {wanted}")
        return found()[count - 1]

    def until(self, predicate: Callable[[], object], what: str, timeout: float = 40) -> None:
        wait_until(lambda: bool(predicate()), timeout, what)

    def wait_queued(self, queue: str) -> None:
        """Wait until a message waits in a queue, which the first one makes."""

        def queued() -> bool:
            return queue in self.rabbit.queue_names(self.broker) and bool(
                self.rabbit.queue_length(self.broker, queue)
            )

        self.until(queued, f"a message in queue {queue}")

    def history(self, run: WorkflowRun, event: str) -> list[dict[str, Any]]:
        return [entry for entry in run.history() if entry["event"] == event]

    def messages(self) -> int:
        return self.stabilize.store.count_messages()

    def gate(self, name: str = "gate") -> Path:
        return self.folder / name


def task_of(run: WorkflowRun, ref: str) -> Any:
    stage = run.workflow().stage_by_ref_id(ref)
    assert stage is not None
    return stage.tasks[0]
