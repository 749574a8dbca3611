"""Crash points are reached where they say, and cost nothing where nobody watches."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.crash_points import POINTS, reach, watching


def small():
    stage = StageExecution.single("a", "python", context={"script": "print(1)"})
    return Workflow.create("tests", "small", [stage])


def test_an_embedded_run_passes_the_points_in_order():
    seen = []
    with watching(seen.append), Stabilize.embedded() as stabilize:
        stabilize.run(small(), timeout=30)
    assert set(seen) <= POINTS.keys()
    assert seen[:2] == ["start.written", "start.committed"]
    assert seen.index("message.taken") < seen.index("message.handled") < seen.index("message.committed")
    assert seen.index("task.claimed") < seen.index("task.returned")
    assert POINTS.keys() - set(seen) == {"message.done", "relay.taken", "relay.sent"}, "these need a broker"


def test_what_a_watcher_raises_goes_through():
    class Died(BaseException):
        pass

    def die(point):
        if point == "message.handled":
            raise Died

    with Stabilize.embedded(concurrency=1) as stabilize:
        with watching(die), pytest.raises(Died):
            stabilize.run(small(), timeout=30)
        reach("message.handled")  # nobody watches any more


def _process(tmp_path, point):
    code = "from stabilize_celery.crash_points import reach; reach('task.claimed'); print('alive')"
    env = {"STABILIZE_CRASH_AT": point, "STABILIZE_CRASH_ONCE": str(tmp_path / "once")}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_a_process_dies_there_once(tmp_path):
    assert _process(tmp_path, "task.claimed").returncode == -signal.SIGKILL
    assert _process(tmp_path, "task.claimed").stdout == "alive\n"


def test_an_unknown_point_is_refused(tmp_path):
    answer = _process(tmp_path, "nowhere")
    assert "STABILIZE_CRASH_AT='nowhere' is no crash point" in answer.stderr


def test_a_process_dies_at_the_arrival_that_is_named(tmp_path):
    codes = [_process(tmp_path, "task.claimed:3").returncode for _ in range(5)]
    assert codes == [0, 0, -signal.SIGKILL, 0, 0]


@pytest.mark.parametrize("arrival", ["0", "-1", "last"])
def test_an_arrival_that_never_comes_is_refused(tmp_path, arrival):
    answer = _process(tmp_path, f"task.claimed:{arrival}")
    assert f"STABILIZE_CRASH_AT=task.claimed:{arrival}: after the colon stands a number" in answer.stderr
