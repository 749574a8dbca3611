"""What came of it: a table with a line for each kind of fault."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from stabilize_celery import Workflow
from stabilize_celery import WorkflowStatus as S
from tests.chaos.checks import Finding
from tests.chaos.effects import Effect


@dataclass(frozen=True)
class Injection:
    """A fault that was injected, in seconds since the epoch: from its beginning until all was well again."""

    fault: str
    begin: float
    end: float


@dataclass
class Report:
    """Everything a run of the driver found out."""

    injections: list[Injection]
    findings: list[Finding]
    bodies: list[Effect]
    workflows: int
    #: Slots given out, held at once at most, given out over the limit.
    granted: tuple[int, int, int] = (0, 0, 0)
    #: Workers that ended by themselves.
    deserters: list[str] = field(default_factory=list)
    restarts: int = 0
    #: Workers that had to be killed because they did not shut down.
    stubborn: int = 0
    #: Results that came after their lease was lost.
    refused: int = 0
    #: Claims that a killed database had forgotten, so that another worker made the same one.
    forgotten: int = 0
    #: Queues that a worker should consume from and does not.
    idle: list[str] = field(default_factory=list)
    _lives: dict[str, tuple[float, float]] = field(default_factory=dict)
    _steps: list[float] = field(default_factory=list)
    _settled: int = 0
    transitions: int = 0

    def add_workflow(self, workflow: Workflow, history: list[dict[str, Any]]) -> None:
        """Take a workflow into the figures."""
        moments = [row["at"].timestamp() for row in history]
        assert workflow.created_at is not None
        begin = workflow.created_at.timestamp()
        self._lives[workflow.id] = (begin, max(moments, default=begin))
        self._steps = sorted([*self._steps, *moments])
        self.transitions += len(history)
        ran = {effect.task for effect in self.bodies}
        self._settled += sum(row["task_id"] in ran and _settles(row) for row in history)

    @property
    def problems(self) -> list[str]:
        """Everything that must not be; empty if all promises were kept."""
        found = [str(finding) for finding in self.findings]
        if self.granted[2]:
            found.append(f"{self.granted[2]} slots were given out over the limit")
        return found + [f"a worker does not consume: {queue}" for queue in self.idle]

    @property
    def in_vain(self) -> int:
        """Task bodies of which nothing was recorded, because their worker or its lease was lost."""
        return len(self.bodies) - self._settled

    def rows(self) -> list[tuple[str, int, int, int, int, float]]:
        """For each fault: name, times injected, workflows under way, lost, doubled, longest stall in seconds."""
        rows = []
        for fault in sorted({injection.fault for injection in self.injections}):
            mine = [injection for injection in self.injections if injection.fault == fault]
            hit = {id for each in mine for id in self._under_way(each)}
            lost = sum(finding.workflow_id in hit for finding in self.findings if finding.kind != "doubled")
            doubled = sum(
                finding.workflow_id in hit for finding in self.findings if finding.kind == "doubled"
            )
            rows.append((fault, len(mine), len(hit), lost, doubled, max(map(self._stall, mine))))
        return rows

    def _under_way(self, injection: Injection) -> list[str]:
        return [
            workflow_id
            for workflow_id, (begin, end) in self._lives.items()
            if begin <= injection.end and end >= injection.begin
        ]

    def _stall(self, injection: Injection) -> float:
        """The longest time without a step of any workflow, from the fault until the next one."""
        later = [other.begin for other in self.injections if other.begin > injection.begin]
        first = bisect_right(self._steps, injection.begin)
        last = bisect_right(self._steps, min(later)) if later else len(self._steps)
        moments = [injection.begin, *self._steps[first : last + 1]]
        return max((after - before for before, after in pairwise(moments)), default=0.0)

    def __str__(self) -> str:
        lines = [
            "| fault | injected | workflows under way | lost | doubled | longest stall |",
            "|---|---|---|---|---|---|",
        ]
        for fault, times, hit, lost, doubled, stall in self.rows():
            lines.append(f"| {fault} | {times} | {hit} | {lost} | {doubled} | {stall:.1f} s |")
        grants, most, _ = self.granted
        slowest = max((end - begin for begin, end in self._lives.values()), default=0.0)
        lines += [
            "",
            f"{self.workflows} workflows, {self.transitions} transitions.",
            f"{len(self.bodies)} task bodies, {self.in_vain} of them in vain, {self.refused} late results refused.",
            f"{self.forgotten} claims were forgotten by a killed database.",
            f"{grants} slots given out, {most} held at once at most. The slowest workflow took {slowest:.1f} s.",
            f"{self.restarts} workers started again, {len(self.deserters)} had ended by themselves.",
            f"{self.stubborn} times a worker did not shut down and was killed.",
        ]
        lines += [f"PROBLEM {problem}" for problem in self.problems]
        return "\n".join(lines)


def _settles(row: dict[str, Any]) -> bool:
    """Whether what an attempt came to is told by this entry of a history."""
    return row["event"] == "retry" or (row["event"] == "task" and row["from_status"] is S.RUNNING)
