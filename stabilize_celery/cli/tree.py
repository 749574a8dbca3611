"""A workflow drawn as a tree: once, or live while it runs.

run = engine.start(workflow)
with LiveTree(run):
    run.wait()
"""

from __future__ import annotations

import contextlib
import threading
import time
from datetime import datetime
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.tree import Tree

from stabilize_celery.cli.drawing import Drawing
from stabilize_celery.cli.terminal import is_terminal, knows_only_ascii, make_console
from stabilize_celery.errors import StabilizeError
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.run import WorkflowRun

__all__ = ["LiveTree", "stage_tree"]

_SHORTEST_PAUSE = 0.1
#: Looking takes at most one part in so many of the time.
_SHARE_OF_TIME = 5


def stage_tree(workflow: Workflow, now: datetime, *, most: int = 200, ascii: bool = False) -> Tree:
    """The graph of a workflow as a tree, with status, time, attempts and error of each stage.

    Args:
        workflow: with its stages.
        now: for how long those that have not ended have been running.
        most: how many stages are drawn; of more than that, failed and active ones first, the rest is counted.
        ascii: use symbols that any terminal can show.
    """
    return Drawing(workflow, now, most, ascii).tree()


class LiveTree:
    """Shows a run as a tree within a ``with`` block: live on a terminal, else printed once at the end.

    Args:
        run: a started workflow, on an embedded engine or on workers.
        console: where to; standard output by default.
        animate: redraw in place; by default where the output is a terminal.
    """

    def __init__(
        self, run: WorkflowRun, *, console: Console | None = None, animate: bool | None = None
    ) -> None:
        self.run = run
        self.console = make_console() if console is None else console
        able = is_terminal(self.console.file) and not self.console.is_dumb_terminal
        self._animate = able if animate is None else animate
        self._ended = threading.Event()
        self._live: Live | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> LiveTree:
        if self._animate:
            self._live = Live(console=self.console, auto_refresh=False, vertical_overflow="crop")
            self._live.start()
            self._thread = threading.Thread(target=self._follow, args=(self._live,), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        # If the block failed because the database cannot be reached, that is what must be heard of.
        try:
            with contextlib.suppress(StabilizeError) if kind is not None else contextlib.nullcontext():
                self._show_last()
        finally:
            if self._live is not None:
                self._live.stop()

    def _follow(self, live: Live) -> None:
        pause = 0.0
        while not self._ended.wait(pause):
            began = time.monotonic()
            with contextlib.suppress(StabilizeError):
                live.update(self._fitting(), refresh=True)
            pause = max(_SHORTEST_PAUSE, _SHARE_OF_TIME * (time.monotonic() - began))

    def _show_last(self) -> None:
        tree = self._draw(self.run.workflow())
        if self._live is None:
            self.console.print(tree)
        else:
            self._live.vertical_overflow = "visible"
            self._live.update(tree, refresh=True)

    def _fitting(self) -> Tree:
        """A tree no higher than the terminal: what runs out of the screen could not be drawn over."""
        workflow = self.run.workflow()
        height = self.console.height - 1
        most = height
        while True:
            tree = self._draw(workflow, most)
            if most <= 1 or len(self.console.render_lines(tree, pad=False)) <= height:
                return tree
            most = most * 2 // 3

    def _draw(self, workflow: Workflow, most: int = 200) -> Tree:
        now = self.run._engine.store.now()
        return stage_tree(workflow, now, most=most, ascii=knows_only_ascii(self.console))
