"""Every kind of damage: an audit finds it, mends it, and the workflow ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, update

from stabilize_celery import Workflow, WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.persistence.tables import messages, slots, stages, workflows
from tests.conformance.harness import flow, stage
from tests.integration.recovery.conftest import Bench

PARENT = {"before": [{"name": "first"}, {"name": "second", "requires": ["first"]}]}
LIMITED = {"id": "one", "limitConcurrent": True, "maxConcurrentExecutions": 1, "keepWaitingPipelines": True}

#: Rules on what was read, the same for both databases: one is enough.
ON_SQLITE = pytest.mark.parametrize("bench", ["sqlite"], indirect=True)


def diamond() -> Workflow:
    return flow(stage("a"), stage("b", after=["a"]), stage("c", after=["a"]), stage("d", after=["b", "c"]))


def parent() -> Workflow:
    return flow(stage("a", plan=PARENT), stage("b", after=["a"]))


def skipped() -> Workflow:
    return flow(stage("a", stageEnabled=False), stage("b", after=["a"]))


def failing() -> Workflow:
    return flow(stage("a", "fail"), stage("b", after=["a"]), stage("c"))


def jumping() -> Workflow:
    return flow(stage("a"), stage("b", "jump_once", ["a"]))


def expiring() -> Workflow:
    return flow(stage("a", "script", do=[{"return": "suspend", "timeout": 600}]))


def limited(type: str = "script", **context: Any) -> Workflow:
    own = {"do": [{"return": "suspend"}], **context}
    return flow(stage("a", type, stageTimeoutMs=600_000, **own), stage("b", after=["a"]))


def limited_while_it_waits() -> Workflow:
    return limited(do=[{"return": "running", "after": 700.0}])


def limited_with_children() -> Workflow:
    waits = {"name": "first", "task": "script", "do": [{"return": "suspend"}]}
    return limited(plan={"before": [waits]})


def limited_within() -> Workflow:
    inner = {"application": "conformance", "name": "inner", "stages": [{"ref": "x", "type": "approval"}]}
    return limited("sub_workflow", workflow=inner)


def nesting() -> Workflow:
    inner = {"application": "conformance", "name": "inner", "stages": [{"ref": "x", "type": "noop"}]}
    return flow(stage("a", "sub_workflow", workflow=inner), stage("b", after=["a"]))


# What is lost, of which workflow, and how that ends.
LOST: list[tuple[str, Callable[[], Workflow], S]] = [
    ("StartWorkflow", diamond, S.SUCCEEDED),
    ("StartStage", diamond, S.SUCCEEDED),
    ("StartTask", diamond, S.SUCCEEDED),
    ("RunTask", diamond, S.SUCCEEDED),
    ("CompleteTask", diamond, S.SUCCEEDED),
    ("CompleteStage", diamond, S.SUCCEEDED),
    ("CompleteWorkflow", diamond, S.SUCCEEDED),
    ("ContinueParentStage", parent, S.SUCCEEDED),
    ("StartStage", parent, S.SUCCEEDED),
    ("SkipStage", skipped, S.SUCCEEDED),
    ("CompleteWorkflow", failing, S.TERMINAL),
    ("JumpToStage", jumping, S.SUCCEEDED),
    ("ExpireSuspension", expiring, S.TERMINAL),
    ("ExpireStage", limited, S.TERMINAL),
    ("ExpireStage", limited_while_it_waits, S.TERMINAL),
    ("ExpireStage", limited_with_children, S.TERMINAL),
    ("ExpireStage", limited_within, S.TERMINAL),
    ("SignalStage", nesting, S.SUCCEEDED),
]


@pytest.mark.parametrize(("type", "make", "end"), LOST, ids=[f"{t}-{m.__name__}" for t, m, _ in LOST])
def test_a_message_that_is_lost_is_made_anew(
    bench: Bench, type: str, make: Callable[[], Workflow], end: S
) -> None:
    run = bench.stabilize.start(make())
    bench.until_sent(type)
    if type.startswith("Expire"):
        # The time limit of a wait: until then nothing happens.
        bench.until(lambda: all(row["due_at"] > bench.clock.now() for row in bench.rows()))
    assert not bench.kinds(), "reported without a damage"

    bench.lose(type)
    # Let all go on that still can: what is stuck is stuck.
    if not type.startswith("Expire"):
        bench.drain()
        assert not run.ready()
    assert bench.kinds() & {"no message", "wrong count"}

    bench.mend()
    bench.drain()
    assert run.status is end
    assert {e["actor"] for e in run.history() if e["event"] == "repair"} == {"kim"}


@ON_SQLITE
def test_each_message_of_a_run_may_be_lost_one_after_the_other(bench: Bench) -> None:
    """Mended each time, it ends like any other."""
    run = bench.stabilize.start(diamond())
    lost = 0
    while not run.ready():
        for row in bench.rows():
            if row["type"] != "RunHook" and lost < 15:
                bench.execute(delete(messages).where(messages.c.id == row["id"]))
                lost += 1
        bench.mend()
        assert bench.stabilize.processor.step()
    bench.drain()
    assert run.status is S.SUCCEEDED
    assert lost > 10


# ------------------------------------------------------------------ counters


def column(table: Any, **values: Any) -> Callable[[Bench, WorkflowRun], None]:
    """Overwrite columns of the stage (by its ref) or the workflow."""

    def damage(bench: Bench, run: WorkflowRun) -> None:
        ref = values.pop("ref", None)
        if table is workflows:
            statement = update(workflows).where(workflows.c.id == run.id)
        else:
            statement = update(stages).where(stages.c.workflow_id == run.id)
            statement = statement.where((stages.c.ref_id == ref) | (stages.c.name == ref))
        bench.execute(statement.values(**values))
        values["ref"] = ref

    return damage


def held(bench: Bench, make: Callable[[], Workflow], ref: str) -> WorkflowRun:
    """A workflow whose stage ``ref`` waits for approval."""
    run = bench.stabilize.start(make())
    bench.drain()
    assert bench.statuses(run)[ref] == "SUSPENDED"
    return run


def held_diamond() -> Workflow:
    return flow(
        stage("a"), stage("b", "approval", ["a"]), stage("c", after=["a"]), stage("d", after=["b", "c"])
    )


def held_parent() -> Workflow:
    before = [{"name": "first", "task": "approval"}, {"name": "second", "requires": ["first"]}]
    return flow(stage("a", plan={"before": before}))


COUNTERS = [
    ("branches", held_diamond, "b", column(workflows, live_branches=7)),
    ("no branches", held_diamond, "b", column(workflows, live_branches=0)),
    ("halted", held_diamond, "b", column(workflows, has_halted=True)),
    ("too many upstreams", held_diamond, "b", column(stages, ref="d", open_upstreams=2)),
    ("no upstreams", held_diamond, "b", column(stages, ref="d", open_upstreams=0)),
    ("blocked", held_diamond, "b", column(stages, ref="d", blocked=True)),
    ("children", held_parent, "first", column(stages, ref="a", open_children=5)),
    ("no children", held_parent, "first", column(stages, ref="a", open_children=0)),
    ("siblings", held_parent, "first", column(stages, ref="second", open_upstreams=3)),
    ("blocked sibling", held_parent, "first", column(stages, ref="second", blocked=True)),
]


@ON_SQLITE
@pytest.mark.parametrize(("make", "ref", "damage"), [c[1:] for c in COUNTERS], ids=[c[0] for c in COUNTERS])
def test_a_count_that_is_wrong_is_counted_anew(
    bench: Bench,
    make: Callable[[], Workflow],
    ref: str,
    damage: Callable[[Bench, WorkflowRun], None],
) -> None:
    run = held(bench, make, ref)
    assert not bench.kinds()

    damage(bench, run)

    assert bench.mend() == {"wrong count"}
    run.approve(ref)
    bench.drain()
    assert run.status is S.SUCCEEDED


# ------------------------------------------------------------------ slots


def test_a_slot_held_by_a_workflow_that_has_ended_is_given_back(bench: Bench) -> None:
    ended = bench.stabilize.start(flow(stage("a"), config=LIMITED))
    bench.drain()
    bench.execute(update(workflows).where(workflows.c.id == ended.id).values(holds_slot=True))
    waiting = bench.stabilize.start(flow(stage("a"), config=LIMITED))
    bench.drain()
    assert waiting.status is S.BUFFERED

    assert bench.mend() == {"leaked slot"}

    bench.drain()
    assert waiting.status is S.SUCCEEDED


def test_one_that_waits_though_a_slot_is_free_is_let_in(bench: Bench) -> None:
    first = held(bench, lambda: flow(stage("ask", "approval"), config=LIMITED), "ask")
    second = bench.stabilize.start(flow(stage("a"), config=LIMITED))
    bench.drain()
    first.approve("ask")
    bench.until_sent("StartWaitingWorkflows")
    bench.lose("StartWaitingWorkflows")
    bench.drain()
    assert (first.status, second.status) == (S.SUCCEEDED, S.BUFFERED)

    assert bench.mend() == {"no message"}

    bench.drain()
    assert second.status is S.SUCCEEDED


def test_one_that_runs_without_a_slot_takes_one(bench: Bench) -> None:
    run = held(bench, lambda: flow(stage("ask", "approval"), config=LIMITED), "ask")
    bench.execute(update(workflows).where(workflows.c.id == run.id).values(holds_slot=False))

    assert bench.mend() == {"no slot"}

    other = bench.stabilize.start(flow(stage("a"), config=LIMITED))
    bench.drain()
    assert other.status is S.BUFFERED


def test_one_that_waits_for_a_slot_that_is_taken_is_not_reported(bench: Bench) -> None:
    held(bench, lambda: flow(stage("ask", "approval"), config=LIMITED), "ask")
    bench.stabilize.start(flow(stage("a"), config=LIMITED))
    bench.drain()

    found = bench.stabilize.audit()

    assert not found.problems
    assert found.causes["waits for a slot"] == 1
    assert found.causes["waits for a signal"] == 1

    bench.execute(update(slots).values(max_concurrent=5))
    assert bench.mend() == {"no message"}


# ------------------------------------------------------------------ messages


def test_messages_that_nobody_sends_are_reported(bench: Bench) -> None:
    bench.stabilize.start(diamond())
    bench.clock.advance(4000)

    (problem,) = bench.stabilize.audit().problems

    assert problem.kind == "overdue message"
    assert "StartWorkflow" in problem.what
    assert "rebuild" in problem.advice
    assert bench.stabilize.audit(overdue=1e6).problems == []


def test_a_lease_that_ran_out_and_was_not_sent_again_is_reported(bench: Bench) -> None:
    bench.stabilize.start(diamond())
    bench.until_sent("RunTask")
    (row,) = bench.rows("RunTask")
    assert bench.stabilize.store.claim(row["id"], "host:7", 30) is not None
    assert bench.stabilize.audit().causes["task at work"] == 1
    assert not bench.kinds()

    bench.clock.advance(100)

    (problem,) = bench.stabilize.audit().problems
    assert problem.kind == "expired lease"
    assert "host:7" in problem.what


def test_work_in_a_celery_queue_is_a_cause_and_is_sent_again_only_if_it_never_began(bench: Bench) -> None:
    bench.stabilize.start(diamond())
    bench.until_sent("RunTask")
    (row,) = bench.rows("RunTask")
    later = bench.stabilize.store.now() + timedelta(seconds=500)
    waits = update(messages).where(messages.c.id == row["id"])
    bench.execute(waits.values(lease_owner="queue=payments", send_at=later, attempts=0))
    assert bench.stabilize.audit().causes["task in a Celery queue"] == 1
    assert not bench.kinds()

    assert bench.stabilize.rebuild().sent == 1
    # It asked to be repeated then.
    bench.execute(waits.values(attempts=1))
    assert bench.stabilize.rebuild().sent == 0
    bench.clock.advance(5000)
    assert bench.stabilize.rebuild().sent == 1


def test_messages_about_nothing_are_deleted(bench: Bench) -> None:
    gone, canceled = (bench.stabilize.start(expiring()) for _ in "12")
    bench.until(lambda: len(bench.rows("ExpireSuspension")) == 2)
    kept = bench.rows("ExpireSuspension")
    canceled.cancel()
    bench.until(canceled.ready)
    row = next(row for row in kept if row["workflow_id"] == canceled.id)
    bench.stabilize.store.insert_messages([row])
    bench.execute(delete(workflows).where(workflows.c.id == gone.id))

    found = bench.stabilize.audit()
    assert sorted((p.kind, p.workflow_id) for p in found.problems) == [
        ("idle message", gone.id),
        ("idle message", canceled.id),
    ]

    bench.mend()
    assert not bench.rows("ExpireSuspension")


# ------------------------------------------------------------------ stages


def test_what_was_left_active_by_a_workflow_that_has_ended_is_canceled(bench: Bench) -> None:
    run = held(bench, lambda: flow(stage("ask", "approval")), "ask")
    bench.execute(update(workflows).where(workflows.c.id == run.id).values(status=S.TERMINAL))

    assert bench.mend() == {"left behind"}

    assert bench.statuses(run) == {"ask": "CANCELED"}


def test_a_paused_stage_that_nobody_woke_is_woken(bench: Bench) -> None:
    run = bench.stabilize.start(flow(stage("a")))
    bench.until_sent("RunTask")
    run.pause()
    # First the pause, then the task.
    bench.stabilize.publisher.ready.rotate(-1)
    bench.drain()
    assert bench.statuses(run) == {"a": "PAUSED"}
    assert bench.stabilize.audit().causes["stage paused"] == 1
    bench.execute(update(workflows).where(workflows.c.id == run.id).values(status=S.RUNNING))

    assert bench.mend() == {"not woken"}

    bench.drain()
    assert run.status is S.SUCCEEDED


def test_a_contradiction_is_left_to_a_person(bench: Bench) -> None:
    run = held(bench, lambda: flow(stage("ask", "approval")), "ask")
    bench.execute(update(stages).where(stages.c.workflow_id == run.id).values(tasks=[]))

    found = bench.stabilize.audit(repair=True)

    (problem,) = found.unrepaired
    assert (problem.kind, problem.stage) == ("contradiction", "ask")
    assert "skip or cancel the stage" in problem.advice
    run.skip_stage("ask")
    bench.drain()
    assert run.status is S.SUCCEEDED


def test_one_workflow_can_be_looked_at_alone(bench: Bench) -> None:
    broken, other = (bench.stabilize.start(diamond()) for _ in "12")
    bench.lose("StartWorkflow")

    found = bench.stabilize.audit(broken.id, repair=True)

    assert (found.workflows, [p.workflow_id for p in found.problems]) == (1, [broken.id])
    bench.drain()
    assert (broken.status, other.status) == (S.SUCCEEDED, S.NOT_STARTED)
