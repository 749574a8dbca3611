"""Pages that are stories: everything on them is run, from the top to the bottom, as it stands."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.fixtures import FixtureRequest

from stabilize_celery import Stabilize, Workflow
from stabilize_celery.settings import Settings
from tests.acceptance.documents import blocks_of
from tests.acceptance.stories import DOCS, ROOT, Story

TESTS = ROOT / "tests"

#: Pages whose programs run in one process, without servers.
EMBEDDED = ["limits", "long-tasks", "from-canvas", "from-stabilize", "restart-and-skip"]
#: Pages with a Celery app, on PostgreSQL and RabbitMQ.
DEPLOYED = ["existing-deployment", "routing", "approvals"]
_FIGURE = re.compile(r"`stabilize_(\w+)`[^`\n]{0,10} \((\d+)\)")


@pytest.fixture
def tell(
    tmp_path: Path, request: FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Story]]:
    stories: list[Story] = []
    monkeypatch.syspath_prepend(tmp_path)

    def tell(page: str, *servers: str) -> Story:
        broker, database = [request.getfixturevalue(server) for server in servers] or ["", ""]
        stories.append(Story(page, tmp_path, broker, database))
        return stories[-1].tell()

    yield tell
    for story in stories:
        story.end()


@pytest.mark.parametrize("page", EMBEDDED)
def test_in_one_process(page: str, tell: Callable[..., Story]) -> None:
    assert tell(f"how-to/{page}.md").namespace


def test_a_value_reaches_a_command_that_is_a_program_of_its_own() -> None:
    (block,) = [
        each for each in blocks_of(DOCS / "reference" / "builtin-tasks.md") if each.language == "python"
    ]
    found: dict[str, Any] = {}
    exec(block.text, found)
    with Stabilize.embedded() as engine:
        run = engine.run(Workflow.create("shop", "greet", [found["stage"]]), timeout=60)
        assert run.get(timeout=0)["stdout"] == "hello kim"


@pytest.mark.slow
@pytest.mark.parametrize("page", DEPLOYED)
def test_on_workers(page: str, tell: Callable[..., Story]) -> None:
    story = tell(f"how-to/{page}.md", "broker_url", "empty_postgres_url")
    assert all(process.running for process in story.running), [process.output for process in story.running]
    assert story.namespace["run"].successful()


@pytest.mark.parametrize("page", [*EMBEDDED, *DEPLOYED])
def test_the_figures_are_the_defaults(page: str) -> None:
    defaults = Settings.of()
    told = _FIGURE.findall((DOCS / "how-to" / f"{page}.md").read_text(encoding="utf-8").replace("\n", " "))
    assert [(name, value) for name, value in told if getattr(defaults, name) != float(value)] == []


def test_every_page_with_code_is_run_by_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py"))
    untold = [
        page.relative_to(DOCS).as_posix()
        for page in DOCS.rglob("*.md")
        if any(block.language in ("python", "sh", "sql") for block in blocks_of(page))
        and not re.search(rf"[\"/]{page.stem}(\.md)?\"", tests)
    ]
    assert untold == []
