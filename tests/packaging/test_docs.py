"""The documentation is built as it is published: strictly, with every link checked."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from stabilize_celery import Stabilize
from stabilize_celery.cli import main
from stabilize_celery.settings import PREFIX, Settings
from tests.processes import run_successfully

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    command += ["-d", str(folder / "cache"), str(ROOT / "docs"), str(folder / "site")]
    run_successfully(command, cwd=ROOT, timeout=None)
    return folder / "site"


def text_of(site, page):
    """What a reader sees of a page, as one line."""
    article = re.search(r"<article.*</article>", (site / page).read_text(encoding="utf-8"), re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", article.group())).split())


def test_the_site_builds_without_a_warning(site):
    assert "start_many" in text_of(site, "reference/engine.html")


def test_every_setting_is_explained(site):
    told = text_of(site, "reference/settings.html")
    for name, field in Settings.model_fields.items():
        first_words = " ".join(field.description.split()[:3])
        row = rf"{PREFIX}{name} (?:\S+(?:, \S+)* )?(?:\(some\) )?{re.escape(first_words)}"
        assert re.search(row, told), name


def test_every_command_is_explained(site):
    told = text_of(site, "reference/command-line.html")
    with click.Context(main) as context:
        for name in main.list_commands(context):
            assert f"stabilize-celery {name} [ OPTIONS ]" in told, name
            help_text = main.get_command(context, name).help or ""
            assert " ".join(re.split(r"[(,]", help_text)[0].split()[:4]) in told, name


def test_every_built_in_task_type_has_a_section(site):
    told = (site / "reference" / "builtin-tasks.html").read_text(encoding="utf-8")
    stabilize = Stabilize.embedded(create_tables=False)
    internal = {"celery_results"}
    types = set(stabilize.registry.names()) - internal
    assert [name for name in sorted(types) if f">{name}<" not in told] == []


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
