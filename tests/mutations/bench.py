"""A copy of the project in which changes are made one after the other, and what their killers say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.mutations.change import Change, Place, locate

ROOT = Path(__file__).parents[2]
PACKAGE = "stabilize_celery"
#: Seconds for one test, and for all killers that are run at once.
TEST_LIMIT, RUN_LIMIT = 300, 1800
#: What says that the change is no program any more, rather than a wrong one.
_NO_PROGRAM = {"SyntaxError", "IndentationError", "ImportError", "ModuleNotFoundError", "NameError"}
_LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "results", "node_modules")


class WrongRunError(Exception):
    """The killers could not be run as they should: nothing is known of the change."""


@dataclass(frozen=True)
class Verdict:
    """What came of a change: the killers that did not fail, with why; none if it is killed by each."""

    change: Change
    survived: dict[str, str]

    def __str__(self) -> str:
        if not self.survived:
            return f"killed    {self.change.name}"
        told = "; ".join(f"{killer}: {why}" for killer, why in self.survived.items())
        return f"SURVIVES  {self.change.name} ({self.change.wrong})\n          {told}"


class Bench:
    """One copy of the project.

    Args:
        folder: where it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT, folder, ignore=_LEFT_OUT, dirs_exist_ok=True)
        self._witness = folder / "witness.json"

    def judge(self, change: Change) -> Verdict:
        """Make a change, run its killers, and take it back.

        Raises:
            StaleChangeError: its text is not found.
            WrongRunError: the killers could not be run, or failed for the wrong reason.
        """
        place = locate(change, self.folder / PACKAGE)
        compile(place.changed(), str(place.file), "exec")
        before = place.file.read_text()
        try:
            self._write(place, place.changed())
            seen = self.run(change.killers, change.served)
        finally:
            self._write(place, before)
        return Verdict(change, _survived(change, seen["failures"]))

    def fails_unchanged(self, changes: Sequence[Change]) -> set[str]:
        """Run the killers of some changes on the package as it is; returns those that fail: they kill nothing.

        Raises:
            WrongRunError: they could not be run.
        """
        failed: set[str] = set()
        for served in (False, True):
            killers = sorted({k for change in changes if change.served is served for k in change.killers})
            if killers:
                nodes = {failure[0] for failure in self.run(killers, served)["failures"]}
                failed |= {k for k in killers if any(_is_of(node, k) for node in nodes)}
        return failed

    def run(self, killers: Sequence[str], served: bool) -> dict[str, Any]:
        """Run some tests in the copy; see ``witness.py`` for what is returned.

        Raises:
            WrongRunError: they were not collected, another package was tested, or it took too long.
        """
        self._witness.unlink(missing_ok=True)
        chosen = [] if served else ["-m", "not served"]
        options = [
            "-q",
            "-p",
            "tests.mutations.witness",
            "-p",
            "no:cacheprovider",
            "--timeout",
            str(TEST_LIMIT),
        ]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV"))}
        environment |= {"PYTHONPATH": str(self.folder), "STABILIZE_WITNESS": str(self._witness)}
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *chosen, *killers],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=RUN_LIMIT,
            check=False,
        )
        if not self._witness.exists():
            raise WrongRunError(f"pytest ended {ran.returncode} without a word: {ran.stdout[-3000:]}")
        seen: dict[str, Any] = json.loads(self._witness.read_text())
        if seen["errors"] or not seen["collected"] or ran.returncode not in (0, 1):
            raise WrongRunError(f"{killers} cannot be collected: {seen['errors'] or ran.stdout[-3000:]}")
        if Path(seen["package"]).parent != self.folder / PACKAGE:
            raise WrongRunError(f"{seen['package']} was tested, and not the copy in {self.folder}")
        return seen

    def _write(self, place: Place, text: str) -> None:
        place.file.write_text(text)
        # Within a second and of the same length, its bytecode would pass for that of another text.
        for compiled in (place.file.parent / "__pycache__").glob(f"{place.file.stem}.*.pyc"):
            compiled.unlink()


def _survived(change: Change, failures: Sequence[Sequence[str]]) -> dict[str, str]:
    survived: dict[str, str] = {}
    for killer in change.killers:
        mine = [f for f in failures if _is_of(f[0], killer)]
        counted = [f for f in mine if _counts(*f)]
        if not counted:
            told = "; ".join(f"{when} {kind}: {text}" for _, when, kind, text in mine)
            survived[killer] = f"fails for the wrong reason, {told}" if mine else "passes"
    return survived


def _is_of(node: str, killer: str) -> bool:
    return node == killer or node.startswith(killer + "[")


def _counts(_node: str, when: str, kind: str, text: str) -> bool:
    """Whether a failure says that the engine does wrong."""
    return when == "call" and kind not in _NO_PROGRAM and "from pytest-timeout" not in text
