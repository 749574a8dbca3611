"""What Prometheus is told, from workflows that were run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from stabilize_celery import FakeClock, Stabilize, StageExecution, TaskResult, TransientError, Workflow
from stabilize_celery.contrib import prometheus
from stabilize_celery.contrib.prometheus import register


class Figures:
    """What a scrape says."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.samples = [
            sample
            for family in text_string_to_metric_families(generate_latest(registry).decode())
            for sample in family.samples
        ]

    def __call__(self, name: str, /, **labels: str) -> float | None:
        found = [s.value for s in self.samples if s.name == name and s.labels == labels]
        assert len(found) <= 1
        return found[0] if found else None

    def all(self, name: str) -> dict[tuple[str, ...], float]:
        return {tuple(s.labels.values()): s.value for s in self.samples if s.name == name}


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def stabilize(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stabilize]:
    monkeypatch.setattr(prometheus, "_FRESH", 0.0)
    with Stabilize.embedded(concurrency=1, clock=clock) as engine:
        yield engine


@pytest.fixture
def registry(stabilize: Stabilize) -> CollectorRegistry:
    registry = CollectorRegistry()
    collector = register(stabilize, registry)
    assert register(stabilize, registry) is collector
    # Identifiers are made by the machine's own clock, which this test's clock may be ahead of.
    collector._after = "0"
    return registry


def order(*stages: StageExecution) -> Workflow:
    return Workflow.create("shop", "order", list(stages))


def test_what_has_ended(stabilize: Stabilize, registry: CollectorRegistry) -> None:
    tries: list[int] = []

    @stabilize.task("flaky")
    def flaky(stage: StageExecution) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise TransientError("later", retry_after=20)

    def fail(stage: StageExecution) -> None:
        raise ValueError

    stabilize.registry.register("fail", fail)
    stabilize.run(order(StageExecution.single("a", "flaky")), timeout=30)
    stabilize.run(order(StageExecution.single("a", "fail")), timeout=30)
    told = Figures(registry)
    assert told("stabilize_up") == 1
    assert told("stabilize_stages_total", type="flaky", status="RUNNING") == 1
    assert told("stabilize_stages_total", type="flaky", status="SUCCEEDED") == 1
    assert told("stabilize_stages_total", type="fail", status="TERMINAL") == 1
    assert told("stabilize_task_retries_total", type="flaky") == 1
    assert told("stabilize_workflows_total", application="shop", name="order", status="TERMINAL") == 1
    labels = {"type": "flaky", "status": "SUCCEEDED"}
    assert told("stabilize_stage_duration_seconds_count", **labels) == 1
    assert told("stabilize_stage_duration_seconds_bucket", **labels, le="10.0") == 0
    assert told("stabilize_stage_duration_seconds_bucket", **labels, le="30.0") == 1
    assert told("stabilize_stage_duration_seconds_bucket", **labels, le="+Inf") == 1
    assert (told("stabilize_stage_duration_seconds_sum", **labels) or 0) >= 20
    again = Figures(registry)
    assert again.all("stabilize_stages_total") == told.all("stabilize_stages_total"), (
        "nothing is counted twice"
    )


def test_what_is_committed_late_is_counted(stabilize: Stabilize, registry: CollectorRegistry) -> None:
    run = stabilize.run(order(StageExecution.single("a", "noop")), timeout=30)
    before = Figures(registry).all("stabilize_stages_total")
    rows = stabilize.store.history(run.id)
    earlier = next(row for row in rows if row["event"] == "stage")
    from sqlalchemy import insert

    from stabilize_celery.persistence.tables import history

    # Made before, but committed only now.
    late = {**earlier, "id": earlier["id"][:-1] + ("0" if earlier["id"][-1] != "0" else "1")}
    with stabilize.store.database.begin() as connection:
        connection.execute(insert(history), late)
    after = Figures(registry).all("stabilize_stages_total")
    assert sum(after.values()) == sum(before.values()) + 1


def test_what_has_not_ended(stabilize: Stabilize, registry: CollectorRegistry, clock: FakeClock) -> None:
    stabilize.registry.register("ask", lambda stage: TaskResult.suspend())
    stabilize.run(order(StageExecution.single("a", "ask")), timeout=30)
    stabilize.start(order(StageExecution.single("a", "noop")))
    clock.advance(40)
    told = Figures(registry)
    assert told("stabilize_live_workflows", status="RUNNING") == 1
    assert told("stabilize_live_workflows", status="NOT_STARTED") == 1
    assert told("stabilize_queue_messages", queue="stabilize") == 1
    assert 40 <= (told("stabilize_queue_oldest_seconds", queue="stabilize") or 0) < 60
    assert 25 <= (told("stabilize_relay_lag_seconds") or 0) < 60
    assert told("stabilize_dead_letters") == 0
    assert told("stabilize_expired_leases") == 0


def test_a_worker_that_is_gone(stabilize: Stabilize, registry: CollectorRegistry, clock: FakeClock) -> None:
    stabilize.start(order(StageExecution.single("a", "noop")))
    while not any(kind == "RunTask" for _, kind in stabilize.publisher.ready):  # type: ignore[attr-defined]
        assert stabilize.processor.step()
    message_id, _ = stabilize.publisher.ready.popleft()  # type: ignore[attr-defined]
    assert stabilize.store.claim(message_id, "gone", 30.0) is not None
    assert Figures(registry)("stabilize_expired_leases") == 0
    clock.advance(31)
    assert Figures(registry)("stabilize_expired_leases") == 1


def test_the_number_of_series_is_bounded(
    stabilize: Stabilize, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prometheus, "_MOST_NAMES", 2)
    for name in "abcd":
        stabilize.run(Workflow.create("shop", name, [StageExecution.single("a", "noop")]), timeout=30)
    names = {key[1] for key in Figures(registry).all("stabilize_workflows_total")}
    assert len(names) == 3
    assert "" in names


def test_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> Any:
        raise OSError

    registry = CollectorRegistry()
    registry.register(prometheus.WorkflowCollector(away))
    assert Figures(registry).all("stabilize_up") == {(): 0.0}
    assert len(Figures(registry).samples) == 1
