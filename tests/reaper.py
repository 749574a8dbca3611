"""A small process that outlives a killed test run and cleans up behind it.

`atexit` does not run when a test run is killed with SIGKILL, and a forgotten PostgreSQL or Celery worker
then stays for days. The reaper holds the read end of a pipe: when the run is gone, for whatever reason, the
pipe closes, and everything that was registered and not released is killed and removed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE_SECONDS = 3.0


class Reaper:
    """The test run's end of the pipe. Harmless to use from several threads: each note is one short write."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def watch_group(self, pid: int) -> None:
        """Kill the process group that `pid` leads once this run is gone."""
        self._note(f"group {pid}")

    def forget_group(self, pid: int) -> None:
        """The group ended in an orderly way; its number may belong to someone else from now on."""
        self._note(f"forget {pid}")

    def watch_folder(self, folder: Path) -> None:
        """Remove the folder once this run is gone."""
        self._note(f"folder {folder}")

    def _note(self, line: str) -> None:
        if self._process is None or self._owner != os.getpid():
            self._owner = os.getpid()
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-E", __file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                cwd="/",
            )
            # Its only way to end is the end of this process: Popen's own "still running" warning is moot.
            self._process.returncode = 0
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            os.write(self._process.stdin.fileno(), f"{line}\n".encode())


reaper = Reaper()


def _signal_all(groups: set[int], number: int) -> set[int]:
    alive = set()
    for group in groups:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)
            alive.add(group)
    return alive


def main() -> None:
    """Read notes until the pipe closes, then clean up."""
    groups: set[int] = set()
    folders: list[str] = []
    for line in sys.stdin:
        verb, _, rest = line.rstrip("\n").partition(" ")
        if verb == "group":
            groups.add(int(rest))
        elif verb == "forget":
            groups.discard(int(rest))
        elif verb == "folder":
            folders.append(rest)
    # SIGQUIT is PostgreSQL's "stop at once and take your children along"; the others may ignore it.
    groups = _signal_all(groups, signal.SIGQUIT)
    deadline = time.monotonic() + GRACE_SECONDS
    while groups and time.monotonic() < deadline:
        time.sleep(0.05)
        groups = _signal_all(groups, 0)
    _signal_all(groups, signal.SIGKILL)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
