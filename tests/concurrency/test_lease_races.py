"""Who may report what came of a task, who sends it again, and what happens to a message that cannot be handled."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from sqlalchemy import select, text, update

from stabilize_celery import Task, TaskResult
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.persistence import tables
from stabilize_celery.tasks.outcome import Attempt, Outcome, Verdict
from tests.concurrency.aftermath import check, stage, statuses, times_started
from tests.concurrency.stage_hands import HANDLED, TAKEN, Scene, this_contender
from tests.conformance.harness import flow
from tests.conformance.harness import stage as a_stage

RETURNED = "task.returned"


def report(scene: Scene, outputs: dict[str, object]):
    """Reporting an outcome of the one task that runs, under the lease it has now."""
    messages = tables.messages
    (row,) = scene.execute(select(messages.c.id, messages.c.claims).where(messages.c.type == "RunTask"))
    outcome = Outcome(Verdict.RETURNED, TaskResult.success(outputs=outputs))
    return lambda engine: engine.dispatcher.worker.settle(row.id, row.claims, Attempt(outcome, 1, "w"))


@pytest.mark.parametrize("at", [HANDLED, TAKEN])
def test_a_deadline_and_the_return_of_the_task_report_at_the_same_moment(scene: Scene, at: str) -> None:
    """Both hold the same lease, and each has an outcome: the first one counts."""
    run = scene.start(flow(a_stage("a"), a_stage("b", after=["a"])), "RunTask")
    worker = scene.contender(scene.message("RunTask a"), RETURNED).until_held()
    first, second = scene.collide(report(scene, {"by": "first"}), report(scene, {"by": "second"}), at)
    assert (first.result, second.result) == (True, False)
    assert second.waited, "the second one waits for the row of the message"
    worker.join()
    scene.proceed()
    assert run.status is S.SUCCEEDED
    assert stage(run, "a").outputs == {"by": "first"}
    assert times_started(run, "b") == 1
    check(scene, run)


def test_a_deadline_that_comes_while_the_task_returns(scene: Scene) -> None:
    """With a real deadline: the task returns as soon as it hears that its time is over."""
    heard = threading.Event()

    class Slow(Task):
        def get_execution_timeout(self, stage):
            return timedelta(milliseconds=20)

        def execute(self, stage):
            assert heard.wait(60)
            return TaskResult.success(outputs={"by": "the task"})

        def on_timeout(self, stage):
            heard.set()
            return TaskResult.success(outputs={"by": "the deadline"})

    scene.engine.registry.register("slow", Slow)
    run = scene.start(flow(a_stage("a", "slow"), a_stage("b", after=["a"])))
    # The deadline reports in a thread of its own.
    scene.until(lambda: stage(run, "a").status.is_complete)
    scene.proceed()
    assert run.status is S.SUCCEEDED
    assert stage(run, "a").outputs == {"by": "the deadline"}
    check(scene, run)


@pytest.mark.parametrize("relay_first", [True, False], ids=["taken-away", "still-its-own"])
def test_a_lease_that_has_ended_against_its_holders_result(scene: Scene, relay_first: bool) -> None:
    """The first worker is slow; its lease ends; another one runs the task: only one result counts."""
    run = scene.start(flow(a_stage("a", "function", give={"n": 1}), a_stage("b", after=["a"])), "RunTask")
    work = scene.message("RunTask a")
    slow = scene.contender(work, RETURNED).until_held()
    scene.let_leases_end()
    if relay_first:
        scene.engine.store.take_due(10, lambda row: 3600.0)
    other = scene.contender(work, RETURNED).until_held()
    # The slow one goes first, and is refused: its token is an old one.
    slow.join()
    assert not stage(run, "a").status.is_complete
    other.join()
    scene.proceed()
    assert run.status is S.SUCCEEDED
    assert times_started(run, "b") == 1
    assert stage(run, "a").outputs == {"n": 1}
    check(scene, run)


def test_the_end_of_a_lease_while_its_holder_reports(scene: Scene) -> None:
    """The relay and another worker come while the result is being written: both pass by."""
    run = scene.start(flow(a_stage("a"), a_stage("b", after=["a"])), "RunTask")
    work = scene.message("RunTask a")
    claimed = scene.contender(work, RETURNED).until_held()
    scene.let_leases_end()
    reporting = scene.contender(report(scene, {"by": "its holder"}), HANDLED).until_held()
    assert scene.engine.store.take_due(10, lambda row: 1.0) == [], (
        "a row that is being handled was sent again"
    )
    other = scene.contender(work).until_stuck()
    assert other.waited, "another worker that comes for it waits for the row"
    reporting.join()
    assert other.join().result is False
    claimed.join()
    scene.proceed()
    assert stage(run, "a").outputs == {"by": "its holder"}
    assert run.status is S.SUCCEEDED
    check(scene, run)


@pytest.mark.parametrize("share", [30, 100], ids=["less-than-all", "all"])
def test_two_relays_sweep_at_the_same_time(scene: Scene, share: int) -> None:
    scene.start(flow(*(a_stage(f"s{n}") for n in range(60))), "RunTask")
    scene.execute(update(tables.messages).values(send_at=scene.engine.store.now()))

    def hold(_row: object) -> float:
        if not this_contender().held.is_set():
            this_contender().hold()
        return 3600.0

    first = scene.contender(lambda engine: engine.store.take_due(share, hold)).until_held()
    second = scene.contender(lambda engine: engine.store.take_due(100, lambda _: 3600.0)).until_stuck()
    assert not second.waited, "relays pass each other by"
    taken = [row["id"] for each in (first, second) for row in each.join().result]
    assert len(taken) == len(set(taken)) == 60, "each is sent once"
    assert len(first.result) == min(share, 60)


def test_dedup_keys_twice(scene: Scene) -> None:
    """Several keys in one start, named in a different order by the other one."""
    keys = ["x", "y", "z"]

    def start(engine, order):
        flows = [flow(a_stage("a"), name=key) for key in order]
        for each in flows:
            each.dedup_key = each.name
        return dict(zip(order, (run.id for run in engine.start_many(flows)), strict=True))

    first = scene.contender(lambda engine: start(engine, keys), "start.written").until_held()
    second = scene.contender(lambda engine: start(engine, keys[::-1])).until_stuck()
    assert second.waited, "whether the first start counts is known only when it commits"
    assert first.join().result == second.join().result
    runs = [scene.engine.get(found) for found in first.result.values()]
    assert len({run.id for run in runs}) == len(keys)
    scene.proceed()
    assert {run.status for run in runs} == {S.SUCCEEDED}
    check(scene, *runs)


def test_a_start_that_is_rolled_back_frees_its_dedup_key(scene: Scene) -> None:
    class PowerCutError(BaseException):
        pass

    def start(engine):
        return engine.start(flow(a_stage("a")), dedup_key="one").id

    first = scene.contender(start, "start.written", fails_with=PowerCutError()).until_held()
    second = scene.contender(start).until_stuck()
    assert second.waited
    with pytest.raises(PowerCutError):
        first.join()
    run = scene.engine.get(second.join().result)
    scene.proceed()
    assert run.status is S.SUCCEEDED
    check(scene, run)


def bury(scene: Scene, kind: str):
    """Giving a message up."""
    (row,) = [row for row in scene.messages() if row["type"] == kind]
    error = {"details": {"error": "cannot be handled"}}
    return lambda engine: engine.dispatcher._bury(row["id"], error)


def test_a_message_is_given_up_while_another_worker_handles_it(scene: Scene) -> None:
    run = scene.start(flow(a_stage("a")), "StartWorkflow")
    _, second = scene.collide(scene.message("StartWorkflow"), bury(scene, "StartWorkflow"))
    assert second.waited
    scene.proceed()
    assert run.status is S.SUCCEEDED, "what was handled cannot be given up"
    check(scene, run)


def test_a_message_comes_while_another_worker_gives_it_up(scene: Scene) -> None:
    run = scene.start(flow(a_stage("a"), a_stage("b")), "RunTask")
    signal = scene.ordered(lambda: run.signal("a", "go"))
    letter = bury(scene, "SignalStage")
    # Held by somebody else's lock on the row it writes last.
    with scene.engine.store.database.begin() as connection:
        connection.execute(
            text("SELECT 1 FROM stabilize_workflows WHERE id = :id FOR UPDATE"), {"id": run.id}
        )
        burier = scene.contender(letter).until_stuck()
        assert burier.waited
        handler = scene.contender(signal).until_stuck()
        assert handler.waited, "it waits at the gate"
    burier.join()
    assert handler.join().result is False
    scene.proceed()
    assert run.status is S.TERMINAL
    assert statuses(run) == {"a": "CANCELED", "b": "CANCELED"}
    letters = scene.execute(select(tables.dead_letters.c.type))
    assert [letter.type for letter in letters] == ["SignalStage"]


@pytest.mark.parametrize("what", ["take_back", "send_soon"])
def test_a_relay_never_waits_for_what_others_do_with_messages(scene: Scene, what: str) -> None:
    """It changes many rows in an order of its own: waiting for one with others locked would be half a deadlock."""
    run = scene.start(flow(a_stage("a"), a_stage("b"), a_stage("c")), "RunTask")
    ids = [row["id"] for row in scene.messages()]
    if what == "take_back":
        scene.execute(update(tables.messages).values(lease_owner="queue=elsewhere"))
    cancel = scene.contender(scene.ordered(run.cancel), HANDLED).until_held()
    relay = scene.contender(
        lambda engine: (
            engine.store.take_back(ids) if what == "take_back" else engine.store.send_soon(ids, 1.0)
        )
    ).until_stuck()
    assert not relay.waited
    relay.join()
    cancel.join()
    scene.proceed()
    assert run.status is S.CANCELED
    check(scene, run)
