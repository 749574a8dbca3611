"""Engines of others, each a program in an environment of its own that is told what to run, line by line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from benchmarks.contenders.base import Contender
from benchmarks.environments import environment, installed
from benchmarks.servers import Servers
from benchmarks.shapes import Shape, requires
from tests.services import plain_address

REFERENCE = "stabilize, one process, no broker"
PROGRAMS = Path(__file__).resolve().parent.parent / "programs"


class Program(Contender):
    """A process that answers each line with the seconds it took.

    Args:
        package: what is installed and measured.
        requirement: how it is asked for, with its extras.
    """

    file = ""

    def __init__(self, name: str, package: str, requirement: str) -> None:
        super().__init__(name)
        self._package, self._requirement = package, requirement
        self._process: subprocess.Popen[str]

    @property
    def interpreter(self) -> Path:
        """Of its environment."""
        return environment(self._package, [self._requirement])

    def version(self) -> str:
        return installed(self.interpreter, self._package)

    def start(self, servers: Servers) -> None:
        url = plain_address(servers.postgres.create_database(self.slug))
        self.prepare(url)
        log = self.stack.enter_context((servers.folder / f"{self.slug}.log").open("w"))
        self._process = subprocess.Popen(
            [self.interpreter, PROGRAMS / self.file, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=servers.folder,
        )
        self.stack.callback(self._end)
        self._hear()

    def prepare(self, url: str) -> None:
        """Make its tables, where that is a step of its own."""

    def order(self, shape: Shape, size: int) -> Any:
        """What the program is told."""
        return [shape.name, size]

    def run(self, shape: Shape, size: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self.order(shape, size)) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._hear())
        if not isinstance(answer, float):
            raise RuntimeError(f"{self.name} did not end well: {answer}")
        return answer

    def _hear(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}")
        return line

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()


class Dbos(Program):
    """DBOS: a library that keeps what steps return in PostgreSQL."""

    file = "dbos_steps.py"

    def __init__(self) -> None:
        super().__init__("DBOS, one process, no broker", "dbos", "dbos")


class Reference(Program):
    """The public package ``stabilize``, whose documents this engine was built from."""

    file = "reference.py"

    def __init__(self) -> None:
        super().__init__(REFERENCE, "stabilize", "stabilize[postgres]")

    def prepare(self, url: str) -> None:
        command = [self.interpreter.parent / "stabilize", "mg-up", "--db-url", url]
        subprocess.run(command, check=True, capture_output=True)

    def order(self, shape: Shape, size: int) -> Any:
        each = shape.each or size
        return [requires(shape, each), size // each, shape.payload]
