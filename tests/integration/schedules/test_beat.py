"""Real beats and a real worker: each tick is started once, whatever happens to the beats."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from stabilize_celery import Stabilize
from tests.processes import ChildProcess, wait_ready, wait_until
from tests.worker import ROOT

SHOP = """\
import os
from celery import Celery
from stabilize_celery import Stabilize, StageExecution, Workflow

app = Celery("shop", broker=os.environ["BROKER"])
app.conf.stabilize_database_url = os.environ["DATABASE"]
stabilize = Stabilize(app)

@stabilize.task("note")
def note(stage):
    return {"noted": stage.execution.trigger.parameters["scheduled_at"]}

def tick():
    return Workflow.create("shop", "tick", [StageExecution.single("note", "note")])

stabilize.schedule("each second", 1, tick)
"""
SENT = "Sending due task each second"


@pytest.fixture
def shop(tmp_path: Path, broker_url: str, postgres_url: str) -> dict[str, Any]:
    (tmp_path / "shop.py").write_text(SHOP)
    env = {**os.environ, "BROKER": broker_url, "DATABASE": postgres_url, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    return {"env": env, "cwd": tmp_path}


def beat(shop: dict[str, Any], name: str) -> ChildProcess:
    folder = shop["cwd"]
    command = [sys.executable, "-m", "celery", "-A", "shop", "beat", "--loglevel", "INFO"]
    command += ["--schedule", str(folder / f"{name}.schedule"), "--pidfile", ""]
    return ChildProcess(command, log=folder / f"{name}.log", **shop)


def sent(process: ChildProcess) -> int:
    return process.output().count(SENT)


def test_two_beats_one_of_which_is_killed_and_restarted(
    shop: dict[str, Any], start_worker: Any, postgres_url: str
) -> None:
    start_worker("shop", pool="threads", concurrency=2, **shop)
    beats = [beat(shop, "a"), beat(shop, "b")]
    try:
        for each in beats:
            each.start()
        for each in beats:
            wait_ready(each, lambda each=each: sent(each) >= 3, 60)
        beats[0].kill_tree()
        beats[0].start()
        wait_ready(beats[0], lambda: sent(beats[0]) >= 2, 60)
        with Stabilize.embedded(postgres_url, create_tables=False) as engine:
            wait_until(lambda: len(engine.find(name="tick")) >= 4, 60, "four workflows")
            for each in beats:
                each.kill_tree()
            wait_until(lambda: all(run.ready() for run in engine.find(name="tick")), 60, "their ends")
            workflows = [run.workflow() for run in engine.find(name="tick", limit=1000)]
    finally:
        for each in beats:
            each.kill_tree()
    noted = [workflow.stages[0].outputs["noted"] for workflow in workflows]
    assert len(set(noted)) == len(noted), "a tick was started twice"
    moments = sorted(map(datetime.fromisoformat, noted))
    assert all(moment.microsecond == 0 for moment in moments)
    # Each beat sent every tick it was there for, so far fewer were started than sent.
    assert len(moments) <= (moments[-1] - moments[0]) / timedelta(seconds=1) + 1
    assert len(moments) < sum(each.log.read_text().count(SENT) for each in beats)
