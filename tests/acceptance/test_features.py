"""A feature is a file that can be deleted: everything else is imported and works without it."""

from __future__ import annotations

import json
import sys
import tomllib
from typing import Any

import pytest

from stabilize_celery import Stabilize, StageExecution, Workflow
from tests.acceptance.documents import blocks_of
from tests.acceptance.stories import DOCS
from tests.acceptance.without import ASKED
from tests.processes import run_successfully
from tests.worker import ROOT

PLUGINS, COMMANDS = "stabilize_celery.plugins", "stabilize_celery.commands"


def offered(group: str) -> dict[str, str]:
    """What the project offers in a group of entry points."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    return dict(groups[group])


def features() -> list[str]:
    """The modules that the project offers by entry points of its own."""
    values = [*offered(PLUGINS).values(), *offered(COMMANDS).values()]
    return sorted(value.partition(":")[0] for value in values)


@pytest.fixture(scope="module")
def problems() -> dict[str, str]:
    done = run_successfully([sys.executable, "-m", "tests.acceptance.without", *features()], cwd=ROOT)
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize("module", features())
def test_the_rest_works_without_it(problems: dict[str, str], module: str) -> None:
    assert problems[module] == ""


def test_each_is_asked_for() -> None:
    assert list(ASKED) == features()


def test_the_plugin_of_the_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = blocks_of(DOCS / "reference" / "plugins.md")
    (block,) = [each for each in page if each.language == "python"]
    found: dict[str, Any] = {}
    exec(block.text, found)
    ours = found["PagerDuty"]()
    monkeypatch.setattr("stabilize_celery.engine.plugins", lambda: [ours])
    with Stabilize.embedded() as engine:
        stage = StageExecution.single("a", "python", {"script": "raise ValueError"})
        engine.run(Workflow.create("shop", "order", [stage]), timeout=60)
    assert "page: order" in capsys.readouterr().out


def test_the_page_lists_every_plugin() -> None:
    text = (DOCS / "reference" / "plugins.md").read_text(encoding="utf-8")
    assert [name for name in offered(PLUGINS) if f"| `{name}` |" not in text] == []
