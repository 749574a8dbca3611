"""The workflows that the dumps in ``fixtures`` hold in the middle of their run, and loading them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from stabilize_celery import Stabilize, StageExecution, Workflow, WorkflowRun
from stabilize_celery import WorkflowStatus as S

FOLDER = Path(__file__).parent / "fixtures"
APPLICATION = "dumped"
#: A stage with this in its context does not get further in the process that makes the dump.
HOLD = {"hold": True}
_LIMITED = {
    "id": "one-at-a-time",
    "limitConcurrent": True,
    "maxConcurrentExecutions": 1,
    "keepWaitingPipelines": True,
}
#: What each of them is in the middle of.
STATUSES = {
    "finished": S.SUCCEEDED,
    "sequence": S.RUNNING,
    "fan": S.RUNNING,
    "timer": S.RUNNING,
    "synthetic": S.RUNNING,
    "list": S.RUNNING,
    "outer": S.RUNNING,
    "inner": S.RUNNING,
    "holds the slot": S.RUNNING,
    "waits for the slot": S.BUFFERED,
    "first approval": S.RUNNING,
    "last approval": S.RUNNING,
    "paused": S.PAUSED,
    "just started": S.NOT_STARTED,
}
#: Those that wait for a person.
WAITING = ("first approval", "last approval", "paused")


def workflows() -> list[Workflow]:
    """All of them but ``inner``, as they are started."""
    inner = {
        "application": APPLICATION,
        "name": "inner",
        "stages": [{"ref_id": "a", "type": "ok", "context": HOLD}],
    }
    return [
        _flow("finished", _stage("a")),
        _flow("sequence", _stage("a", outputs={"n": 1}), _stage("b", "a", **HOLD), _stage("c", "b")),
        _flow("fan", _stage("a"), _stage("b", "a"), _stage("c", "a", **HOLD), _stage("d", "b", "c")),
        _flow("timer", _stage("a", type="wait", seconds=3600), _stage("b", "a")),
        _flow(
            "synthetic",
            _stage(
                "a",
                type="plan",
                plan={"before": [{"name": "before", "context": HOLD}], "after": [{"name": "after"}]},
            ),
        ),
        _flow(
            "list", _stage("a", type="map", items=[1, 2, 3], stage={"type": "ok", "context": HOLD}, limit=2)
        ),
        _flow("outer", _stage("a", type="sub_workflow", workflow=inner), _stage("b", "a")),
        _flow("holds the slot", _stage("a", **HOLD), config=_LIMITED),
        _flow("waits for the slot", _stage("a"), config=_LIMITED),
        *(_flow(name, _stage("a", type="approval"), _stage("b", "a")) for name in WAITING[:2]),
        _flow("paused", _stage("a", **HOLD), _stage("b", "a")),
        _flow("just started", _stage("a"), _stage("b", "a")),
    ]


def _flow(name: str, *stages: StageExecution, config: dict[str, Any] | None = None) -> Workflow:
    return Workflow.create(APPLICATION, name, list(stages), config=config)


def _stage(ref_id: str, *requires: str, type: str = "ok", **context: Any) -> StageExecution:
    if type == "plan":
        return StageExecution(ref_id=ref_id, type=type, context=context)
    return StageExecution.single(ref_id, type, context, requires=set(requires))


def runs(engine: Stabilize) -> dict[str, WorkflowRun]:
    """Those of the dump that a database holds, by name."""
    return {run.workflow().name: run for run in engine.find(application=APPLICATION, limit=100)}


def answer(run: WorkflowRun) -> None:
    """Do what the run waits for."""
    if run.status is S.PAUSED:
        run.resume(user="kim")
    else:
        run.approve("a", user="kim")


def answer_all(engine: Stabilize) -> None:
    """Do what every run waits for that does so."""
    found = runs(engine)
    for name in WAITING:
        if not found[name].status.is_complete:
            answer(found[name])


def load(url: str, version: str) -> None:
    """Put a dump into an empty database."""
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        with sqlite3.connect(str(address.database)) as lite:
            lite.executescript((FOLDER / f"{version}.sqlite.sql").read_text(encoding="utf-8"))
        lite.close()
        return
    told = address.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(told) as connection:
        connection.execute((FOLDER / f"{version}.postgresql.sql").read_bytes())


def versions() -> list[str]:
    """The versions of the tables of which there are dumps."""
    return sorted(path.name.split(".")[0] for path in FOLDER.glob("*.sqlite.sql"))
