"""The app of the tests of stops: one body of each kind, which works until a gate is open, and records who began it."""

from __future__ import annotations

import ctypes
import json
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from celery import Celery

from stabilize_celery import Stabilize, StageExecution, Task, TaskResult, current_run

BROKER, DATABASE, FOLDER, MORE = "STOPS_BROKER", "STOPS_DATABASE", "STOPS_FOLDER", "STOPS_MORE"
#: The lease is longer than any test waits: what goes on sooner was handed back.
SETTINGS = {"heartbeat": 0.5, "lease": 120.0, "relay_interval": 0.2, "resend_delay": 1.0, "retry_delay": 30.0}


def note(folder: str, name: str, **what: Any) -> None:
    """Append a line to one of the files of the test."""
    with open(os.path.join(folder, name), "a") as file:
        file.write(json.dumps({"pid": os.getpid(), **what}) + "\n")


def notes(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a file."""
    path = folder / name
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    # Commands write nothing but the number.
    return [{"pid": each} if isinstance(each, int) else each for each in found]


def work(folder: str, attempt: int, *, deaf: bool = False) -> dict[str, Any]:
    """Begin, and work until the gate is open; a deaf one does not come back the first time."""
    first = not os.path.exists(os.path.join(folder, "begun"))
    note(folder, "begun", attempt=attempt)
    if deaf and first:
        time.sleep(3600)
    try:
        while not os.path.exists(os.path.join(folder, "gate")):
            time.sleep(0.02)
    finally:
        note(folder, "cleaned")
    return {"by": os.getpid()}


def make_app(broker: str, database: str, **conf: Any) -> tuple[Celery, Stabilize]:
    """The app with the engine on it."""
    app = Celery("stops", broker=broker, set_as_current=False)
    app.conf.update({f"stabilize_{name}": value for name, value in SETTINGS.items()})
    app.conf.update(
        stabilize_database_url=database, worker_prefetch_multiplier=1, broker_connection_retry_on_startup=True
    )
    app.conf.update(conf)
    stabilize = Stabilize(app)

    @stabilize.task("function")
    def function(stage: StageExecution) -> dict[str, Any]:
        run = current_run()
        assert run is not None
        return work(stage.context["folder"], run.attempt)

    @stabilize.task("deaf")
    def deaf(stage: StageExecution) -> dict[str, Any]:
        run = current_run()
        assert run is not None
        return work(stage.context["folder"], run.attempt, deaf=True)

    @stabilize.task("holds_gil")
    class HoldsGil(Task):
        """Computes in C, for as long as it is told, and lets no other thread run."""

        def get_execution_timeout(self, stage: StageExecution) -> timedelta:
            return timedelta(seconds=stage.context["limit"])

        def execute(self, stage: StageExecution) -> TaskResult:
            note(stage.context["folder"], "begun", attempt=1)
            ctypes.PyDLL(None).sleep(stage.context["seconds"])
            return TaskResult.success()

    @stabilize.task("raises")
    def raises(stage: StageExecution) -> None:
        note(stage.context["folder"], "begun", attempt=1)
        raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt}[stage.context["what"]](
            "mine"
        )

    @app.task(name="stops.work", ignore_result=True, shared=False)
    def celery_work(folder: str) -> dict[str, Any]:
        return work(folder, 0)

    @app.task(name="stops.work_late", acks_late=True, reject_on_worker_lost=True, shared=False)
    def celery_work_late(folder: str) -> dict[str, Any]:
        return work(folder, 0)

    return app, stabilize


def body(kind: str, folder: Path, **context: Any) -> StageExecution:
    """A stage with a body of that kind."""
    gate, begun = str(folder / "gate"), str(folder / "begun")
    if kind == "shell":
        command = f"echo $$ >> {begun}; while [ ! -e {gate} ]; do sleep 0.05; done"
        return StageExecution.single("a", "shell", {"command": command})
    if kind == "python":
        script = (
            "import os, time\n"
            f"open({begun!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
            f"while not os.path.exists({gate!r}): time.sleep(0.02)"
        )
        return StageExecution.single("a", "python", {"script": script})
    if kind in ("celery", "celery_late"):
        name = "stops.work" if kind == "celery" else "stops.work_late"
        return StageExecution.single("a", "celery", {"task": name, "args": [str(folder)]})
    return StageExecution.single("a", kind, {"folder": str(folder), **context})


if BROKER in os.environ:
    app, stabilize = make_app(
        os.environ[BROKER], os.environ[DATABASE], **json.loads(os.environ.get(MORE, "{}"))
    )
