"""A workflow drawn as a tree: once, or live while it runs.

run = engine.start(workflow)
with LiveTree(run):
    run.wait()
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from types import TracebackType

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text
from rich.tree import Tree

from stabilize_celery.cli import output
from stabilize_celery.errors import StabilizeError
from stabilize_celery.models.json import error_of, phase_of
from stabilize_celery.models.stage import Phase, StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.run import WorkflowRun

#: Wider than that, titles are not lined up any more.
_WIDEST_TITLE = 44
_MOST_ERROR_LINES = 5
_LONGEST_ERROR = 600
_PICTURES_PER_SECOND = 8
#: Reading the workflow takes at most one part in so many of the time.
_SHARE_OF_TIME = 5


def stage_tree(workflow: Workflow, now: datetime, *, most: int = 200, ascii: bool = False) -> Tree:
    """The stages of a workflow as a tree, with status, time, attempts and error of each.

    Stages stand in topological order, synthetic stages under their parent.

    Args:
        workflow: with its stages.
        now: for how long those that have not ended have been running.
        most: how many stages are drawn; of more than that, failed and active ones first, the rest is counted.
        ascii: use symbols that any terminal can show.
    """
    rows = _rows(workflow.stages)
    is_cut = len(rows) > most
    kept = _choose(rows, most) if is_cut else {row.stage.id for row in rows}
    lines = _Lines(now, ascii, [row for row in rows if row.stage.id in kept], workflow.stages)
    tree = Tree(lines.head(workflow, is_cut), guide_style="dim")
    nodes = [tree]
    for is_kept, run in groupby(rows, lambda row: row.stage.id in kept):
        together = list(run)
        if not is_kept and len(together) > 1:
            left_out = f"{'...' if ascii else '…'} {_counted(row.stage for row in together)}"
            nodes[min(row.depth for row in together)].add(_one_line(Text(left_out, style="dim")))
            continue
        for row in together:
            node = nodes[row.depth].add(lines.stage(row))
            nodes[row.depth + 1 :] = [node]
            # A single task is as good as its stage.
            for task in row.stage.tasks if len(row.stage.tasks) > 1 and not is_cut else ():
                node.add(lines.task(task))
    return tree


def title(stage: StageExecution) -> str:
    """What people call a stage, on one line."""
    return "".join(char if char.isprintable() else " " for char in stage.called)


# ---------------------------------------------------------------------------------------------- which lines, and where


@dataclass(frozen=True)
class _Row:
    stage: StageExecution
    depth: int
    parent: _Row | None

    @property
    def title(self) -> str:
        phase = phase_of(self.stage)
        return ("" if phase is None else f"{phase.value.replace('_', ' ')}: ") + title(self.stage)

    @property
    def reach(self) -> int:
        """Where the title ends."""
        return 4 * self.depth + cell_len(self.title)


def _rows(stages: list[StageExecution]) -> list[_Row]:
    """Every stage, from top to bottom."""
    phases = [None, *Phase]
    known = {stage.id for stage in stages}
    below: dict[str | None, list[StageExecution]] = {}
    ordered = sorted(stages, key=lambda stage: (phases.index(phase_of(stage)), stage.rank))
    for stage in reversed(ordered):
        below.setdefault(stage.parent_stage_id if stage.parent_stage_id in known else None, []).append(stage)
    rows: list[_Row] = []
    waiting = [_Row(stage, 0, None) for stage in below.get(None, [])]
    while waiting:
        row = waiting.pop()
        rows.append(row)
        waiting += [_Row(stage, row.depth + 1, row) for stage in below.get(row.stage.id, [])]
    return rows


def _choose(rows: list[_Row], most: int) -> set[str]:
    """The stages worth drawing, with those they stand under: failed ones, active ones, the first ones."""

    def interest(row: _Row) -> int:
        status = row.stage.status
        return 0 if status.is_failure else 2 if status.is_complete or status is S.NOT_STARTED else 1

    kept: set[str] = set()
    for chosen in sorted(rows, key=interest):
        way: list[str] = []
        row: _Row | None = chosen
        while row is not None and row.stage.id not in kept:
            way.append(row.stage.id)
            row = row.parent
        if len(kept) + len(way) <= most:
            kept.update(way)
    return kept


# ---------------------------------------------------------------------------------------------- what a line says


class _Lines:
    """The lines of one picture, with their columns lined up."""

    def __init__(self, now: datetime, ascii: bool, rows: list[_Row], stages: list[StageExecution]) -> None:
        self.now, self.ascii = now, ascii
        self.titles = {(stage.parent_stage_id, stage.ref_id): title(stage) for stage in stages}
        self.title_width = min(_WIDEST_TITLE, max((row.reach for row in rows), default=0))
        self.status_width = max((len(str(stage.status)) for stage in stages), default=0)

    def head(self, workflow: Workflow, is_cut: bool) -> Text:
        head = self._symbol(workflow.status)
        head.append(f"{workflow.application}/{workflow.name}", style="bold")
        self._status(head, workflow)
        head.append(f"  {workflow.id}", style="dim")
        if len(workflow.stages) > 20 or is_cut:
            head.append(f"\n{_counted(workflow.stages)}", style="dim")
        if workflow.is_canceled:
            by = f" by {workflow.canceled_by}" if workflow.canceled_by else ""
            why = f": {workflow.cancellation_reason}" if workflow.cancellation_reason else ""
            head.append(f"\ncanceled{by}{why}", style="dim")
        elif workflow.paused is not None and workflow.paused.is_paused and workflow.paused.paused_by:
            head.append(f"\npaused by {workflow.paused.paused_by}", style="dim")
        return head

    def stage(self, row: _Row) -> RenderableType:
        stage = row.stage
        text = self._symbol(stage.status)
        text.append(row.title, style="dim" if stage.status is S.SKIPPED else "bold")
        text.append(" " * (self.title_width - row.reach))
        text.append("  ").append_text(output.styled(stage.status, self.status_width))
        text.append(f" {output.elapsed(stage.start_time, stage.end_time, self.now):>7}")
        self._attempts(text, max((task.attempts for task in stage.tasks), default=0))
        if stage.status is S.SUSPENDED:
            text.append("  waits for a signal", style="magenta")
        required = {(stage.parent_stage_id, ref) for ref in stage.requisite_stage_ref_ids}
        after = sorted(self.titles[key] for key in required & self.titles.keys())
        if after:
            more = f" and {len(after) - 3:,} more" if len(after) > 3 else ""
            text.append(f"  after {', '.join(after[:3])}{more}", style="dim")
        text.rstrip()
        return _with_error(_one_line(text), stage)

    def task(self, task: TaskExecution) -> Text:
        text = self._symbol(task.status)
        text.append(f"task {task.name or task.implementing_class}", style="italic")
        self._status(text, task)
        self._attempts(text, task.attempts)
        return _one_line(text)

    def _symbol(self, status: S) -> Text:
        symbol, plain, style = output.LOOKS[status]
        return Text(f"{plain if self.ascii else symbol} ", style=style)

    def _status(self, text: Text, thing: Workflow | TaskExecution) -> None:
        text.append("  ").append_text(output.styled(thing.status))
        if thing.start_time is not None:
            text.append(f"  {output.elapsed(thing.start_time, thing.end_time, self.now)}")

    def _attempts(self, text: Text, attempts: int) -> None:
        if attempts > 1:
            text.append(f"  {attempts} attempts", style="yellow")


def _with_error(text: Text, stage: StageExecution) -> RenderableType:
    lines = [line for line in output.shown(error_of(stage)).splitlines() if line.strip()]
    if not lines:
        return text
    if len(lines) > _MOST_ERROR_LINES:
        # The end of a traceback says what happened.
        lines = ["...", *lines[-_MOST_ERROR_LINES:]]
    error = "\n".join(lines)
    if len(error) > _LONGEST_ERROR:
        error = f"{error[:_LONGEST_ERROR]} ..."
    return Group(text, Text(error, style="red" if stage.status.is_failure else "yellow"))


def _counted(stages: Iterable[StageExecution]) -> str:
    counts = Counter(stage.status for stage in stages)
    parts = [f"{counts[status]:,} {status}" for status in S if counts[status]]
    return f"{output.stages_text(counts.total())}: {', '.join(parts)}"


def _one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


# ---------------------------------------------------------------------------------------------- live


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
        self.console = output.make_console() if console is None else console
        able = self.console.file.isatty() and not self.console.is_dumb_terminal
        self._animate = able if animate is None else animate
        self._live: Live | None = None
        self._lately: RenderableType = ""
        self._last: Tree | None = None
        #: On the monotonic clock: when the workflow is read next.
        self._read_at = 0.0

    def __enter__(self) -> LiveTree:
        if self._animate:
            self._live = Live(
                get_renderable=self._picture,
                console=self.console,
                refresh_per_second=_PICTURES_PER_SECOND,
                vertical_overflow="crop",
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            # If the block failed because the database cannot be reached, that is the error to report.
            with contextlib.suppress(StabilizeError) if kind is not None else contextlib.nullcontext():
                self._last = self._draw()
        finally:
            if self._live is not None:
                self._live.stop()
        if self._live is None and self._last is not None:
            self.console.print(self._last)

    def _picture(self) -> RenderableType:
        """The workflow as it is, or was lately: Live asks in a thread of its own, several times a second."""
        started = time.monotonic()
        if self._last is None and started >= self._read_at:
            with contextlib.suppress(StabilizeError):
                # Lines that leave the screen could not be drawn over.
                self._lately = self._draw(most=max(1, self.console.height // 2 - 2))
            self._read_at = started + _SHARE_OF_TIME * (time.monotonic() - started)
        return self._last or self._lately

    def _draw(self, most: int | None = None) -> Tree:
        workflow, now = self.run.workflow(), self.run._engine.store.now()
        if most is None or len(workflow.stages) <= 2 * most:
            most = 200
        return stage_tree(workflow, now, most=most, ascii=output.knows_only_ascii(self.console))
