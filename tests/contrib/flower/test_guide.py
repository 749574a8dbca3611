"""What docs/how-to/flower.md says is run."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from stabilize_celery import StageExecution
from stabilize_celery.cli import stabilize as celery_command
from tests.acceptance.documents import blocks_of
from tests.contrib.flower.deployment import PASSWORD, USER, Shop

ROOT = Path(__file__).resolve().parents[3]
GUIDE = ROOT / "docs" / "how-to" / "flower.md"
COMMANDS = [
    line for block in blocks_of(GUIDE) if block.language == "sh" for line in block.text.strip().splitlines()
]


def test_every_command_is_looked_at():
    known = ("pip install", "celery -A shop stabilize flower", "curl ")
    assert len(COMMANDS) >= 6
    assert [command for command in COMMANDS if not command.startswith(known)] == []


def test_pip_is_told_an_extra_there_is():
    assert "stabilize-celery[flower]" in COMMANDS[0]
    assert "\nflower = [" in (ROOT / "pyproject.toml").read_text()


def test_the_command_takes_these_arguments():
    words = shlex.split(COMMANDS[1])
    with click.Context(celery_command) as context:
        found = celery_command.get_command(context, words[4])
        assert found is not None
        taken = found.make_context(words[4], words[5:], parent=context)
    assert taken.params["arguments"] == ("--basic_auth=kim:secret",)


def test_the_configuration_file_is_the_one_that_the_tests_run():
    (block,) = [block for block in blocks_of(GUIDE) if block.language == "python"]
    assert block.text.strip() in (ROOT / "config" / "flowerconfig.py").read_text()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_is_answered(shop: Shop):
    run = shop.start(StageExecution.single("ask", "approval"))
    shop.until_status(run, "ask", "SUSPENDED")
    curls = [command for command in COMMANDS if command.startswith("curl")]
    assert len(curls) == 4
    for command in curls:
        command = command.replace("localhost:5555", shop.flower.host).replace("/ID", f"/{run.id}")
        command = command.replace("kim:secret", f"{USER}:{PASSWORD}")
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=60, check=True)
        answer = json.loads(done.stdout)
        assert "error" not in answer, answer
    assert answer == {"accepted": "cancel", "workflow_id": run.id}
    shop.until(run.ready, "the cancellation")
    assert run.workflow().cancellation_reason == "ordered twice"


def test_its_links_lead_somewhere():
    text = GUIDE.read_text()
    targets = [part.split(")")[0] for part in text.split("](")[1:]]
    files = [target for target in targets if not target.startswith("http")]
    assert [target for target in files if not (GUIDE.parent / target).exists()] == []
    assert len(files) >= 2
