"""Real Celery workers as child processes: what users run, started, watched and killed by tests."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal

import psutil

from tests.processes import LOG_LINES_IN_ERRORS, ProcessFailed, wait_until
from tests.reaper import reaper

ROOT = Path(__file__).resolve().parent.parent
READY = re.compile(r"celery@\S+ ready\.|\] \S+@\S+ ready\.")
Pool = Literal["prefork", "threads", "solo"]


class WorkerProcess:
    """`celery -A app worker` in its own process group.

    A thread copies the worker's output line by line into the log file, so that waiting for a line is waiting
    for an event and not for the next look at a file.
    """

    def __init__(
        self,
        app: str,
        *,
        log: Path,
        pool: Pool = "prefork",
        concurrency: int = 1,
        queues: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        arguments: Sequence[str] = (),
        name: str | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        """`command` replaces the whole command line, for tests of commands that stand in files."""
        self.name = name or f"w{uuid.uuid4().hex[:8]}@localhost"
        self.log = log
        self.cwd = cwd or log.parent
        self.command = [sys.executable, "-m", "celery", "-A", app, "worker", "--hostname", self.name]
        self.command += ["--pool", pool, "--concurrency", str(concurrency), "--loglevel", "INFO"]
        # Gossip and mingle cost a second at start and tell the tests nothing.
        self.command += ["--without-gossip", "--without-mingle"]
        if queues:
            self.command += ["--queues", ",".join(queues)]
        self.command += arguments
        if command is not None:
            self.command = list(command)
        self._env = {**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})}
        paths = [str(self.cwd), str(ROOT), *filter(None, [self._env.get("PYTHONPATH")])]
        self._env["PYTHONPATH"] = os.pathsep.join(paths)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._lines: list[str] = []
        self._changed = threading.Condition()
        self._ended = False

    @property
    def pid(self) -> int:
        """The main process, which is the leader of the group."""
        if self._process is None:
            raise ProcessFailed(f"worker {self.name} was not started")
        return self._process.pid

    @property
    def running(self) -> bool:
        """True until the main process has ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """The main process's exit code; negative: the signal that ended it; None: still running."""
        return None if self._process is None else self._process.poll()

    @property
    def output(self) -> str:
        """Everything it wrote since its last start; the log file keeps earlier starts too."""
        with self._changed:
            return "\n".join(self._lines)

    def pool_pids(self) -> list[int]:
        """The processes of a prefork pool."""
        return [child.pid for child in psutil.Process(self.pid).children()]

    def start(self) -> WorkerProcess:
        """Start it and return at once; `wait_ready` waits."""
        if self.running:
            return self
        self._lines, self._ended = [], False
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._env,
            cwd=self.cwd,
            start_new_session=True,
            text=True,
            errors="replace",
        )
        reaper.watch_group(self._process.pid)
        self._reader = threading.Thread(target=self._copy_output, args=(self._process,), daemon=True)
        self._reader.start()
        return self

    def wait_ready(self, timeout: float = 30) -> WorkerProcess:
        """Wait until it consumes from its queues."""
        self.wait_log(READY, timeout)
        return self

    def wait_log(self, pattern: str | re.Pattern[str], timeout: float = 30, *, count: int = 1) -> str:
        """Wait until `count` lines since the start match, and return the last of them."""
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                found = [line for line in self._lines if expression.search(line)]
                if len(found) >= count:
                    return found[count - 1]
                left = deadline - time.monotonic()
                if self._ended or left <= 0:
                    state = "ended" if self._ended else f"was silent for {timeout} s"
                    raise ProcessFailed(
                        f"worker {self.name} {state} before it wrote {expression.pattern!r}\n{self._tail()}"
                    )
                self._changed.wait(left)

    def kill(self, number: int = signal.SIGKILL, *, group: bool | None = None) -> None:
        """Send a signal: SIGKILL to the whole group and wait for its end, any other to the main process.

        `group=False` with SIGKILL kills the main process alone, as the kernel's memory killer may do.
        """
        whole = number == signal.SIGKILL if group is None else group
        if self._process is None:
            return
        below = psutil.Process(self.pid).children(recursive=True) if self.running else []
        try:
            if whole:
                os.killpg(self.pid, number)
            elif self.running:
                os.kill(self.pid, number)
        except ProcessLookupError:
            return
        if number == signal.SIGKILL:
            self.wait()
            if whole:
                for process in below:
                    if process.is_running():
                        process.kill()
                wait_until(lambda: not any(_alive(process) for process in below), 10, "end of the pool")

    def stop(self, timeout: float = 30) -> int:
        """Warm shutdown: running tasks finish. Returns the exit code."""
        self.kill(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 30) -> int:
        """Wait for its end and return the exit code."""
        if self._process is None:
            return 0
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ProcessFailed(
                f"worker {self.name} is still running after {timeout} s\n{self._tail()}"
            ) from None
        reaper.forget_group(self._process.pid)
        if self._reader is not None:
            # A child that outlives the main process keeps the pipe open: do not wait for it here.
            self._reader.join(2)
        return code

    def __enter__(self) -> WorkerProcess:
        """Start it and wait until it is ready."""
        try:
            return self.start().wait_ready()
        except BaseException:
            self.kill()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it at once: a test that cares how it ends calls `stop` or `kill` itself."""
        self.kill()

    def _tail(self) -> str:
        return "\n".join(self._lines[-LOG_LINES_IN_ERRORS:])

    def _copy_output(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with self.log.open("a") as log, process.stdout as stream:
            for line in stream:
                log.write(line)
                log.flush()
                with self._changed:
                    self._lines.append(line.rstrip("\n"))
                    self._changed.notify_all()
        with self._changed:
            if self._process is process:
                self._ended = True
                self._changed.notify_all()


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
