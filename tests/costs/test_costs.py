"""What a stage costs does not depend on the machine, nor on how many stages there are.

Targets T5 and P7: with continuation on, a one-task stage takes one message, two transactions (one of which does not
wait for the disk) and at most ten statements, its history included.
"""

from __future__ import annotations

import pytest

from stabilize_celery import Stabilize, StageExecution, Task, TaskResult, TransientError, Workflow
from tests.costs.meter import Meter

SIZES = (10, 100, 1000)


class Flaky(Task):
    """Fails as often as it is told to."""

    def execute(self, stage):
        done = stage.context.get("failed", 0)
        if done < stage.context["failures"]:
            raise TransientError("again", retry_after=0, context_update={"failed": done + 1})
        return TaskResult.success()


class Listens(Task):
    """Waits for as many signals as it is told to."""

    def execute(self, stage):
        heard = stage.context.get("heard", 0) + ("_signal_name" in stage.context)
        if heard < stage.context["signals"]:
            return TaskResult.suspend(context={"heard": heard})
        return TaskResult.success()


@pytest.fixture(scope="module")
def still_server(postgres_service):
    """A server on which only the test takes transaction numbers or counts rows for the planner."""
    postgres_service.stop_autovacuum()
    yield
    postgres_service.resume_autovacuum()


@pytest.fixture
def engine(still_server, postgres_url):
    made = Stabilize.embedded(postgres_url, concurrency=1, retry_delay=0.001, retry_delay_max=0.001)
    made.task("work")(lambda: {"value": "x" * 20})
    made.registry.register("flaky", Flaky)
    made.registry.register("listens", Listens)
    # The first statements of a connection, and those the driver has not prepared yet, are no measure.
    made.run(chain(12), timeout=60)
    made.run(fan_out(12), timeout=60)
    yield made
    made.close()


@pytest.fixture
def meter(engine):
    return Meter(engine)


def one(ref, requires=()):
    return StageExecution.single(ref, "work", requires=set(requires))


def chain(length):
    stages = [one(f"s{i:05}", [f"s{i - 1:05}"] if i else ()) for i in range(length)]
    return Workflow.create("costs", "chain", stages)


def fan_out(width):
    arms = [one(f"arm{i:05}", ["first"]) for i in range(width)]
    last = one("last", [arm.ref_id for arm in arms])
    return Workflow.create("costs", "fan-out", [one("first"), *arms, last])


def costs_of(engine, meter, make, sizes=SIZES):
    """What one more stage costs from each size to the next; starting the workflow is not counted."""
    measured = []
    for size in sizes:
        run = engine.start(make(size))
        with meter.measuring() as costs:
            engine.processor.drain(timeout=110)
        assert run.status.is_successful
        measured.append(costs)
    pairs = zip(sizes, measured, sizes[1:], measured[1:], strict=False)
    return [more.per(many, fewer, few) for few, fewer, many, more in pairs]


@pytest.mark.parametrize(("shape", "statements"), [(chain, 7), (fan_out, 6)])
def test_one_more_stage_costs_the_same_in_any_workflow(engine, meter, shape, statements):
    small, large = costs_of(engine, meter, shape)
    for cost in (small, large):
        # Arms of a fan-out are started in batches, which is a fraction of a statement each.
        assert statements <= cost["total"] < statements + 0.6
        assert cost["transactions"] == pytest.approx(2, abs=0.05)
        assert cost["published"] == pytest.approx(1, abs=0.001)
        assert cost["published_bytes"] < 1200
    # An arm that is started in a later batch than its stage has arrived in is written once more.
    assert large["rows"] <= small["rows"] + 1
    assert large["published_bytes"] == pytest.approx(small["published_bytes"], rel=0.01)
    # By their keys, also while nobody has counted the rows of the tables, when a plan that is made looks at all of them.
    assert small["read"] < 30
    assert large["read"] < 30
    # Which pages a row lands on differs a little.
    assert large["wal_bytes"] == pytest.approx(small["wal_bytes"], rel=0.25)


def test_a_workflow_of_three_stages_costs_at_most_32_statements(engine, meter):
    with meter.measuring() as costs:
        run = engine.start(chain(3))
        engine.processor.drain(timeout=60)
    assert run.status.is_successful
    assert costs.total <= 32, "\n".join(map(str, costs.statements.most_common()))
    assert costs.published == 4


def test_one_more_retry_costs_the_same_however_many_there_were(engine, meter):
    def flaky(failures):
        stage = StageExecution.single("flaky", "flaky", context={"failures": failures})
        return Workflow.create("costs", "flaky", [stage])

    first, later = costs_of(engine, meter, flaky, sizes=(1, 4, 8))
    for cost in (first, later):
        assert cost["total"] <= 6
        assert cost["transactions"] == 2
    assert later["total"] == first["total"]


def test_one_more_signal_costs_the_same_however_many_there_were(engine, meter):
    def signalled(count):
        stage = StageExecution.single("gate", "listens", context={"signals": count})
        run = engine.start(Workflow.create("costs", "gate", [stage]))
        engine.processor.drain(timeout=60)
        with meter.measuring() as costs:
            for number in range(count):
                run.signal("gate", "go", {"number": number})
                engine.processor.drain(timeout=60)
        assert run.status.is_successful
        return costs

    one, five, nine = signalled(1), signalled(5), signalled(9)
    first, later = five.per(5, one, 1), nine.per(9, five, 5)
    assert first["total"] == later["total"]
    assert first["published"] == later["published"] == 2
    assert first["transactions"] == later["transactions"]


def test_what_waits_costs_nothing(engine, meter):
    """Target T9: no statement for a stage that waits, however many there are and however long."""
    waiting = [
        Workflow.create("costs", "waits", [StageExecution.single("gate", "approval", context={})])
        for _ in range(200)
    ]
    engine.start_many(waiting)
    engine.processor.drain(timeout=60)
    with meter.measuring() as costs:
        for _ in range(20):
            assert engine.processor.drain(timeout=1) == 0
            engine.store.next_due()
    assert costs.total == 0
    assert costs.transactions == 0
    assert costs.rows == 0
