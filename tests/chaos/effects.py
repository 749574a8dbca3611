"""What task bodies did, recorded where chaos cannot lose it: one line each, appended to a local file."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stabilize_celery import Stabilize, current_run
from tests.chaos.checks import Finding

FILE = "CHAOS_EFFECTS"
#: Task types whose bodies call :func:`record`.
RECORDING = ("work", "celery")
#: Seconds between a claim and a crash that forgets it: three times PostgreSQL's `wal_writer_delay`, and some for us.
_FORGOTTEN = 3.0


@dataclass(frozen=True)
class Effect:
    """A body that began, as one attempt at one task."""

    at: float
    workflow: str
    stage: str
    task: str
    generation: int
    attempt: int
    token: int
    pid: int

    @property
    def attempt_key(self) -> tuple[str, int, int]:
        """What no two bodies may share."""
        return (self.task, self.generation, self.token)


def record() -> None:
    """Called first by every body."""
    run = current_run()
    assert run is not None, "a task body runs outside any attempt"
    line = {
        "at": time.time(),
        "workflow": run.workflow_id,
        "stage": run.stage_id,
        "task": run.task_id,
        "generation": run.generation,
        "attempt": run.attempt,
        "token": run.fencing_token,
        "pid": os.getpid(),
    }
    descriptor = os.open(os.environ[FILE], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        # One write of less than a page: it is there whole, or not at all.
        os.write(descriptor, (json.dumps(line) + "\n").encode())
    finally:
        os.close(descriptor)


def read(file: Path) -> list[Effect]:
    """Every effect, in the order they happened."""
    lines = file.read_text().splitlines() if file.exists() else []
    return [Effect(**json.loads(line)) for line in lines]


def twice(effects: list[Effect]) -> Iterator[tuple[Effect, Effect]]:
    """Bodies that ran as the same attempt with the same fencing token."""
    seen: dict[tuple[str, int, int], Effect] = {}
    for effect in effects:
        other = seen.setdefault(effect.attempt_key, effect)
        if other is not effect:
            yield other, effect
            seen[effect.attempt_key] = effect


def is_forgotten(first: Effect, second: Effect, crashes: list[float]) -> bool:
    """Whether the claim of the first was lost in a crash of the database between them.

    The commit of a claim does not wait for the disk, so that a database that is killed forgets the last ones.
    """
    return any(abs(crash - first.at) <= _FORGOTTEN and crash < second.at for crash in crashes)


def check(
    stabilize: Stabilize, workflow_ids: list[str], effects: list[Effect], crashes: list[float]
) -> Iterator[Finding]:
    """No attempt ran twice, and none of the tasks that ended by themselves ended without having run."""
    for first, second in twice(effects):
        if not is_forgotten(first, second, crashes):
            what = f"attempt {second.attempt} of task {second.task} ran in {first.pid} and in {second.pid}"
            yield Finding("doubled", second.workflow, what)
    ran = {(effect.task, effect.generation) for effect in effects}
    for workflow_id in workflow_ids:
        for stage in stabilize.store.retrieve(workflow_id).stages:
            for task in stage.tasks:
                ended = task.status.is_successful or task.status.is_failure
                skipped = task.status.is_skipped or task.implementing_class not in RECORDING
                if ended and not skipped and (task.id, stage.generation) not in ran:
                    what = f"task {task.name} of {stage.ref_id} is {task.status} and never ran"
                    yield Finding("lost", workflow_id, what)
