"""Spans of task runs: one trace per workflow, what user code traces below them, errors without secrets."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from stabilize_celery import Stabilize, StageExecution, TransientError, Workflow
from stabilize_celery.contrib.opentelemetry import trace_ids
from stabilize_celery.errors import ConfigurationError


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # A process has one provider and it cannot be changed: here each test has its own.
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


def order(*stages: StageExecution) -> Workflow:
    return Workflow.create("shop", "order", list(stages))


@pytest.fixture
def stabilize() -> Iterator[Stabilize]:
    with Stabilize.embedded(concurrency=1, tracing=True, retry_delay=0.01, retry_delay_max=0.01) as engine:
        yield engine


def test_a_span_for_each_run_in_one_trace(spans: InMemorySpanExporter, stabilize: Stabilize) -> None:
    tries: list[int] = []

    @stabilize.task("flaky")
    def flaky(stage: StageExecution) -> None:
        tries.append(1)
        if len(tries) == 1:
            raise TransientError("password=hunter2 is wrong")

    run = stabilize.run(
        order(StageExecution.single("a", "flaky"), StageExecution.single("b", "noop", requires={"a"})),
        timeout=30,
    )
    found = spans.get_finished_spans()
    assert [span.name for span in found] == ["order / a", "order / a", "order / b"]
    trace_id, root = trace_ids(run.id)
    assert {(span.context.trace_id, span.parent.span_id) for span in found} == {(trace_id, root)}
    first, second, _ = found
    stage = run.workflow().stages[0]
    assert dict(first.attributes) == {
        "stabilize.workflow.id": run.id,
        "stabilize.workflow.name": "order",
        "stabilize.workflow.application": "shop",
        "stabilize.stage.id": stage.id,
        "stabilize.stage.ref": "a",
        "stabilize.stage.type": "flaky",
        "stabilize.stage.generation": 0,
        "stabilize.task.id": stage.tasks[0].id,
        "stabilize.task.type": "flaky",
        "stabilize.task.attempt": 1,
        "stabilize.verdict": "retry",
    }
    assert second.attributes["stabilize.task.attempt"] == 2
    assert second.attributes["stabilize.status"] == "SUCCEEDED"
    assert not first.status.is_ok
    (event,) = first.events
    assert (event.name, event.attributes["exception.type"]) == ("exception", "TransientError")
    assert "hunter2" not in str(event.attributes) + str(first.status.description)
    assert second.status.is_unset


def test_what_user_code_traces_is_below(spans: InMemorySpanExporter, stabilize: Stabilize) -> None:
    @stabilize.task("charge")
    def charge(stage: StageExecution) -> None:
        with trace.get_tracer("shop").start_as_current_span("bank"):
            pass

    stabilize.run(order(StageExecution.single("a", "charge")), timeout=30)
    bank, run = spans.get_finished_spans()
    assert (bank.name, bank.parent.span_id) == ("bank", run.context.span_id)


def test_it_joins_the_trace_of_whoever_started_it(spans: InMemorySpanExporter, stabilize: Stabilize) -> None:
    @stabilize.task("inner")
    def inner(stage: StageExecution) -> None:
        pass

    inside: dict[str, Any] = {"stages": [{"ref": "x", "type": "inner"}]}
    with trace.get_tracer("shop").start_as_current_span("request") as request:
        run = stabilize.start(order(StageExecution.single("a", "sub_workflow", {"workflow": inside})))
    stabilize.processor.drain(30)
    assert run.status.name == "SUCCEEDED"
    found = {span.name: span for span in spans.get_finished_spans()}
    assert {span.context.trace_id for span in found.values()} == {request.get_span_context().trace_id}
    assert found["order / a"].parent.span_id == request.get_span_context().span_id
    assert any(name.endswith(" / x") for name in found), "a sub-workflow joins as well"


def test_a_workflow_started_outside_any_span_carries_none(stabilize: Stabilize) -> None:
    assert stabilize.start(order(StageExecution.single("a", "noop"))).workflow().trigger.traceparent is None


def test_off_by_default(spans: InMemorySpanExporter) -> None:
    with Stabilize.embedded(concurrency=1) as engine:
        engine.run(order(StageExecution.single("a", "noop")), timeout=30)
    assert spans.get_finished_spans() == ()


def test_without_opentelemetry_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with (
        Stabilize.embedded(tracing=True) as engine,
        pytest.raises(ConfigurationError, match=r"pip install 'stabilize-celery\[otel\]'"),
    ):
        engine.start(order(StageExecution.single("a", "noop")))
