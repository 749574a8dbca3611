"""What docs/how-to/recovery.md says is run, in order, on an app with a dead letter."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from stabilize_celery.persistence.schema import create_tables
from stabilize_celery.settings import Settings
from tests.acceptance.documents import blocks_of, execute

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "how-to" / "recovery.md"
TEXT = GUIDE.read_text(encoding="utf-8")
BLOCKS = blocks_of(GUIDE)
BIN = Path(sys.executable).parent
SHOP = """\
from celery import Celery
from stabilize_celery import Stabilize

app = Celery("shop", broker=BROKER, set_as_current=False)
app.conf.stabilize_database_url = DATABASE
stabilize = Stabilize(app)
stabilize.task("charge")(lambda stage: {"charged": 5})
"""


@pytest.fixture
def shop(
    tmp_path: Path, broker_url: str, empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """The module ``shop``: its app has the tables it needs, and no worker."""
    create_tables(empty_postgres_url)
    text = SHOP.replace("BROKER", repr(broker_url)).replace("DATABASE", repr(empty_postgres_url))
    (tmp_path / "shop.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    import shop  # type: ignore[import-not-found]

    yield shop
    shop.stabilize.close()
    shop.app.close()
    del sys.modules["shop"]


def bury_one(shop: Any) -> str:
    """A dead letter of a workflow that it ended."""
    from stabilize_celery import StageExecution, Workflow

    run = shop.stabilize.start(Workflow.create("shop", "order", [StageExecution.single("charge", "charge")]))
    (row,) = [row for row in _all_messages(shop) if row["workflow_id"] == run.id]
    shop.stabilize.dispatcher._bury(row["id"], {"details": {"error": "by hand", "traceback": "here"}})
    assert run.status.name == "TERMINAL"
    return str(row["id"])


def _all_messages(shop: Any) -> list[dict[str, Any]]:
    from stabilize_celery.persistence.tables import messages

    with shop.stabilize.store.database.begin() as connection:
        return [dict(row) for row in connection.execute(messages.select()).mappings()]


def celery(command: str) -> Result:
    """Run ``celery -A shop stabilize ...`` within this process."""
    from celery.bin.celery import celery as program

    return CliRunner().invoke(program, shlex.split(command)[1:], catch_exceptions=False)


def test_every_block_is_of_a_kind_that_is_tested() -> None:
    assert {block.language for block in BLOCKS} == {"python", "sh"}


def test_the_commands_run_one_after_the_other(shop: Any) -> None:
    commands = [line for block in BLOCKS if block.language == "sh" for line in block.text.splitlines()]
    assert len(commands) == 9
    letter_id = bury_one(shop)
    said = {}
    for command in commands:
        if command.endswith("drop ID"):
            letter_id = bury_one(shop)
        done = celery(command.replace("ID", letter_id))
        assert done.exit_code == 0, f"{command}: {done.output}"
        said[command.removeprefix("celery -A shop stabilize ")] = done.output
    assert "Nothing is wrong." in said["audit"]
    assert "0 messages were sent again" in said["rebuild"]
    assert "by hand" in said["dead-letters list"]
    assert "its workflow starts" in said["dead-letters retry ID"]
    assert shop.stabilize.dead_letters() == []


def test_the_python_blocks_run_one_after_the_other(shop: Any) -> None:
    namespace: dict[str, Any] = {}
    blocks = [block for block in BLOCKS if block.language == "python"]
    for block in blocks:
        execute(block.text, namespace, f"recovery.md:{block.line}")
    assert len(blocks) == 2


def test_both_forms_of_the_command_line_are_the_same(shop: Any, tmp_path: Path) -> None:
    letter_id = bury_one(shop)
    celery_form = [sys.executable, "-m", "celery", "-A", "shop", "stabilize"]
    own_form = [str(BIN / "stabilize-celery"), "-A", "shop"]
    said = [
        subprocess.run(
            [*form, "dead-letters", "list", "--json"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
            timeout=100,
        ).stdout
        for form in (celery_form, own_form)
    ]
    assert said[0] == said[1]
    assert [letter["id"] for letter in json.loads(said[0])] == [letter_id]


def test_the_figures_are_the_defaults() -> None:
    defaults = Settings.of()
    told = dict(re.findall(r"`stabilize_(\w+)` \((\d+)(?: s)?\)", TEXT))
    assert told == {"resend_delay": "10", "resend_delay_max": "300", "control_max_attempts": "10"}
    assert all(getattr(defaults, name) == float(value) for name, value in told.items())
