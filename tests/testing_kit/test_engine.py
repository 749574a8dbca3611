"""The engine of a test: its time, its stand-ins, its lost workers, one stage alone."""

from __future__ import annotations

from datetime import timedelta

import pytest

from stabilize_celery import (
    PermanentError,
    StageDefinitionBuilder,
    StageExecution,
    SyntheticStageOwner,
    Task,
    TaskExecution,
    TaskResult,
    TransientError,
    Workflow,
    current_run,
)
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.errors import ConfigurationError, TaskNotFoundError
from stabilize_celery.testing import kit
from stabilize_celery.testing.assertions import assert_failed, assert_stage, assert_status, assert_succeeded

WEEK = 7 * 86400


def flow(*stages, **kwargs):
    return Workflow.create("tests", "flow", list(stages), **kwargs)


def one(type, context=None, ref="a"):
    return StageExecution.single(ref, type, context)


# ---------------------------------------------------------------------- time


def test_a_week_passes_at_once(stabilize, stabilize_clock):
    began = stabilize_clock.now()
    run = stabilize.run(flow(one("wait", {"seconds": WEEK})))
    assert_succeeded(run)
    assert stabilize_clock.now() - began == timedelta(days=7)
    assert stabilize.clock is stabilize_clock


def test_advance_handles_what_is_due_until_then_and_no_more(stabilize, stabilize_clock):
    began = stabilize_clock.now()
    run = stabilize.start(
        flow(one("wait", {"seconds": 60}), StageExecution.single("b", "wait", {"seconds": 60}, {"a"}))
    )
    assert_stage(run, "a", status=S.NOT_STARTED)
    stabilize.advance()
    assert_stage(run, "a", status=S.RUNNING)
    stabilize.advance(59)
    assert_stage(run, "a", status=S.RUNNING)
    stabilize.advance(timedelta(seconds=60))
    assert_stage(run, "a", status=S.SUCCEEDED)
    assert_stage(run, "b", status=S.RUNNING)
    assert stabilize_clock.now() - began == timedelta(seconds=119)
    stabilize.advance(WEEK)
    assert_succeeded(run)
    assert assert_stage(run, "b").end_time == began + timedelta(seconds=120)
    assert stabilize_clock.now() - began == timedelta(seconds=119 + WEEK)


def test_time_does_not_go_back(stabilize):
    with pytest.raises(ValueError, match="forward only, not by -1 s"):
        stabilize.advance(-1)


def test_a_signal_before_the_time_is_over_and_after_it(stabilize):
    in_time = stabilize.start(flow(one("approval", {"timeout": 100})))
    stabilize.advance(99)
    in_time.approve("a", user="kim")
    stabilize.drain()
    assert_succeeded(in_time)

    too_late = stabilize.start(flow(one("approval", {"timeout": 100})))
    stabilize.drain()
    assert_failed(too_late, "a")


@pytest.mark.parametrize("go_on", ["drain", "advance"])
def test_what_never_ends_is_noticed(stabilize, monkeypatch, go_on):
    monkeypatch.setattr(kit, "MOST_MESSAGES", 20)
    stabilize.stub("poll", returns=TaskResult.running())
    stabilize.start(flow(one("poll")))
    with pytest.raises(AssertionError, match="20 messages were handled and there are more"):
        stabilize.drain() if go_on == "drain" else stabilize.advance(1e6)


def test_many_short_workflows_are_not_taken_for_one_that_never_ends(stabilize, monkeypatch):
    monkeypatch.setattr(kit, "MOST_MESSAGES", 20)
    for _ in range(15):
        assert_succeeded(stabilize.run(flow(one("noop"))))


# ---------------------------------------------------------------------- stand-ins


def test_a_stub_gives_outputs_and_remembers_what_it_saw(stabilize):
    charge = stabilize.stub("charge", returns={"charge_id": "ch_1", "lines": [1]})
    ship = stabilize.stub("ship", returns=lambda seen: {"parcel": f"for {seen['charge_id']}"})
    run = stabilize.run(
        flow(one("charge", {"order": 42}), StageExecution.single("b", "ship", {"fast": True}, {"a"}))
    )
    assert_succeeded(run, {"parcel": "for ch_1"})
    assert charge.last.own_context == charge.last.context == {"order": 42}
    assert ship.last.context == {"charge_id": "ch_1", "lines": [1], "fast": True}
    assert (ship.last.own_context, ship.last.stage, ship.last.attempt) == ({"fast": True}, "b", 1)


def test_a_stub_gives_one_result_after_the_other(stabilize):
    answers = [TransientError("busy"), TaskResult.running(), TransientError, {"ok": True}]
    stub = stabilize.stub("ask", results=answers)
    run = stabilize.run(flow(one("ask")))
    assert_succeeded(run, {"ok": True})
    stub.assert_called(4)
    assert len({call.idempotency_key for call in stub.calls}) == 1
    assert stub.calls[0].at < stub.calls[1].at < stub.calls[2].at


def test_a_call_too_many_fails_the_stage(stabilize):
    stabilize.stub("ask", results=[None])
    run = stabilize.run(flow(one("ask"), StageExecution.single("b", "ask", requires={"a"})))
    assert_failed(run, "b", "the stub of ask was given 1 results and called 2 times, by stage b")


def test_a_stub_that_raises(stabilize):
    stub = stabilize.stub("ask", raises=PermanentError("out of order"))
    assert_failed(stabilize.run(flow(one("ask"))), "a", "out of order")
    stub.assert_called(times=1)


def test_a_stub_tells_how_often_it_was_called(stabilize):
    stub = stabilize.stub("ask", returns=None)
    with pytest.raises(AssertionError, match="stub of ask was not called"):
        stub.assert_called()
    with pytest.raises(AssertionError, match="was not called"):
        stub.last  # noqa: B018
    stabilize.run(flow(one("ask"), one("ask", ref="b")))
    with pytest.raises(
        AssertionError, match=r"called 2 times, not once\n.*attempt 1 of stage a\n.*of stage b"
    ):
        stub.assert_called(1)


def test_a_stub_takes_the_place_of_a_type_under_all_its_names(stabilize):
    class Charge(Task):
        aliases = ("pay",)

        def execute(self, stage):
            raise AssertionError("the real one")

    stabilize.registry.register("charge", Charge)
    stub = stabilize.stub("shop.Charge", returns={"stub": True})
    for name in ("charge", "pay", "shop.Charge"):
        assert_succeeded(stabilize.run(flow(one(name))), {"stub": True})
    stub.assert_called(3)


def test_a_stub_wants_one_kind_of_answer(stabilize):
    with pytest.raises(ConfigurationError, match="one of returns, raises and results"):
        stabilize.stub("ask", returns={}, raises=ValueError)


# ---------------------------------------------------------------------- lost workers


@pytest.mark.parametrize("before", [True, False])
def test_a_lost_worker_delays_a_task(stabilize, before):
    calls = []

    @stabilize.task("charge")
    def charge():
        calls.append(current_run().attempt)
        return {"charged": True}

    lost = stabilize.lose_worker("charge", before=before, times=2)
    run = stabilize.run(flow(one("charge")))
    assert_succeeded(run, {"charged": True})
    assert lost.times == 2
    assert calls == ([3] if before else [1, 2, 3])
    stage = assert_stage(run, "a", attempts=3)
    assert stage.end_time - stage.start_time >= 2 * timedelta(seconds=stabilize.settings.lease)

    again = stabilize.run(flow(one("charge")))
    assert_stage(again, "a", attempts=1)


def test_hooks_of_a_task_whose_worker_is_lost_are_called(stabilize):
    cleaned = []

    class Charge(Task):
        def execute(self, stage):
            return TaskResult.success()

        def on_cleanup(self, stage):
            cleaned.append(stage.ref_id)

    stabilize.registry.register("charge", Charge)
    stabilize.lose_worker("charge")
    assert_succeeded(stabilize.run(flow(one("charge"))))
    assert cleaned == ["a"]
    assert stabilize.registry.source("charge") is Charge


def test_a_worker_can_be_lost_while_time_passes(stabilize):
    stub = stabilize.stub("charge", returns={})
    stabilize.lose_worker("charge")
    run = stabilize.start(flow(one("charge")))
    stabilize.advance()
    stub.assert_called(1)
    assert_status(run, "RUNNING")
    stabilize.advance(stabilize.settings.lease + stabilize.settings.resend_delay)
    assert_succeeded(run)


def test_only_known_types_can_lose_a_worker(stabilize):
    with pytest.raises(TaskNotFoundError, match="chrage"):
        stabilize.lose_worker("chrage")


# ---------------------------------------------------------------------- one stage


def test_a_type_runs_alone_with_what_stages_before_it_gave(stabilize):
    ship = stabilize.stub("ship", returns={})
    run = stabilize.run_stage("ship", {"fast": True}, upstream={"charge": {"id": 1}, "check": {"ok": True}})
    assert_stage(run, "ship", status="SUCCEEDED")
    assert ship.last.context == {"id": 1, "ok": True, "fast": True}


def test_a_stage_of_a_workflow_runs_alone_and_the_workflow_is_left_as_it_is(stabilize):
    stabilize.stub("count", raises=AssertionError("not this one"))
    show = stabilize.stub("show", returns={})
    workflow = flow(
        one("count", ref="first"),
        StageExecution.single("a", "count", requires={"first"}),
        StageExecution.single("b", "count", requires={"first"}),
        StageExecution.single("show", "show", {"x": 1}, {"a", "b"}, output_reducers={"n": "sum"}),
    )
    stage = workflow.stage_by_ref_id("show")
    run = stabilize.run_stage(
        stage, {"x": 2}, upstream={"first": {"seen": 1, "n": 100}, "a": {"n": 3}, "b": {"n": 4}}
    )
    assert_succeeded(run)
    assert show.last.context == {"n": 7, "seen": 1, "x": 2}
    assert stage.context == {"x": 1}
    assert stage.execution is workflow
    assert run.workflow().stage_by_ref_id("show").id != stage.id


def test_stages_it_requires_need_not_be_named(stabilize):
    ship = stabilize.stub("ship", returns={})
    stabilize.run_stage(StageExecution.single("ship", "ship", requires={"charge"}))
    assert ship.last.context == {}


def test_a_stage_runs_alone_with_its_synthetic_stages(stabilize):
    class DeployBuilder(StageDefinitionBuilder):
        def build_tasks(self, stage):
            return [TaskExecution.create("Deploy", "noop")]

        def after_stages(self, stage, graph):
            after = SyntheticStageOwner.STAGE_AFTER
            graph.add(StageExecution.create_synthetic("noop", "Notify", stage, after))

    stabilize.register_builder(DeployBuilder())
    run = stabilize.run_stage(StageExecution(ref_id="deploy", type="deploy"))
    assert_stage(run, "Notify", status="SUCCEEDED")


def test_a_stage_alone_can_wait_for_a_signal(stabilize):
    run = stabilize.run_stage(one("approval", {"timeout": 10}, ref="ask"), drain=False)
    stabilize.advance()
    run.approve("ask")
    stabilize.drain()
    assert_succeeded(run)
