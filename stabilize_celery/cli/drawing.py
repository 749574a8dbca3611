"""The lines of a workflow's tree: symbols, columns, errors, and what is left out of a large one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from itertools import groupby

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.text import Text
from rich.tree import Tree

from stabilize_celery.cli.layout import Line, arrange, phase_of, title
from stabilize_celery.cli.words import LOOKS, attempts, elapsed, error_text
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import Workflow

#: Wider than that, titles are not lined up any more.
_WIDEST_TITLE = 44
_MOST_ERROR_LINES = 5
_LONGEST_ERROR = 600
_PHASES = {"before": "before: ", "after": "after: ", "on_failure": "on failure: "}


class Drawing:
    """One picture of a workflow; see :func:`stabilize_celery.cli.tree.stage_tree`."""

    def __init__(self, workflow: Workflow, now: datetime, most: int, ascii: bool) -> None:
        self.workflow = workflow
        self.now = now
        self.ascii = ascii
        self.top = arrange(workflow)
        self.kept = _choose(self.top, most) if len(workflow.stages) > most else None
        shown = [s.status for s in workflow.stages] or [workflow.status]
        self.status_width = max(len(str(status)) for status in shown)
        self.title_width = min(_WIDEST_TITLE, max(map(self._reach, self._shown(self.top, 0)), default=0))

    def tree(self) -> Tree:
        """The picture."""
        tree = Tree(self._head(), guide_style="dim")
        waiting: list[tuple[Tree, list[Line], int]] = [(tree, self.top, 0)]
        while waiting:
            node, lines, depth = waiting.pop()
            for is_shown, run in groupby(lines, self._is_shown):
                together = list(run)
                if not is_shown and (len(together) > 1 or together[0].below):
                    node.add(self._left_out(together))
                    continue
                for line in together:
                    child = node.add(self._stage(line, depth))
                    for task in self._tasks(line.stage):
                        child.add(self._task(task))
                    waiting.append((child, line.below, depth + 1))
        return tree

    def _is_shown(self, line: Line) -> bool:
        return self.kept is None or line.stage.id in self.kept

    def _tasks(self, stage: StageExecution) -> list[TaskExecution]:
        """The tasks that have lines of their own: a single one is as good as its stage."""
        return stage.tasks if len(stage.tasks) > 1 and self.kept is None else []

    # ------------------------------------------------------------------ measuring

    def _shown(self, lines: Iterable[Line], depth: int) -> Iterable[tuple[Line, int]]:
        waiting = [(line, depth) for line in lines]
        while waiting:
            line, depth = waiting.pop()
            if self._is_shown(line):
                yield line, depth
                waiting.extend((other, depth + 1) for other in line.below)

    def _reach(self, shown: tuple[Line, int]) -> int:
        line, depth = shown
        return 4 * depth + cell_len(_named(line.stage))

    # ------------------------------------------------------------------ one line each

    def _symbol(self, status: S) -> Text:
        symbol, plain, style = LOOKS[status]
        return Text(f"{plain if self.ascii else symbol} ", style=style)

    def _head(self) -> RenderableType:
        workflow = self.workflow
        _, _, style = LOOKS[workflow.status]
        head = self._symbol(workflow.status)
        head.append(f"{workflow.application}/{workflow.name}", style="bold")
        head.append(f"  {workflow.status}", style=style)
        took = elapsed(workflow.start_time, workflow.end_time, self.now)
        if took:
            head.append(f"  {took}")
        head.append(f"  {workflow.id}", style="dim")
        if len(workflow.stages) > 20 or self.kept is not None:
            head.append(f"\n{_counted(workflow.stages)}", style="dim")
        if workflow.is_canceled:
            by = f" by {workflow.canceled_by}" if workflow.canceled_by else ""
            why = f": {workflow.cancellation_reason}" if workflow.cancellation_reason else ""
            head.append(f"\ncanceled{by}{why}", style="dim")
        elif workflow.paused is not None and workflow.paused.is_paused and workflow.paused.paused_by:
            head.append(f"\npaused by {workflow.paused.paused_by}", style="dim")
        return head

    def _stage(self, line: Line, depth: int) -> RenderableType:
        stage = line.stage
        _, _, style = LOOKS[stage.status]
        text = self._symbol(stage.status)
        phase = phase_of(stage)
        named = _named(stage)
        if phase is not None:
            text.append(_PHASES[phase.value], style="dim")
            named = named.removeprefix(_PHASES[phase.value])
        text.append(named, style="dim" if stage.status is S.SKIPPED else "bold")
        text.append(" " * max(0, self.title_width - self._reach((line, depth))))
        text.append(f"  {stage.status!s:<{self.status_width}}", style=style)
        text.append(f" {elapsed(stage.start_time, stage.end_time, self.now):>7}")
        tries = attempts(stage)
        if tries > 1:
            text.append(f"  {tries} attempts", style="yellow")
        if stage.status is S.SUSPENDED:
            text.append("  waits for a signal", style="magenta")
        if line.after:
            text.append(f"  after {_listed(line.after)}", style="dim")
        text.rstrip()
        return self._with_error(text, error_text(stage), "red" if stage.status.is_failure else "yellow")

    def _task(self, task: TaskExecution) -> RenderableType:
        text = self._symbol(task.status)
        _, _, style = LOOKS[task.status]
        text.append(f"task {task.name or task.implementing_class}", style="italic")
        text.append(f"  {task.status}", style=style)
        took = elapsed(task.start_time, task.end_time, self.now)
        if took:
            text.append(f"  {took}")
        if task.attempts > 1:
            text.append(f"  {task.attempts} attempts", style="yellow")
        return _one_line(text)

    def _with_error(self, text: Text, error: str, style: str) -> RenderableType:
        lines = [line for line in error.strip().splitlines() if line.strip()]
        if not lines:
            return _one_line(text)
        if len(lines) > _MOST_ERROR_LINES:
            # Of a traceback the end says what happened.
            lines = ["...", *lines[-_MOST_ERROR_LINES:]]
        told = "\n".join(lines)
        if len(told) > _LONGEST_ERROR:
            told = f"{told[:_LONGEST_ERROR]} ..."
        return Group(_one_line(text), Text(told, style=style))

    def _left_out(self, lines: list[Line]) -> RenderableType:
        stages = [line.stage for top in lines for line in top.walk()]
        return _one_line(Text(f"{'...' if self.ascii else '…'} {_counted(stages)}", style="dim"))


def _choose(top: list[Line], most: int) -> set[str]:
    """The stages worth drawing, with those they stand under: failed ones, active ones, the first ones."""
    above: dict[str, str | None] = {line.stage.id: None for line in top}
    order: list[StageExecution] = []
    for line in (line for each in top for line in each.walk()):
        order.append(line.stage)
        above.update({other.stage.id: line.stage.id for other in line.below})
    order.sort(key=lambda stage: _interest(stage.status))
    kept: set[str] = set()
    for stage in order:
        way: list[str] = []
        step: str | None = stage.id
        while step is not None and step not in kept:
            way.append(step)
            step = above[step]
        if len(kept) + len(way) <= most:
            kept.update(way)
    return kept


def _interest(status: S) -> int:
    if status.is_failure:
        return 0
    return 1 if not status.is_complete and status is not S.NOT_STARTED else 2


def _named(stage: StageExecution) -> str:
    """The words a stage's line begins with."""
    text = title(stage)
    phase = phase_of(stage)
    return text if phase is None else _PHASES[phase.value] + text


def _counted(stages: list[StageExecution]) -> str:
    counts = Counter(stage.status for stage in stages)
    parts = [f"{counts[status]:,} {status}" for status in S if counts[status]]
    return f"{len(stages):,} stage{'s' * (len(stages) != 1)}: {', '.join(parts)}"


def _listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _one_line(text: Text) -> Text:
    text.no_wrap = True
    text.overflow = "ellipsis"
    return text
