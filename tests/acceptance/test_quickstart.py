"""docs/quickstart.md, tried as a new user would: in an empty virtual environment, command by command."""

from __future__ import annotations

import base64
import json
import shlex
import sys
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.stories import ROOT, Story
from tests.processes import run_successfully

PAGE = "quickstart.md"
INSTALL_TIMEOUT = 300


class NewUser(Story):
    """Installs what the page says, and answers in Flower."""

    def installs(self, command: str) -> None:
        wheels = self.folder / "wheels"
        build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(wheels)]
        run_successfully(build, cwd=ROOT, timeout=INSTALL_TIMEOUT)
        (wheel,) = wheels.glob("*.whl")
        # The release the page would bring is the one that is being tested.
        # By version and folder: older releases of pip cannot combine the address of a wheel with extras.
        version = wheel.name.split("-")[1]
        (self.folder / "constraints.txt").write_text(f"stabilize-celery=={version}\n")
        this_release = ["--find-links", str(wheels), "-c", str(self.folder / "constraints.txt")]
        home = self.programs.parent
        venv.create(home, symlinks=True)
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.programs / "python"),
            "--disable-pip-version-check",
        ]
        run_successfully(
            # What is never imported need not be compiled.
            [*pip, *shlex.split(command)[1:], "--no-compile", *this_release],
            cwd=self.folder,
            env=self.env,
            timeout=INSTALL_TIMEOUT,
        )

    def run(self, command: str) -> str:
        if command.endswith("stabilize list"):
            # Here the page tells people to kill the worker, to start it again and to look at Flower.
            self.waiting()
        printed = super().run(command)
        if command == "python start.py":
            assert super().run(command) == printed
        return printed

    def waiting(self) -> None:
        (worker, *_) = self.running
        worker.kill()
        worker.start().wait_ready(90)
        listed = self.ask("/api/workflows")
        assert [(each["id"], each["name"]) for each in listed["workflows"]] == [(self.workflow_id, "order")]
        assert "Workflows" in self.text("/workflows")

    def ask(self, path: str) -> Any:
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        request = urllib.request.Request(f"http://{self.flower}{path}")
        request.add_header("Authorization", "Basic " + base64.b64encode(b"kim:secret").decode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(answer.read().decode())


@pytest.fixture
def new_user(
    tmp_path: Path, broker_url: str, empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[NewUser]:
    monkeypatch.syspath_prepend(tmp_path)
    user = NewUser(PAGE, tmp_path, broker_url, empty_postgres_url, tmp_path / "venv" / "bin")
    yield user
    user.end()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_new_user_gets_a_watched_workflow(new_user: NewUser) -> None:
    new_user.tell()
    assert new_user.printed["python first.py"] == "order 42, paid with ch_42\n"
    found = new_user.ask(f"/api/workflows/{new_user.workflow_id}")
    assert found["workflow"]["status"] == "SUCCEEDED"
    assert {stage["status"] for stage in found["stages"]} == {"SUCCEEDED"}
    assert "SUCCEEDED" in new_user.printed["celery -A shop stabilize show ID"]
