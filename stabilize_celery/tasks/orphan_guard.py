"""No process group outlives the worker that started it, not even a worker that was killed with SIGKILL.

A killed worker runs no code any more, so somebody else has to clean up.  ``PR_SET_PDEATHSIG`` reaches only
the direct child, follows the thread that forked instead of the process, and needs a ``preexec_fn``, which is
unsafe in a process with threads.  So each worker process that runs commands keeps one small shell beside it,
in a session of its own.  The worker writes the groups it starts and ends to the shell's standard input; when
the worker dies, however it dies, that input ends, and the shell kills the groups still on its list.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Iterator

_SCRIPT = """
trap '' INT TERM HUP
groups=' '
while read -r op group; do
  case $op in
    +) groups="$groups$group " ;;
    -) groups="${groups%% $group *} ${groups#* $group }" ;;
  esac
done
for group in $groups; do kill -s KILL -- "-$group"; done
"""


class _Guard:
    """The shell of one worker process and the groups it knows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shell: subprocess.Popen[bytes] | None = None
        self._groups: set[int] = set()

    def ready(self) -> None:
        """Start the shell beforehand, so that nothing runs unguarded while it starts."""
        with self._lock:
            if self._shell is None or self._shell.poll() is not None:
                self._start()

    def add(self, group: int) -> None:
        with self._lock:
            self._groups.add(group)
            self._tell(f"+ {group}\n")

    def remove(self, group: int) -> None:
        with self._lock:
            self._groups.discard(group)
            self._tell(f"- {group}\n")

    def _tell(self, line: str) -> None:
        """Write one line; a shell that is gone is replaced and told everything anew."""
        if not self._write(line):
            self._start()

    def _start(self) -> None:
        self._close()
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        self._write("".join(f"+ {group}\n" for group in sorted(self._groups)))

    def _write(self, text: str) -> bool:
        if self._shell is None or self._shell.stdin is None:
            return False
        try:
            # Far below PIPE_BUF, so a line is never torn.
            os.write(self._shell.stdin.fileno(), text.encode())
        except OSError:
            return False
        return True

    def _close(self) -> None:
        shell, self._shell = self._shell, None
        if shell is not None and shell.stdin is not None:
            with contextlib.suppress(OSError):
                shell.stdin.close()
            shell.wait()

    def close(self) -> None:
        """End the shell; groups that are still on its list are killed."""
        with self._lock:
            self._close()

    def forget(self) -> None:
        """In a forked child: the shell is the parent's, and would wait for a copy of its input too."""
        shell, self._shell = self._shell, None
        self._lock = threading.Lock()
        self._groups = set()
        if shell is not None and shell.stdin is not None:
            shell.stdin.close()
            # Not this process's child: nothing to wait for, nothing to warn about.
            shell.returncode = 0


_guard = _Guard()
atexit.register(_guard.close)
os.register_at_fork(after_in_child=_guard.forget)


@contextlib.contextmanager
def guarded(start: Callable[[], subprocess.Popen[bytes]]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the leader of a process group that is killed if this process dies while the block runs.

    What is left is the moment between the start and the line that announces it, some ten microseconds.
    """
    _guard.ready()
    process = start()
    _guard.add(process.pid)
    try:
        yield process
    finally:
        _guard.remove(process.pid)
