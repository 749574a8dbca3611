"""What README.md and docs/model.md say is run: their Python, their commands, their tables."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import threading
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest
from sqlalchemy import create_engine

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.cli import stabilize as celery_command
from stabilize_celery.settings import Settings
from tests.acceptance.documents import blocks_of, execute
from tests.inspection import all_messages
from tests.processes import run_successfully, wait_until

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
MODEL = ROOT / "docs/model.md"
TEXT = README.read_text(encoding="utf-8")
MODEL_TEXT = MODEL.read_text(encoding="utf-8")
BLOCKS = blocks_of(README)
ON_CELERY = "On your Celery app"
COMMANDS = [
    line.split("  #")[0].strip()
    for block in BLOCKS
    if block.language == "sh"
    for line in block.text.splitlines()
]
BIN = Path(sys.executable).parent


def test_every_block_is_of_a_kind_that_is_tested():
    assert {block.language for block in BLOCKS} == {"python", "sh"}


# ---------------------------------------------------------------------- Python


@pytest.mark.parametrize(("page", "least"), [(README, 1), (MODEL, 8)], ids=["README", "model"])
def test_the_python_blocks_run_one_after_the_other(page, least):
    blocks = [b for b in blocks_of(page) if b.language == "python" and b.heading != ON_CELERY]
    namespace: dict[str, Any] = {}
    for block in blocks:
        execute(block.text, namespace, f"{page.name}:{block.line}")
    assert len(blocks) >= least
    namespace["stabilize"].close()


def test_the_readme_is_read_in_a_few_minutes():
    assert len(TEXT.encode()) <= 9 * 1024


@pytest.fixture
def shop(tmp_path, broker_url, empty_postgres_url, monkeypatch):
    """The module ``shop`` of the README, importable here and in workers, on this test's servers."""
    text = next(block.text for block in BLOCKS if block.heading == ON_CELERY)
    for told, ours in {
        "amqp://guest:guest@localhost:5672//": broker_url,
        "postgresql+psycopg://localhost/shop": empty_postgres_url,
    }.items():
        assert told in text
        text = text.replace(told, ours)
    (tmp_path / "shop.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    yield tmp_path
    if "shop" in sys.modules:
        sys.modules.pop("shop").stabilize.close()


def test_the_celery_quickstart_runs_on_a_worker(shop, start_worker, empty_postgres_url):
    _module, first, joined = [b for b in BLOCKS if b.language == "python" and b.heading == ON_CELERY]
    run("celery -A shop stabilize migrate", cwd=shop)
    # A lost worker is noticed by its lease: 30 s, if nothing else is said.
    environment = {**os.environ, "STABILIZE_LEASE": "3", "STABILIZE_HEARTBEAT": "0.5"}
    lost = start_worker("shop:app", env=environment, cwd=shop)
    namespace: dict[str, Any] = {"engine": create_engine(empty_postgres_url)}
    first_run = import_module("shop").stabilize.start(import_module("shop").order(41))
    wait_until(lambda: _is_shipping(import_module("shop").stabilize), 60, "the task that is interrupted")
    lost.kill()
    start_worker("shop:app", env=environment, cwd=shop)
    assert first_run.get(timeout=120)["parcel"] == "parcel for ch_41"
    attempts = {stage.ref_id: stage.tasks[0].attempts for stage in first_run.workflow().stages}
    assert (attempts["charge"], attempts["ship"]) == (1, 2), (
        "the charge is not repeated, the shipment is tried again"
    )
    execute(first.text, namespace, "README.md")
    execute(joined.text, namespace, "README.md")
    assert namespace["run"].get(timeout=60)["parcel"] == "parcel for ch_43"
    namespace["engine"].dispose()


def _is_shipping(stabilize: Stabilize) -> bool:
    """Whether a worker has claimed the task of the stage ``ship``."""
    rows = all_messages(stabilize.store)
    return any(
        row["type"] == "RunTask" and "ship" in (row["label"] or "") and row["lease_owner"] for row in rows
    )


# ---------------------------------------------------------------------- commands


def run(command: str, cwd: Path = ROOT) -> str:
    program, *arguments = shlex.split(command)
    found = BIN / program
    return run_successfully([str(found) if found.exists() else program, *arguments], cwd=cwd).stdout


def commands(start: str) -> list[str]:
    found = [command for command in COMMANDS if command.startswith(start)]
    assert found, start
    return found


@pytest.mark.parametrize("command", commands("make "))
def test_make_has_the_target(command):
    assert run(command.replace("make ", "make -n "))


def test_pip_finds_the_package_in_the_checkout():
    assert commands("pip ") == ["pip install ."]
    assert 'name = "stabilize-celery"' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("command", commands("celery -A shop worker"))
def test_celery_knows_the_options_of_its_worker(shop, command):
    assert "Usage: celery worker" in run(f"{command} --help", cwd=shop)


@pytest.mark.parametrize("command", commands("celery -A shop stabilize"))
def test_the_command_line_takes_these_arguments(command):
    name, *arguments = shlex.split(command)[4:]
    with click.Context(celery_command) as context:
        found = celery_command.get_command(context, name)
        assert found is not None
        found.make_context(name, arguments, parent=context)


def test_no_command_is_left_out():
    known = ("make ", "pip ", "celery -A shop worker", "celery -A shop stabilize ")
    assert [command for command in COMMANDS if not command.startswith(known)] == []


# ---------------------------------------------------------------------- tables and figures


def table_below(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    section = MODEL_TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 2
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


@pytest.mark.parametrize("row", table_below("When a stage fails"), ids=lambda row: row[0].strip("`"))
def test_the_failure_policies_are_as_told(row):
    context, ends, after, others, workflow_ends = row
    failed = threading.Event()

    def fail(_stage: StageExecution) -> None:
        raise ValueError("by design")

    def outlast(_stage: StageExecution) -> None:
        assert failed.wait(30)

    def watch() -> None:
        if stabilize.get(workflow.id).workflow().stage_by_ref_id("risky").status.is_complete:
            failed.set()

    with Stabilize.embedded(concurrency=2, heartbeat=0.05) as stabilize:
        stabilize.registry.register("fail", fail)
        stabilize.registry.register("outlast", outlast)
        workflow = Workflow.create(
            "readme",
            "policy",
            [
                StageExecution.single("risky", "fail", json.loads(context.strip("`"))),
                StageExecution.single("after", "noop", requires={"risky"}),
                StageExecution.single("other", "outlast"),
                StageExecution.single("after other", "noop", requires={"other"}),
            ],
        )
        result = stabilize.run(workflow, timeout=60, on_progress=watch).workflow()
        failed.set()
    status = {stage.ref_id: stage.status.name for stage in result.stages}
    assert (status["risky"], result.status.name) == (ends, workflow_ends)
    assert status["after"] == {"run": "SUCCEEDED"}.get(after, after)
    assert (status["other"], status["after other"]) == {
        "go on": ("SUCCEEDED", "SUCCEEDED"),
        "are canceled": ("CANCELED", "NOT_STARTED"),
    }[others]


def test_the_figures_are_the_defaults():
    told = re.findall(r"`stabilize_(\w+)` \((\d+) s\)", TEXT)
    defaults = Settings.of()
    assert len(told) >= 3
    assert {name: float(value) for name, value in told} == {name: getattr(defaults, name) for name, _ in told}
    assert (defaults.queue, defaults.task_queue, defaults.max_attempts) == (
        "stabilize",
        "stabilize.tasks",
        10,
    )


def test_the_task_types_need_no_registration():
    sentence = re.search(r"that need no registration: ([^;]+);", MODEL_TEXT.replace("\n", " "))
    assert sentence is not None
    types = re.findall(r"`(\w+)`", sentence.group(1))
    engine = Stabilize.embedded(create_tables=False)
    assert types
    assert [name for name in types if not engine.registry.knows(name)] == []
    engine.close()


def test_links_lead_somewhere():
    for page, text in ((README, TEXT), (MODEL, MODEL_TEXT)):
        targets = re.findall(r"\]\(([^)]+)\)", text)
        assert [target for target in targets if not (page.parent / target).exists()] == []
