"""docs/how-to/upgrading.md: its commands are run, and what it says workers do and print is what they do and print."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stabilize_celery.errors import SchemaVersionError
from stabilize_celery.persistence import schema
from stabilize_celery.persistence.database import Database
from tests.migration.releases import newer_migrations
from tests.migration.test_two_releases import migrate_newer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "upgrading.md"
TEXT = PAGE.read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ *```sh\n(.+?)^ *```$", TEXT, re.MULTILINE | re.DOTALL)
APP = """\
from celery import Celery
from stabilize_celery import Stabilize

app = Celery("shop", broker="memory://")
app.conf.stabilize_database_url = {url!r}
stabilize = Stabilize(app)
"""


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert [target for target in targets if not (PAGE.parent / target).exists()] == []


def test_the_commands_run(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/flows.db"
    (tmp_path / "shop.py").write_text(APP.format(url=url))
    assert TEXT.count("```sh") == len(COMMANDS) == 3
    program = f'celery() {{ {Path(sys.executable).parent / "celery"} "$@"; }}\n'
    done = subprocess.run(
        ["bash", "-ec", program + "".join(COMMANDS)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.count(url) == len(COMMANDS)
    database = Database(url)
    schema.check(database)
    database.dispose()


def test_the_table_of_who_runs(tmp_path: Path) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in TEXT.splitlines()
        if line.startswith("|")
    ]
    told = {row[0]: row[1:] for row in rows[2:]}
    url = f"sqlite:///{tmp_path}/flows.db"
    schema.create_tables(url)
    database = Database(url)
    stages = {
        "as before": (),
        "after `--before-deploy`": ("--before-deploy",),
        "after `--after-deploy`": None,
    }
    assert list(told) == list(stages)
    for name, options in stages.items():
        if options != ():
            migrate_newer(url, *(options or ("--after-deploy",)))
        with newer_migrations():
            newer = said_to(database)
        for cell, answer in zip(told[name], (said_to(database), newer), strict=True):
            assert answer == "" if cell == "runs" else all(part in answer for part in quoted(cell)), (
                name,
                cell,
            )
    database.dispose()


def said_to(database: Database) -> str:
    """Why a worker does not start; empty if it does."""
    try:
        schema.check(database)
    except SchemaVersionError as error:
        return str(error)
    return ""


def quoted(cell: str) -> list[str]:
    assert cell.startswith("does not start: `")
    return cell.split("`")[1].removeprefix("run ... ").split(" ... ")


@pytest.mark.parametrize("option", re.findall(r"`(--[a-z-]+)`", TEXT))
def test_the_options_exist(option: str) -> None:
    from stabilize_celery.cli.operate import commands

    assert option in {name for parameter in commands.commands["migrate"].params for name in parameter.opts}
