from __future__ import annotations

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stabilize_celery.tasks import processes
from stabilize_celery.tasks.processes import ProcessResult, run_group
from stabilize_celery.tasks.run import TaskRun, running
from tests.unit.tasks.helpers import PATIENCE, await_end, is_running


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)


def shell(
    command: str, timeout: float = PATIENCE, limit: int = 10**6, stdin: bytes | None = None
) -> ProcessResult:
    return run_group(["/bin/sh", "-c", command], timeout=timeout, max_output_size=limit, stdin=stdin)


def pids(text: bytes) -> list[int]:
    return [int(line) for line in text.split()]


def test_keeps_both_streams_and_the_exit_code():
    result = shell("echo out; echo err >&2; exit 7")
    assert (result.stdout, result.stderr, result.exit_code, result.ended) == (b"out\n", b"err\n", 7, "exit")
    assert not result.truncated


def test_death_by_signal_is_a_negative_exit_code():
    assert shell("kill -s USR1 $$").exit_code == -10


def test_output_beyond_the_limit_is_read_and_dropped():
    result = shell("yes | head -c 3000000; echo done >&2; exit 3", limit=1000)
    assert len(result.stdout) == 1000
    assert (result.stdout_truncated, result.stderr_truncated, result.exit_code) == (True, False, 3)


def test_output_of_exactly_the_limit_is_not_truncated():
    assert not shell("printf 12345", limit=5).truncated
    assert shell("printf 123456", limit=5).truncated


def test_large_input_and_output_at_once_do_not_block_each_other():
    data = os.urandom(3_000_000)
    result = shell("cat", limit=10**7, stdin=data)
    assert result.stdout == data


def test_input_that_nobody_reads_is_no_error():
    assert shell("exec 0<&-; echo ok", stdin=b"x" * 3_000_000).stdout == b"ok\n"


def test_without_input_reading_ends_at_once():
    assert shell("cat; echo end").stdout == b"end\n"


def test_a_chatty_command_is_timed_out_too(short_grace: None):
    result = shell("yes", timeout=1, limit=10)
    assert (result.ended, result.exit_code, result.stdout) == ("timeout", -1, b"y\ny\ny\ny\ny\n")


@pytest.mark.usefixtures("short_grace")
def test_timeout_kills_the_tree_and_keeps_what_was_printed():
    stubborn = "trap '' TERM; echo $$; while :; do sleep 1; done"
    result = shell(f'echo $$; sh -c "{stubborn.replace("$", chr(92) + "$")}" & sleep 1000 & echo $!; wait', 2)
    found = pids(result.stdout)
    assert len(found) == 3
    assert result.ended == "timeout"
    assert all(await_end(pid) for pid in found)


def test_timeout_lets_the_command_clean_up(tmp_path: Path):
    mark = tmp_path / "cleaned"
    result = shell(
        f"trap 'echo bye; touch {mark}; exit 0' TERM; echo ready; while :; do sleep 0.05; done", 1.5
    )
    assert mark.exists()
    assert (result.stdout, result.exit_code, result.ended) == (b"ready\nbye\n", -1, "timeout")


def test_an_interrupt_kills_the_group_at_once(tmp_path: Path):
    run = TaskRun("w", "s", "t")
    fifo = tmp_path / "started"
    os.mkfifo(fifo)

    def interrupt() -> None:
        fifo.read_text()  # returns when the command has written its line
        run.interrupt()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with running(run):
        result = shell(f"sleep 1000 & echo $!; echo $$; echo go > {fifo}; wait")
    thread.join()
    assert result.ended == "interrupt"
    assert result.exit_code == -1
    assert all(await_end(pid) for pid in pids(result.stdout))


def test_an_interrupt_before_the_start_ends_it_too():
    run = TaskRun("w", "s", "t")
    run.interrupt()
    with running(run):
        assert shell("sleep 1000").ended == "interrupt"


def test_an_interrupt_after_the_end_is_harmless():
    run = TaskRun("w", "s", "t")
    with running(run):
        assert shell("echo ok").ended == "exit"
    run.interrupt()


@pytest.mark.usefixtures("short_grace")
def test_what_is_left_in_the_group_ends_with_the_command():
    result = shell("sleep 1000 & echo $!; sleep 1000 >/dev/null 2>&1 & echo $!")
    assert (result.ended, result.exit_code) == ("exit", 0)
    assert all(await_end(pid) for pid in pids(result.stdout))


@pytest.mark.usefixtures("short_grace")
def test_what_is_left_may_be_dead_before_its_output_is_looked_at(monkeypatch: pytest.MonkeyPatch):
    """It ends at once or a little later, as the machine has it: here its pipe is closed by then."""
    send = processes._Group.signal

    def and_wait(self: processes._Group, number: signal.Signals) -> None:
        send(self, number)
        if self._open_outputs():
            closed = select.poll()
            closed.register(self._process.stdout, 0)
            assert closed.poll(PATIENCE * 1000)

    monkeypatch.setattr(processes._Group, "signal", and_wait)
    result = shell("sleep 1000 & echo done")
    assert (result.stdout, result.ended, result.exit_code) == (b"done\n", "exit", 0)


def test_output_of_helpers_that_finish_late_is_kept():
    result = shell("(sleep 0.3; echo late) & echo early")
    assert result.stdout == b"early\nlate\n"


@pytest.fixture
def foreign_process() -> Iterator[list[int]]:
    found: list[int] = []
    yield found
    for pid in found:
        os.kill(pid, 9)


def test_a_daemon_that_has_left_the_group_stays(foreign_process: list[int], tmp_path: Path):
    fifo = tmp_path / "left"
    os.mkfifo(fifo)
    daemon = f"echo $$ > {fifo}; exec sleep 1000"
    foreign_process += pids(shell(f"setsid sh -c '{daemon}' >/dev/null 2>&1 & cat {fifo}").stdout)
    assert is_running(foreign_process[0])


def test_no_descriptor_is_left_open():
    shell("true")  # the orphan guard keeps one
    before = os.listdir("/proc/self/fd")
    shell("echo a; cat", stdin=b"b")
    with pytest.raises(FileNotFoundError):
        run_group(["/no/such/program"], timeout=1, max_output_size=1)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_an_exception_in_the_waiting_thread_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch):
    started: list[int] = []

    def fail(self: processes._Group, wake: int) -> ProcessResult:
        started.append(self._process.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(processes._Group, "run", fail)
    with pytest.raises(KeyboardInterrupt):
        run_group([sys.executable, "-c", "import time; time.sleep(1000)"], timeout=60, max_output_size=1)
    assert await_end(started[0])


def test_platforms_without_exit_descriptors(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "pidfd_open")
    result = shell("echo a; exec >&- 2>&-; sleep 0.1; exit 5")
    assert (result.stdout, result.exit_code) == (b"a\n", 5)
    assert shell("sleep 1000", timeout=0.1).ended == "timeout"
