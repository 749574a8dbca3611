"""Concurrency limits: scenarios 69 and 70, decision 12, defect 31."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from stabilize_celery import WorkflowRun
from stabilize_celery import WorkflowStatus as S
from tests.conformance.harness import ConformanceEngine, Gate, flow, stage


class Line:
    """Executions of one configuration, each of which runs until its gate opens."""

    def __init__(self, engine: ConformanceEngine, limit: int | None = 1, *, keep: bool = True) -> None:
        self.engine = engine
        self.config: dict[str, Any] = {"id": f"line-{uuid.uuid4().hex}"}
        if limit is not None:
            self.config |= {"limitConcurrent": True, "maxConcurrentExecutions": limit}
        self.config["keepWaitingPipelines"] = keep
        self.runs: list[WorkflowRun] = []
        self.gates: list[Gate] = []

    def add(self, *, settle: bool = True, **config: Any) -> WorkflowRun:
        """One more, which has a slot or waits for one when this returns."""
        gate = self.engine.gate(f"gate{len(self.runs)}")
        body = stage("a", "script", do=[[{"wait_file": gate.path}, {"return": "success"}]])
        run = self.engine.start(flow(body, stage("b", after=["a"]), config={**self.config, **config}))
        self.runs.append(run)
        self.gates.append(gate)
        if settle:
            self.engine.wait_until(lambda: run.status is not S.NOT_STARTED, run=run)
        return run

    def statuses(self) -> list[str]:
        return [str(run.status) for run in self.runs]

    def wait(self, *statuses: str) -> None:
        self.engine.wait_until(lambda: self.statuses() == list(statuses), run=self.runs[0])


def test_one_at_a_time_first_come_first_served(engine: ConformanceEngine) -> None:
    """Scenario 69."""
    line = Line(engine)
    for _ in range(4):
        line.add()
    assert line.statuses() == ["RUNNING", "BUFFERED", "BUFFERED", "BUFFERED"]
    for number in range(4):
        line.gates[number].open()
        ended = ["SUCCEEDED"] * (number + 1)
        line.wait(*[*ended, "RUNNING", "BUFFERED", "BUFFERED", "BUFFERED"][:4])
    starts = [run.workflow().start_time for run in line.runs]
    assert starts == sorted(starts)


def test_the_oldest_is_the_one_that_was_made_first(engine: ConformanceEngine) -> None:
    """Whatever was started first: the ids count, see docs/how-to/limits.md."""
    line = Line(engine)
    holder = line.add()
    gate = engine.gate("of-all")
    body = [[{"wait_file": gate.path}, {"return": "success"}]]
    made = [flow(stage("a", "script", do=body), config=line.config) for _ in range(3)]
    assert [w.id for w in made] == sorted(w.id for w in made)
    later = {}
    for workflow in reversed(made):
        later[workflow.id] = engine.start(workflow)
        engine.wait_until(lambda run=later[workflow.id]: run.status is S.BUFFERED)  # type: ignore[misc]
    line.gates[0].open()
    engine.wait_until(lambda: str(later[made[0].id].status) == "RUNNING", run=holder)
    assert [str(later[w.id].status) for w in made] == ["RUNNING", "BUFFERED", "BUFFERED"]
    gate.open()
    engine.wait_until(lambda: all(run.ready() for run in later.values()), run=holder)
    starts = [later[w.id].workflow().start_time for w in made]
    assert starts == sorted(starts)  # type: ignore[type-var]


def test_one_that_gave_its_slot_back_is_older_than_those_made_after_it(engine: ConformanceEngine) -> None:
    line = Line(engine)
    first, second, third = (line.add() for _ in range(3))
    first.pause()
    line.wait("PAUSED", "RUNNING", "BUFFERED")
    first.resume()
    line.wait("BUFFERED", "RUNNING", "BUFFERED")
    line.gates[1].open()
    line.wait("RUNNING", "SUCCEEDED", "BUFFERED")
    for gate in (line.gates[0], line.gates[2]):
        gate.open()
    line.wait("SUCCEEDED", "SUCCEEDED", "SUCCEEDED")
    assert second.status is third.status


def test_without_keeping_the_newest_is_started_and_the_others_are_canceled(engine: ConformanceEngine) -> None:
    """Scenario 69 with keep=False; defect 31: the oldest was kept."""
    line = Line(engine, keep=False)
    for _ in range(4):
        line.add()
    assert line.statuses() == ["RUNNING", "BUFFERED", "BUFFERED", "BUFFERED"]
    line.gates[0].open()
    line.wait("SUCCEEDED", "CANCELED", "CANCELED", "RUNNING")

    workflow = line.runs[1].workflow()
    assert "newer execution" in (workflow.cancellation_reason or "")
    assert workflow.stages[0].status is S.NOT_STARTED
    line.gates[3].open()
    line.wait("SUCCEEDED", "CANCELED", "CANCELED", "SUCCEEDED")


def test_a_waiting_one_may_be_canceled(engine: ConformanceEngine) -> None:
    """Scenario 70."""
    line = Line(engine, limit=2)
    for _ in range(4):
        line.add()
    line.runs[2].cancel(user="kim", reason="not needed")
    line.wait("RUNNING", "RUNNING", "CANCELED", "BUFFERED")
    line.gates[1].open()
    line.wait("RUNNING", "SUCCEEDED", "CANCELED", "RUNNING")

    assert line.runs[2].workflow().canceled_by == "kim"
    assert line.runs[2].workflow().stages[0].status is S.NOT_STARTED


@pytest.mark.parametrize("how", ["cancel", "fail", "pause"])
def test_whatever_ends_or_pauses_one_starts_the_next(engine: ConformanceEngine, how: str) -> None:
    line = Line(engine)
    if how == "fail":
        gate = engine.gate("fails")
        body = stage("a", "script", do=[[{"wait_file": gate.path}, {"return": "terminal"}]])
        line.runs.append(engine.start(flow(body, config=line.config)))
        line.gates.append(gate)
        engine.wait_until(lambda: line.runs[0].status is S.RUNNING)
    else:
        line.add()
    line.add()
    assert line.statuses() == ["RUNNING", "BUFFERED"]
    {"cancel": line.runs[0].cancel, "fail": line.gates[0].open, "pause": line.runs[0].pause}[how]()
    line.wait({"cancel": "CANCELED", "fail": "TERMINAL", "pause": "PAUSED"}[how], "RUNNING")


def test_resume_needs_a_slot_again(engine: ConformanceEngine) -> None:
    """Decision 12; defect 31: two ran where one may."""
    line = Line(engine)
    engine.wait_event(line.add(), "a")
    line.runs[0].pause()
    line.wait("PAUSED")
    line.add()
    line.runs[0].resume()
    line.wait("BUFFERED", "RUNNING")
    # The body that ran when the pause began ends; what follows it waits for the slot.
    line.gates[0].open()
    engine.wait_status(line.runs[0], "b", "PAUSED")
    line.gates[1].open()
    line.wait("SUCCEEDED", "SUCCEEDED")


def test_restart_needs_a_slot_again(engine: ConformanceEngine) -> None:
    """Decision 12; defect 31."""
    line = Line(engine)
    line.add()
    line.gates[0].open()
    line.wait("SUCCEEDED")
    line.add()
    line.runs[0].restart_stage("b")
    line.wait("BUFFERED", "RUNNING")
    line.gates[1].open()
    line.wait("SUCCEEDED", "SUCCEEDED")
    assert engine.result(line.runs[0]).executions("b") == 2


def test_a_flag_without_a_number_allows_one(engine: ConformanceEngine) -> None:
    """Decision 12, as in Orca."""
    line = Line(engine, limit=None)
    line.config["limitConcurrent"] = True
    line.add()
    line.add()
    assert line.statuses() == ["RUNNING", "BUFFERED"]
    line.gates[0].open()
    line.gates[1].open()
    line.wait("SUCCEEDED", "SUCCEEDED")


def test_a_number_without_the_flag_limits_nothing(engine: ConformanceEngine) -> None:
    line = Line(engine, limit=None)
    line.config["maxConcurrentExecutions"] = 1
    line.add()
    line.add()
    assert line.statuses() == ["RUNNING", "RUNNING"]


def test_an_unlimited_execution_sends_nobody_away(engine: ConformanceEngine) -> None:
    """Defect 31: the end of an unlimited run of the same configuration canceled all that waited."""
    line = Line(engine)
    line.add()
    line.add()
    line.add(limitConcurrent=False, keepWaitingPipelines=False)
    # The newest one's limit counts: there is none any more.
    line.wait("RUNNING", "RUNNING", "RUNNING")
    for gate in line.gates:
        gate.open()
    line.wait("SUCCEEDED", "SUCCEEDED", "SUCCEEDED")


def test_the_limit_of_the_newest_execution_counts(engine: ConformanceEngine) -> None:
    """Decision 12."""
    line = Line(engine, limit=1)
    line.add()
    line.add()
    line.add(maxConcurrentExecutions=2)
    line.wait("RUNNING", "RUNNING", "BUFFERED")
    line.gates[0].open()
    line.wait("SUCCEEDED", "RUNNING", "RUNNING")
