"""What docs/how-to/testing.md says is run, as a project of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.acceptance.documents import blocks_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "testing.md"
BLOCKS = blocks_of(PAGE)
#: What the page shows the failure of.
FAILING = """
from shop import order
from stabilize_celery.testing import assert_succeeded

def test_it(stabilize):
    stabilize.stub("charge", raises=ValueError("no funds"))
    assert_succeeded(stabilize.run(order(42)))
"""


def test_the_project_of_the_page_passes_and_fails_as_told(tmp_path):
    for block in BLOCKS:
        if block.language != "text":
            name, text = block.text.split("\n", 1)
            (tmp_path / name.removeprefix("# ")).write_text(text)
    (tmp_path / "test_failing.py").write_text(FAILING)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert "7 passed" in done.stdout, done.stdout + done.stderr
    assert "1 failed" in done.stdout

    (told,) = [block.text for block in BLOCKS if block.language == "text"]
    happened = [line.removeprefix("E").strip() for line in done.stdout.splitlines()]
    for line in filter(None, told.splitlines()):
        # The id at the end of the first line of a tree is another one each time.
        words = line.strip().rpartition("01M")[0] or line.strip()
        assert any(each.startswith(words) for each in happened), f"{line!r} is not in\n{done.stdout}"


def test_no_block_is_left_out():
    assert {block.language for block in BLOCKS} == {"python", "ini", "text"}
    assert all(block.text.startswith("# ") for block in BLOCKS if block.language != "text")
