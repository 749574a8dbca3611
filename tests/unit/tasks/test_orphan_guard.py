from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from stabilize_celery.tasks.processes import _Guard, _guard, run_group
from tests.unit.tasks.helpers import await_end, is_running

WORKER = """
import os, sys, threading
from stabilize_celery.tasks.processes import _guard, run_group

def tell(sign, group, tell=_guard.tell):
    tell(sign, group)
    print("guarded", flush=True)

_guard.tell = tell

def one():
    run_group(["/bin/sh", "-c", sys.argv[1]], timeout=1000, max_output_size=100)

{body}
"""
COMMAND = "sleep 1000 >/dev/null 2>&1 & echo $! > {0}; echo $$ > {0}; exec sleep 1000"


def start_worker(body: str, command: str) -> subprocess.Popen[bytes]:
    script = WORKER.format(body=textwrap.dedent(body))
    return subprocess.Popen([sys.executable, "-c", script, command], stdout=subprocess.PIPE)


def read_pids(fifo: Path) -> list[int]:
    found: list[int] = []
    while len(found) < 2:  # each echo opens and closes the pipe
        found += map(int, fifo.read_text().split())
    return found


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "pids"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("body", ["one()", "t = threading.Thread(target=one); t.start(); t.join()"])
def test_nothing_survives_a_killed_worker(fifo: Path, body: str):
    worker = start_worker(body, COMMAND.format(fifo))
    started = read_pids(fifo)
    assert all(map(is_running, started))
    with worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"guarded\n"
        worker.kill()
    assert all(await_end(pid) for pid in started)


def test_a_command_that_ended_is_off_the_list():
    for argv in (["true"], ["/no/such/program"]):
        with contextlib.suppress(FileNotFoundError):
            run_group(argv, timeout=60, max_output_size=1)
        assert not _guard._groups


def test_groups_that_ended_are_forgotten_and_the_others_killed():
    guard = _Guard()
    processes = [subprocess.Popen(["sleep", "1000"], start_new_session=True) for _ in range(4)]
    try:
        for process in processes:
            guard.tell("+", process.pid)
        guard.tell("-", processes[0].pid)
        guard.tell("-", processes[2].pid)
        guard.close()
        assert processes[1].wait() == processes[3].wait() == -signal.SIGKILL
        assert is_running(processes[0].pid)
        assert is_running(processes[2].pid)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_guard_that_was_killed_is_replaced():
    guard = _Guard()
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as first:
        guard.tell("+", first.pid)
        assert guard._shell is not None
        guard._shell.kill()
        guard._shell.wait()
        with subprocess.Popen(["sleep", "1000"], start_new_session=True) as second:
            guard.tell("+", second.pid)
            guard.close()
            assert first.wait() == second.wait() == -signal.SIGKILL


def test_a_child_forgets_the_guard_of_its_parent():
    guard = _Guard()
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:
        guard.tell("+", process.pid)
        shell = guard._shell
        assert shell is not None
        keep = os.dup(shell.stdin.fileno())  # type: ignore[union-attr]
        guard.forget()
        assert guard._shell is None
        assert not guard._groups
        assert is_running(process.pid)
        os.close(keep)  # now the input of the shell has ended everywhere
        assert process.wait() == -signal.SIGKILL
        shell.returncode = None
        shell.wait()
