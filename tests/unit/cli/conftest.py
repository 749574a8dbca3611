"""A command line on a database of its own, and a flow to run on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from stabilize_celery.cli import main
from stabilize_celery.engine import Stabilize
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.run import WorkflowRun
from stabilize_celery.tasks.result import TaskResult

FLOW = """\
from stabilize_celery import StageExecution, TaskResult, Workflow

def ask(stage):
    if "_signal_name" in stage.context:
        return {"answer": stage.context["_signal_data"]}
    return TaskResult.suspend()

def fail(stage):
    raise ValueError("no luck")

tasks = {"make": lambda stage: {"made": 3}, "ask": ask, "fail": fail}
"""
MAKE = 'StageExecution.single("make", "make")'

Cli = Callable[..., Result]


@pytest.fixture(autouse=True)
def wide_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("STABILIZE_DATABASE_URL", raising=False)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/flows.db"


@pytest.fixture
def cli(url: str) -> Cli:
    """Run a command on the test's database; `database=None` names none."""

    def run(*arguments: str, database: str | None = url) -> Result:
        named = [] if database is None else ["--database-url", database]
        return CliRunner().invoke(main, [*named, *arguments])

    return run


@pytest.fixture
def answer(cli: Cli) -> Callable[..., Any]:
    """What a command that succeeds says with --json."""

    def run(*arguments: str, code: int = 0, **options: Any) -> Any:
        result = cli(*arguments, "--json", **options)
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    return run


@pytest.fixture
def flow(tmp_path: Path) -> Callable[..., str]:
    """Write a Python workflow file with the stages given as code; returns its path."""

    def write(*stages: str, more: str = "") -> str:
        path = tmp_path / "flow.py"
        listed = ", ".join(stages)
        path.write_text(f'{FLOW}{more}\nworkflow = Workflow.create("shop", "order", [{listed}])\n')
        return str(path)

    return write


@pytest.fixture
def engine(url: str) -> Iterator[Stabilize]:
    """An engine on the test's database, with the tasks of the flow."""
    with Stabilize.embedded(url) as made:
        made.registry.register("make", lambda stage: {"made": 3})
        made.registry.register("ask", lambda stage: TaskResult.suspend())
        yield made


@pytest.fixture
def waiting(engine: Stabilize) -> WorkflowRun:
    """A run that waits for a signal in its second stage."""
    stages = [
        StageExecution.single("make", "make"),
        StageExecution.single("ask", "ask", requires={"make"}),
        StageExecution.single("end", "make", requires={"ask"}),
    ]
    return engine.run(Workflow.create("shop", "order", stages), timeout=30)


def refusal(result: Result, code: int = 1) -> str:
    """The one message on stderr of a command that failed."""
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    lines = result.stderr.strip().splitlines()
    if code == 1:
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("Error: ")
    return lines[-1].removeprefix("Error: ")
