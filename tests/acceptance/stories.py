"""A page of the documentation as a story: its blocks are run from the top to the bottom, on servers of their own.

A Python block whose first line is a file's name, ``# shop.py``, is that file.  Any other Python block is run in this
process.  Of a block of shell commands every line is run; ``celery ... worker`` and ``... stabilize flower`` stay running
until the end of the story, ``ID`` is the workflow started last.  Nothing on a page is changed but the addresses of
PostgreSQL, RabbitMQ and Flower.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from tests.acceptance.documents import blocks_of, execute
from tests.processes import free_port, run_successfully
from tests.worker import WorkerProcess

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: Languages of blocks that are nobody's code.
_SHOWN = frozenset({"text", "mermaid"})
_FILE = re.compile(r"# (\S+\.\w+)$")
_ID = re.compile(r"[0-9A-Z]{26}")
_TIMEOUT = 100


class Story:
    """Runs one page.

    Args:
        page: its path below ``docs``.
        folder: where its files are made and its commands are run.
        broker, database: what replaces the addresses on the page.
        programs: the folder of ``python``, ``celery`` and ``stabilize-celery``.
    """

    def __init__(
        self,
        page: str,
        folder: Path,
        broker: str,
        database: str,
        programs: Path = Path(sys.executable).parent,
    ) -> None:
        self.page = page
        self.blocks = blocks_of(DOCS / page)
        self.folder = folder
        self.programs = programs
        self.flower = f"127.0.0.1:{free_port()}"
        self.addresses = {
            "amqp://guest:guest@localhost:5672//": broker,
            "postgresql+psycopg://shop:shop@localhost/shop": database,
        }
        path = os.pathsep.join([str(programs), os.environ.get("PATH", "")])
        self.env = {**os.environ, "PATH": path, "COLUMNS": "200"}
        # Nothing but what is installed; and compiled once, not by every command.
        for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
            self.env.pop(name, None)
        self.namespace: dict[str, Any] = {"__name__": "story"}
        self._printed_id = ""
        #: What each command printed.
        self.printed: dict[str, str] = {}
        self.running: list[WorkerProcess] = []
        self._starting: list[WorkerProcess] = []

    def tell(self) -> Story:
        """Run every block."""
        for block in self.blocks:
            if block.language == "python":
                self._python(block.text, f"{self.page}:{block.line}")
            elif block.language == "sh":
                for command in filter(
                    None, (line.split("  #")[0].strip() for line in block.text.splitlines())
                ):
                    self.run(command)
            else:
                assert block.language in _SHOWN, f"{self.page}:{block.line} is run by nobody"
        return self

    def end(self) -> None:
        """End what still runs, and forget the modules of the page."""
        for process in self.running:
            process.kill()
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(self.folder)):
                for value in vars(module).values():
                    if type(value).__name__ in ("Stabilize", "Celery"):
                        value.close()
                del sys.modules[name]
        stabilize = self.namespace.get("stabilize")
        if stabilize is not None:
            stabilize.close()

    def _python(self, text: str, name: str) -> None:
        for told, ours in self.addresses.items():
            text = text.replace(told, ours)
        first = _FILE.match(text.split("\n", 1)[0])
        if first is not None:
            path = self.folder / first.group(1)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        self._wait_for_workers()
        execute(text, self.namespace, name)

    def run(self, command: str) -> str:
        """Run one command, to its end or until it is ready."""
        words = shlex.split(command)
        words = [self.workflow_id if word == "ID" else word for word in words]
        if words[:2] == ["pip", "install"]:
            self.installs(command)
        elif words[0] == "docker":
            self.serves(command)
        elif "worker" in words:
            self._starting.append(
                self._keep([*words, "--loglevel", "INFO", "--without-gossip", "--without-mingle"])
            )
        elif "flower" in words:
            address, port = self.flower.split(":")
            self._keep([*words, f"--address={address}", f"--port={port}"]).wait_log("Visit me at", 90)
        else:
            self._wait_for_workers()
            self.printed[command] = self._finish(words)
        return self.printed.get(command, "")

    @property
    def workflow_id(self) -> str:
        """Of the last workflow that a command started, or else that Python code called ``run``."""
        return self._printed_id or str(self.namespace["run"].id)

    def installs(self, command: str) -> None:
        """What the page installs is here already: only the names are looked at."""
        extras = re.findall(r"stabilize-celery\[(\w+)\]", command)
        assert extras, f"{command}: this is no extra of ours"
        pyproject = (ROOT / "pyproject.toml").read_text()
        assert all(f"\n{extra} = [" in pyproject for extra in extras), command

    def serves(self, command: str) -> None:
        """Servers that a page starts in containers are replaced; their images must be those of the deployment."""
        image = shlex.split(command)[-1]
        assert f"image: {image}\n" in (ROOT / "docker-compose.yml").read_text(), command

    def _wait_for_workers(self) -> None:
        """Only what follows needs them: several start side by side."""
        while self._starting:
            self._starting.pop().wait_ready(90)

    def _keep(self, words: list[str]) -> WorkerProcess:
        command = ["env", "-u", "PYTHONPATH", "-u", "PYTHONDONTWRITEBYTECODE", *self._program(words)]
        log = self.folder / f"log-{len(self.running)}"
        process = WorkerProcess("", command=command, log=log, env=self.env, cwd=self.folder)
        self.running.append(process)
        return process.start()

    def _finish(self, words: list[str]) -> str:
        done = run_successfully(self._program(words), cwd=self.folder, env=self.env, timeout=_TIMEOUT)
        if _ID.fullmatch(done.stdout.strip()):
            self._printed_id = done.stdout.strip()
        return done.stdout

    def _program(self, words: list[str]) -> list[str]:
        found = self.programs / words[0]
        return [str(found), *words[1:]] if found.exists() else words
