"""The how-to pages about watching, schedules, files, the doctor and completion: what they say is run."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from celery import signals
from click.testing import CliRunner

from stabilize_celery.cli import main as stabilize_celery_command
from stabilize_celery.cli import stabilize as celery_command
from stabilize_celery.contrib.doctor import SETTINGS
from stabilize_celery.file_form import ConfigForm, StageForm, TaskForm, TriggerForm, WorkflowForm
from stabilize_celery.observe import logs
from tests.acceptance.documents import Block, blocks_of, execute
from tests.processes import run_successfully

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ROOT / "docs" / "how-to"
BIN = Path(sys.executable).parent
PAGES = ["observability", "schedules", "workflow-files", "doctor", "shell-completion"]


def blocks(page: str, language: str) -> list[Block]:
    found = [block for block in blocks_of(GUIDES / f"{page}.md") if block.language == language]
    assert found, f"{page}.md has no {language}"
    return found


def commands(page: str) -> list[str]:
    return [line for block in blocks(page, "sh") for line in block.text.splitlines()]


def table_rows(page: str, heading: str) -> list[list[str]]:
    text = (GUIDES / f"{page}.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows[2:]]


def run(command: str, cwd: Path, **env: str) -> str:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), **env}
    return run_successfully(["bash", "-ec", command], cwd=cwd, env=environment).stdout


@pytest.fixture
def run_python() -> Iterator[Callable[[str], dict[str, Any]]]:
    """Run the Python blocks of a page one after the other, and leave the process as it was."""
    shop = logging.getLogger("shop")
    before = (shop.handlers[:], shop.level, list(signals.worker_process_init.receivers or ()))

    def execute_page(page: str) -> dict[str, Any]:
        namespace: dict[str, Any] = {"__name__": "page"}
        for block in blocks(page, "python"):
            execute(block.text, namespace, f"{page}.md:{block.line}")
        return namespace

    yield execute_page
    shop.handlers[:], shop.level = before[0], before[1]
    signals.worker_process_init.receivers = before[2]
    signals.worker_process_init.sender_receivers_cache.clear()
    structlog.reset_defaults()


# ---------------------------------------------------------------------- all pages


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = (GUIDES / f"{page}.md").read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    assert [target for target in targets if not (GUIDES / target).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_no_block_is_left_out(page: str) -> None:
    known = {"python", "sh", "yaml", "bash", "zsh", "fish", "text"}
    assert {block.language for block in blocks_of(GUIDES / f"{page}.md")} <= known


@pytest.mark.parametrize(
    "command",
    [command for page in ("workflow-files", "doctor") for command in commands(page)],
)
def test_the_command_line_takes_these_arguments(command: str) -> None:
    words = shlex.split(command.split(" > ")[0])
    group = celery_command if words[0] == "celery" else stabilize_celery_command
    name, *arguments = words[4:] if words[0] == "celery" else words[1:]
    context = group.make_context(words[0], [name, *arguments])
    found = group.get_command(context, name)
    assert found is not None
    found.make_context(name, arguments, parent=context)


# ---------------------------------------------------------------------- observability


def test_watching(run_python: Callable[[str], dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    from prometheus_client import REGISTRY

    namespace = run_python("observability")
    assert "INFO [ ] outside of any workflow" in capsys.readouterr().err
    settings = namespace["stabilize"].settings
    assert (settings.metrics_port, settings.tracing, settings.send_events) == (9464, True, True)
    assert len(namespace["stabilize"].observers) == 1
    REGISTRY.unregister(namespace["stabilize"]._metrics)


def test_the_attributes_of_log_records_are_told() -> None:
    text = (GUIDES / "observability.md").read_text(encoding="utf-8").split("## Metrics")[0]
    assert [name for name in logs.FIELDS if f"`{name}`" not in text] == []


def test_the_metrics_are_told() -> None:
    from prometheus_client import CollectorRegistry

    from stabilize_celery import Stabilize
    from stabilize_celery.contrib.prometheus import RelayCollector, register

    with Stabilize.embedded() as stabilize:
        registry = CollectorRegistry()
        register(stabilize, registry)
        registry.register(RelayCollector(dict))
        families = list(registry.collect())
    names = {f.name + ("_total" if f.type == "counter" else "") for f in families}
    assert {row[0].strip("`") for row in table_rows("observability", "Metrics")} == names


# ---------------------------------------------------------------------- schedules


def test_schedules(run_python: Callable[[str], dict[str, Any]]) -> None:
    namespace = run_python("schedules")
    stabilize, app = namespace["stabilize"], namespace["app"]
    assert set(app.conf.beat_schedule) == set(stabilize.schedules) == {"nightly report", "clean up"}
    from datetime import UTC, datetime

    tick = datetime(2030, 1, 31, 1, 30, tzinfo=UTC)
    assert stabilize.schedules["nightly report"].workflow(tick).name == "report of 2030-01-31"


# ---------------------------------------------------------------------- files


@pytest.fixture
def nightly(tmp_path: Path) -> Path:
    (tmp_path / "nightly.yaml").write_text(blocks("workflow-files", "yaml")[0].text)
    return tmp_path


def test_files(
    nightly: Path, run_python: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(nightly)
    for command in commands("workflow-files"):
        result = CliRunner().invoke(stabilize_celery_command, shlex.split(command.split(" > ")[0])[1:])
        assert (result.exit_code, bool(result.stdout)) == (0, True), result.output
    assert [stage.ref_id for stage in run_python("workflow-files")["workflow"].stages] == [
        "extract",
        "load",
        "report",
    ]


def test_the_problem_that_is_shown(nightly: Path) -> None:
    path = nightly / "nightly.yaml"
    path.write_text(path.read_text().replace("requires: extract", "requires: extrct"))
    said = CliRunner().invoke(stabilize_celery_command, ["validate", str(path)]).stderr
    assert said.replace(f"{nightly}/", "") == blocks("workflow-files", "text")[0].text


def test_the_keys_of_files() -> None:
    told = {row[0]: set(re.findall(r"`([^`]+)`", row[1])) for row in table_rows("workflow-files", "Keys")}
    forms = {"file": WorkflowForm, "stage": StageForm, "task": TaskForm, "config": ConfigForm}
    forms["trigger"] = TriggerForm
    for name, form in forms.items():
        assert told[name] == {"$schema" if key == "editor_schema" else key for key in form.model_fields}


# ---------------------------------------------------------------------- the doctor


def test_the_settings_the_doctor_looks_at() -> None:
    rows = table_rows("doctor", "Celery settings")
    told = {name for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    assert {name for name, *_ in SETTINGS} <= told


# ---------------------------------------------------------------------- completion


@pytest.mark.parametrize(
    ("typed", "completed"), [("sch", "schema"), ("validate --js", "--json"), ("graph --format m", "mermaid")]
)
def test_bash_completes(tmp_path: Path, typed: str, completed: str) -> None:
    setup = blocks("shell-completion", "bash")[0].text
    words = ["stabilize-celery", *typed.split(" ")]
    script = f"{setup}\nCOMP_WORDS=({shlex.join(words)})\nCOMP_CWORD={len(words) - 1}\n"
    script += "_stabilize_celery_completion stabilize-celery\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
    assert run(script, tmp_path).split() == [completed]


def test_a_kept_script_completes(tmp_path: Path) -> None:
    script = blocks("shell-completion", "bash")[1].text + "complete -p stabilize-celery"
    assert "_stabilize_celery_completion" in run(script, tmp_path, HOME=str(tmp_path))


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_get_a_script(tmp_path: Path, shell: str) -> None:
    assert f"{shell}_source stabilize-celery" in blocks("shell-completion", shell)[0].text
    script = run(f"_STABILIZE_CELERY_COMPLETE={shell}_source stabilize-celery", tmp_path)
    assert f"_STABILIZE_CELERY_COMPLETE={shell}_complete" in script
