"""What docs/how-to/simulate.md says is run."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from stabilize_celery.testing.simulation.invariants import INVARIANTS
from tests.acceptance.documents import blocks_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "simulate.md"
BLOCKS = blocks_of(PAGE)
COMMANDS = [
    line.split("  #")[0].strip()
    for block in BLOCKS
    if block.language == "sh"
    for line in block.text.splitlines()
]
UNSAFE = "charges[len(charges)] = order_id"


@pytest.fixture
def folder(tmp_path):
    first, waiting = [block.text for block in BLOCKS if block.language == "python"]
    (tmp_path / "test_order.py").write_text(first)
    (tmp_path / "test_waiting.py").write_text(waiting)
    return tmp_path


def run(command, folder):
    program, *arguments = shlex.split(command)
    words = {"pytest": [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"], "python": [sys.executable]}
    return subprocess.run(
        [*words[program], *arguments], cwd=folder, capture_output=True, text=True, timeout=110, check=False
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_run(command, folder):
    done = run(command, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    if "--stabilize-simulate=20" in command:
        assert "20 passed" in done.stdout


def test_the_workflow_that_waits_is_approved(folder):
    done = run("pytest test_waiting.py --stabilize-simulate=5", folder)
    assert "5 passed" in done.stdout, done.stdout + done.stderr


def test_the_story_is_the_one_of_the_failure_it_tells(folder):
    (told,) = [block.text for block in BLOCKS if block.language == "text"]
    told, command = told.split("\nto see it again: ")
    path = folder / "test_order.py"
    source = path.read_text()
    assert f"`{UNSAFE}`" in PAGE.read_text()
    path.write_text(source.replace("charges.setdefault(key, order_id)", UNSAFE))
    done = run(command, folder)
    assert done.returncode == 1
    assert f"to see it again: {command.strip()}" in done.stdout
    for line in told.rstrip().splitlines():
        assert line.removesuffix("...") in done.stdout, line


def test_the_table_lists_every_invariant():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert {name.strip("`"): meaning for name, meaning in cells} == INVARIANTS


def test_no_block_is_left_out():
    assert {block.language for block in BLOCKS} == {"python", "sh", "text"}
