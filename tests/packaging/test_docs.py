"""The documentation is built as it is published: strictly, with every link checked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    command += ["-d", str(tmp_path / "cache"), str(ROOT / "docs"), str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "start_many" in (tmp_path / "site" / "reference" / "engine.html").read_text(encoding="utf-8")


def test_links_of_pages_outside_the_site_lead_somewhere():
    broken = [
        f"{page.name}: {target}"
        for page in ROOT.glob("*.md")
        for target in LINK.findall(page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken


def test_the_lifecycle_page_is_what_the_engine_enforces():
    done = subprocess.run([sys.executable, str(ROOT / "docs" / "lifecycle.py"), "--check"], check=False)
    assert done.returncode == 0, "run python docs/lifecycle.py"
