"""An app with another library beside the engine: ``program.py LIBRARY...``, the database from the environment."""

from __future__ import annotations

import os
import sys

import pytest


def sentry():
    import sentry_sdk
    from sentry_sdk.transport import Transport

    class Nowhere(Transport):
        def capture_envelope(self, envelope):
            """Envelopes stay here."""

    sentry_sdk.init(dsn="http://key@127.0.0.1:1/1", transport=Nowhere(), traces_sample_rate=1.0)


def otel():
    from opentelemetry import trace
    from opentelemetry.instrumentation.celery import CeleryInstrumentor
    from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
    from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(InMemorySpanExporter()))
    trace.set_tracer_provider(provider)
    # It refuses a SQLAlchemy that is newer than itself, and works with it.
    SQLAlchemyInstrumentor().instrument(enable_commenter=True, skip_dep_check=True)
    PsycopgInstrumentor().instrument(enable_commenter=True)
    CeleryInstrumentor().instrument()


def datadog():
    import ddtrace

    ddtrace.patch(sqlalchemy=True, psycopg=True, celery=True, sqlite3=True)


for name in sys.argv[1:]:
    globals()[name]()

from stabilize_celery import Stabilize, StageExecution, Workflow, WorkflowFailedError  # noqa: E402

with Stabilize.embedded(os.environ["STABILIZE_DATABASE_URL"]) as stabilize:

    @stabilize.task("charge")
    def charge(order_id: int):
        return {"charge_id": f"ch_{order_id}"}

    @stabilize.task("fails")
    def fails():
        raise KeyError("b")

    stages = [
        StageExecution.single("charge", "charge", {"order_id": 1}),
        StageExecution.single("left", "charge", {"order_id": 2}, requires={"charge"}),
        StageExecution.single("right", "charge", {"order_id": 3}, requires={"charge"}),
        StageExecution.single("join", "charge", {"order_id": 4}, requires={"left", "right"}),
    ]
    run = stabilize.run(Workflow.create("shop", "order", stages), timeout=30)
    assert run.get(timeout=0)["charge_id"] == "ch_4"
    run = stabilize.start(Workflow.create("shop", "order", [StageExecution.single("fails", "fails")]))
    stabilize.processor.drain(timeout=30)
    with pytest.raises(WorkflowFailedError, match="'b'"):
        run.get(timeout=0)
    assert not stabilize.audit().problems
    assert run.history()
    assert len(stabilize.find()) == 2
print("PASS")
