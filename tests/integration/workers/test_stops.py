"""Every way of stopping a worker: what it was doing is handed back, does not count, and goes on elsewhere at once.

Eighteen combinations run by default; ``make stops`` (``STOPS=all``) runs all.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable

import psutil
import pytest

from stabilize_celery import WorkflowStatus as S
from tests.integration.workers.conftest import Place
from tests.worker import WorkerProcess, wait_until

POOLS = ("prefork", "threads", "solo")
BODIES = ("function", "deaf", "shell", "python", "celery", "celery_late")
#: Three times the second or two that another worker takes.
SOON = 6.0


# ---------------------------------------------------------------------- ways of stopping


def tree(worker: WorkerProcess) -> list[psutil.Process]:
    main = psutil.Process(worker.pid)
    return [main, *main.children(recursive=True)]


def control_group(worker: WorkerProcess, number: int = signal.SIGTERM) -> None:
    """What systemd does with ``KillMode=control-group``: every process, those of commands too."""
    for process in tree(worker):
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def group(worker: WorkerProcess) -> None:
    os.killpg(worker.pid, signal.SIGTERM)


def term(worker: WorkerProcess) -> None:
    worker.kill(signal.SIGTERM)


def term_one(worker: WorkerProcess) -> None:
    for pid in worker.pool_pids():
        os.kill(pid, signal.SIGTERM)


def quit_(worker: WorkerProcess) -> None:
    worker.kill(signal.SIGQUIT)


def interrupt(worker: WorkerProcess) -> None:
    os.killpg(worker.pid, signal.SIGINT)


def interrupt_twice(worker: WorkerProcess) -> None:
    interrupt(worker)
    worker.wait_log("Hitting Ctrl\\+C again")
    time.sleep(0.3)  # A terminal does not send both at the same moment.
    interrupt(worker)


WAYS: dict[str, Callable[[WorkerProcess], None]] = {
    "term": term,
    "group": group,
    "control-group": control_group,
    "one-process": term_one,
    "quit": quit_,
    "interrupt": interrupt,
    "interrupt-twice": interrupt_twice,
    "remapped": control_group,
    "soft": quit_,
}
#: The worker waits for its tasks.
WARM = {"term", "interrupt"}


def waits(pool: str, kind: str, way: str) -> bool:
    """Whether the worker lets the body end by itself."""
    if way in WARM:
        return True
    commands = kind in ("shell", "python")
    return pool != "prefork" and (way == "group" or (way == "control-group" and not commands))


def possible(pool: str, kind: str, way: str) -> bool:
    if way == "one-process":
        return pool == "prefork"
    # The worker waits for it, for an hour.
    return not (kind == "deaf" and waits(pool, kind, way))


CASES = [case for case in itertools.product(POOLS, BODIES, WAYS) if possible(*case)]


#: Each pool with each way that differs there, and each kind of body with ways that end it and ways that do not.
CHOSEN = [
    ("prefork", "function", "group"),
    ("prefork", "shell", "control-group"),
    ("prefork", "python", "one-process"),
    ("prefork", "deaf", "quit"),
    ("prefork", "shell", "interrupt-twice"),
    ("prefork", "function", "remapped"),
    ("prefork", "python", "soft"),
    ("prefork", "celery", "quit"),
    ("prefork", "celery_late", "one-process"),
    ("prefork", "celery", "term"),
    ("threads", "function", "quit"),
    ("threads", "deaf", "interrupt-twice"),
    ("threads", "shell", "control-group"),
    ("threads", "celery", "remapped"),
    ("threads", "python", "interrupt"),
    ("solo", "function", "soft"),
    ("solo", "shell", "quit"),
    ("solo", "python", "term"),
]


def chosen() -> list[tuple[str, str, str]]:
    return CASES if os.environ.get("STOPS") == "all" else CHOSEN


def test_each_value_of_each_kind_is_among_the_chosen() -> None:
    assert set(CHOSEN) <= set(CASES)
    assert {case[0] for case in CHOSEN} == set(POOLS)
    assert {case[1] for case in CHOSEN} == set(BODIES)
    assert {case[2] for case in CHOSEN} == set(WAYS)


@pytest.mark.slow
@pytest.mark.parametrize(("pool", "kind", "way"), chosen())
def test_a_stop(place: Place, pool: str, kind: str, way: str) -> None:
    env = {"REMAP_SIGTERM": "SIGQUIT"} if way == "remapped" else {}
    conf = {"worker_soft_shutdown_timeout": 0.5} if way == "soft" else {}
    workers = place.two_workers(pool, env=env, conf=conf)
    run = place.start(kind)
    pid = place.begun()[0]["pid"]
    (first,) = [worker for worker in workers if pid in {process.pid for process in tree(worker)}]
    before = tree(first)

    WAYS[way](first)
    if waits(pool, kind, way):
        first.wait_log("Warm shutdown")
        place.open()
        assert first.wait(20) in (0, 1)  # Celery's own: 1 after Ctrl-C.
    else:
        place.begun(2, within=SOON)
        if way != "one-process":
            first.wait(20)
            wait_until(lambda: not any(map(alive, before)), 10, "the end of what it had started")
        place.open()

    assert run.wait(timeout=20) is S.SUCCEEDED
    assert run.workflow().stages[0].tasks[0].attempts == 1
    begun = place.begun()
    assert len(begun) == (1 if waits(pool, kind, way) else 2)
    assert {entry.get("attempt", 1) for entry in begun} <= {0, 1}


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
