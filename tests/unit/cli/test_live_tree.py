"""Following a run: in place on a terminal, once at the end anywhere else."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console

from stabilize_celery.cli.tree import LiveTree
from stabilize_celery.engine import Stabilize
from stabilize_celery.errors import StoreError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.run import WorkflowRun

DRAWN_OVER, CURSOR_SHOWN = "\x1b[1A", "\x1b[?25h"


class Screen(io.StringIO):
    """What is written, and waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self._written = threading.Condition()

    def write(self, text: str) -> int:
        with self._written:
            self._written.notify_all()
            return super().write(text)

    def wait_for(self, *texts: str) -> bool:
        with self._written:
            return self._written.wait_for(lambda: all(text in self.getvalue() for text in texts), 10)


@pytest.fixture
def screen() -> Screen:
    return Screen()


@pytest.fixture
def run() -> WorkflowRun:
    """A run whose second stage waits until the screen shows it."""
    engine = Stabilize.embedded(concurrency=2)
    engine.registry.register("quick", lambda stage: {"made": 1})
    stages = [
        StageExecution.single("quick", "quick"),
        StageExecution.single("slow", "slow", requires={"quick"}),
    ]
    engine.registry.register("slow", lambda stage: None)
    return engine.start(Workflow.create("shop", "order", stages))


def terminal(screen: Screen, height: int = 30) -> Console:
    return Console(file=screen, force_terminal=True, width=100, height=height, color_system=None)


def test_a_terminal_sees_it_change(run: WorkflowRun, screen: Screen) -> None:
    seen: list[bool] = []
    run._engine.registry.register(
        "slow", lambda stage: seen.append(screen.wait_for("✔ quick", "▶ slow")), replace=True
    )
    with LiveTree(run, console=terminal(screen), animate=True):
        run._engine.processor.drain(30)
    assert seen == [True], screen.getvalue()
    last = screen.getvalue().rpartition(DRAWN_OVER)[2]
    assert "✔ shop/order  SUCCEEDED" in last
    assert "✔ slow" in last


def test_anything_else_gets_the_end_alone(run: WorkflowRun, screen: Screen) -> None:
    with LiveTree(run, console=Console(file=screen, width=100)):
        run._engine.processor.drain(30)
    assert screen.getvalue().count("shop/order") == 1
    assert screen.getvalue().startswith("✔ shop/order  SUCCEEDED")
    assert DRAWN_OVER not in screen.getvalue()


def test_a_file_that_takes_ascii_only(run: WorkflowRun) -> None:
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, "ascii", write_through=True)
    with LiveTree(run, console=Console(file=file, width=100)):
        run._engine.processor.drain(30)
    assert raw.getvalue().startswith(b"+ shop/order  SUCCEEDED")


def test_a_tree_is_never_higher_than_the_terminal(screen: Screen) -> None:
    engine = Stabilize.embedded()
    stages = [StageExecution.single(f"s{number}", "noop") for number in range(100)]
    run = engine.start(Workflow.create("shop", "wide", stages))
    console = terminal(screen, height=12)
    tree = LiveTree(run, console=console)._picture()
    assert 6 <= len(console.render_lines(tree, pad=False)) <= 11


def test_the_error_of_the_block_comes_first(run: WorkflowRun, screen: Screen, monkeypatch) -> None:
    def gone(*_: object) -> Workflow:
        raise StoreError("the database is gone")

    monkeypatch.setattr(WorkflowRun, "workflow", gone)
    with pytest.raises(ZeroDivisionError), LiveTree(run, console=terminal(screen), animate=True):
        raise ZeroDivisionError
    with pytest.raises(StoreError), LiveTree(run, console=terminal(screen), animate=True):
        pass
    assert screen.getvalue().endswith(CURSOR_SHOWN)
