"""Pool processes that are alive, frozen, killed or over time: who keeps the lease, and who ends them."""

from __future__ import annotations

import os
import signal

import pytest

from stabilize_celery import WorkflowStatus as S
from tests.integration.workers.conftest import Place
from tests.integration.workers.stops_app import notes
from tests.worker import wait_until

SHORT = {"stabilize_lease": 2.0, "stabilize_heartbeat": 0.3, "stabilize_resend_delay": 10.0}


@pytest.mark.parametrize("place", [SHORT], indirect=True)
def test_a_body_that_holds_the_interpreter_longer_than_its_lease_runs_once(place: Place) -> None:
    place.two_workers("prefork")
    run = place.start("holds_gil", seconds=6, limit=60)
    assert run.wait(timeout=60) is S.SUCCEEDED
    assert len(place.begun()) == 1
    assert run.workflow().stages[0].tasks[0].attempts == 1


@pytest.mark.parametrize("place", [SHORT], indirect=True)
def test_a_body_that_holds_the_interpreter_over_its_time_is_ended(place: Place) -> None:
    place.two_workers("prefork")
    run = place.start("holds_gil", seconds=3600, limit=3)
    assert run.wait(timeout=60) is S.TERMINAL
    (begun,) = place.begun()
    assert "timed out" in run.workflow().stages[0].context["error"]
    wait_until(lambda: not os.path.exists(f"/proc/{begun['pid']}"), 10, "the end of the process")


@pytest.mark.parametrize("place", [SHORT], indirect=True)
def test_a_body_that_holds_the_interpreter_is_ended_when_it_is_canceled_by_force(place: Place) -> None:
    place.worker("prefork", concurrency=2, conf={"stabilize_task_kill_grace": 0.5})
    run = place.start("holds_gil", seconds=3600, limit=3600)
    (begun,) = place.begun()
    run.cancel(user="kim", force=True)
    wait_until(lambda: not os.path.exists(f"/proc/{begun['pid']}"), 20, "the end of the process")
    assert run.wait(timeout=20) is S.CANCELED


@pytest.mark.parametrize("place", [SHORT], indirect=True)
def test_a_frozen_process_costs_its_lease(place: Place) -> None:
    place.two_workers("prefork")
    run = place.start("function")
    pid = place.begun()[0]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        # Three times the lease.
        second = place.begun(2, within=6.0)[1]
        place.open()
        assert run.wait(timeout=20) is S.SUCCEEDED
    finally:
        os.kill(pid, signal.SIGCONT)
    assert second["pid"] != pid
    assert second["attempt"] == 2


def test_a_killed_process_costs_no_lease(place: Place) -> None:
    """Its main process sees the end of it, long before the lease ends; it counts as an attempt."""
    place.worker("prefork")
    run = place.start("function")
    pid = place.begun()[0]["pid"]
    os.kill(pid, signal.SIGKILL)
    second = place.begun(2, within=30)[1]
    place.open()
    assert run.wait(timeout=20) is S.SUCCEEDED
    assert (second["pid"] != pid, second["attempt"]) == (True, 2)


@pytest.mark.parametrize(
    ("place", "kind", "said"),
    [
        ({"task_time_limit": 1}, "function", "task_time_limit of 1s"),
        ({"task_time_limit": 1}, "shell", "task_time_limit of 1s"),
        ({"task_time_limit": 2}, "holds_gil", "task_time_limit of 2s"),
        ({"task_soft_time_limit": 1}, "function", "task_soft_time_limit of 1s"),
    ],
    indirect=["place"],
)
def test_a_time_limit_of_celerys_says_so(place: Place, kind: str, said: str) -> None:
    place.worker("prefork")
    run = place.start(kind, **({"seconds": 3600, "limit": 3600} if kind == "holds_gil" else {}))
    assert run.wait(timeout=60) is S.TERMINAL
    stage = run.workflow().stages[0]
    assert said in stage.context["error"]
    assert stage.tasks[0].attempts == 1
    assert len(notes(place.folder, "begun")) == 1


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
@pytest.mark.parametrize("what", ["SystemExit", "KeyboardInterrupt"])
def test_an_exit_of_the_bodys_own_is_its_failure(place: Place, pool: str, what: str) -> None:
    worker = place.worker(pool)
    before = worker.pool_pids()
    run = place.start("raises", what=what)
    assert run.wait(timeout=30) is S.TERMINAL
    details = run.workflow().stages[0].context["exception"]["details"]
    assert details["error"] == "mine"
    assert what in details["traceback"]
    assert worker.running
    assert worker.pool_pids() == before
