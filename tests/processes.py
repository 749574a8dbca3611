"""Child processes of the test run: started in their own group, logged, and never left behind."""

from __future__ import annotations

import contextlib
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from tests.reaper import reaper

LOG_LINES_IN_ERRORS = 30


class ProcessFailed(RuntimeError):
    """A child process ended or did not get ready; the message carries the end of its log."""


def free_port() -> int:
    """A loopback port that is free now. Another process may still take it: callers retry with a new one."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def temporary_folder(prefix: str, owner: str | None = None) -> Path:
    """A folder that goes away with the test run, even when the run is killed."""
    folder = Path(tempfile.mkdtemp(prefix=f"stabilize-{prefix}-"))
    reaper.watch_folder(folder)
    if owner is not None:
        shutil.chown(folder, owner)
    return folder


def run_successfully(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float | None = 100,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; an exit status other than 0 is a failure that tells what the command wrote."""
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
    return done


def _zombie_or_gone(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    return True


class ChildProcess:
    """A command in its own process group whose output goes to a file."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: str | None = None,
    ) -> None:
        self.command = list(command)
        self.log = log
        self._env = dict(env) if env is not None else None
        self._cwd = cwd
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """The leader's process id, which is the group's id too."""
        if self._process is None:
            raise ProcessFailed(f"{self.command[0]} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """True until the leader has ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """The leader's exit code; negative: the signal that ended it; None: still running."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it; a second start after its end appends to the same log."""
        if self.running:
            return
        account: dict[str, object] = {}
        if self._user is not None:
            account = {"user": self._user, "group": self._user_group(), "extra_groups": []}
        with self.log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(  # type: ignore[call-overload]
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._env,
                cwd=self._cwd,
                start_new_session=True,
                **account,
            )
        reaper.watch_group(self.pid)

    def _user_group(self) -> int:
        assert self._user is not None
        return pwd.getpwnam(self._user).pw_gid

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the leader, or to the whole group."""
        with contextlib.suppress(ProcessLookupError):
            if group:
                os.killpg(self.pid, number)
            elif self.running:
                os.kill(self.pid, number)

    def descendants(self) -> list[psutil.Process]:
        """Every process below the leader, also those that moved to a session of their own."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found: list[psutil.Process] = psutil.Process(self.pid).children(recursive=True)
            return found
        return []

    def kill_tree(self) -> None:
        """SIGKILL the leader and everything below it, and wait until all of them are gone."""
        if self._process is None:
            return
        below = self.descendants()
        self.signal(signal.SIGKILL, group=True)
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.wait(10)
        wait_until(
            lambda: all(_zombie_or_gone(process) for process in below),
            10,
            f"end of {self.command[0]}'s children",
        )

    def wait(self, timeout: float) -> int:
        """Wait for the leader's end and return its exit code."""
        if self._process is None:
            return 0
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ProcessFailed(
                f"{self.command[0]} is still running after {timeout} s\n{self.tail()}"
            ) from None
        reaper.forget_group(self._process.pid)
        return code

    def output(self) -> str:
        """What it wrote since its last start."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def tail(self) -> str:
        """The end of its log, for error messages."""
        return "\n".join(self.output().splitlines()[-LOG_LINES_IN_ERRORS:])


def wait_until(condition: Callable[[], object], timeout: float, what: str, *, pause: float = 0.02) -> None:
    """Try `condition` until it is true. Only for conditions that nothing announces."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"gave up after {timeout} s waiting for: {what}")
        time.sleep(pause)


def wait_ready(process: ChildProcess, answers: Callable[[], object], timeout: float) -> None:
    """Wait until the server answers; its early end is reported at once, with its log."""

    def ready() -> bool:
        if not process.running:
            raise ProcessFailed(f"{process.command[0]} ended with {process.returncode}\n{process.tail()}")
        return bool(answers())

    try:
        wait_until(ready, timeout, f"{process.command[0]} to answer")
    except TimeoutError as error:
        raise ProcessFailed(f"{error}\n{process.tail()}") from None
