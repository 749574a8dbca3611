"""The app of the workers under observation."""

from __future__ import annotations

import json
import logging
import os
import threading

from celery import Celery, signals

from stabilize_celery import Stabilize, StageExecution, TransientError
from stabilize_celery.tasks.run import current_run

logger = logging.getLogger("shop")
app = Celery("shop", broker=os.environ.get("BROKER", "memory://"), set_as_current="BROKER" in os.environ)
app.conf.update(json.loads(os.environ.get("CONF", "{}")), stabilize_database_url=os.environ.get("DATABASE"))
stabilize = Stabilize(app)


def trace_into(path: str) -> None:
    """Append every span that ends in this process to a file."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult

    lock = threading.Lock()

    class ToFile(SpanExporter):
        def export(self, spans: list[ReadableSpan]) -> SpanExportResult:  # type: ignore[override]
            with lock, open(path, "a") as file:
                for span in spans:
                    file.write(json.dumps({**json.loads(span.to_json()), "pid": os.getpid()}) + "\n")
            return SpanExportResult.SUCCESS

    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ToFile()))
    trace.set_tracer_provider(provider)


if "SPANS" in os.environ:
    # As opentelemetry says: in each pool process, after the fork.
    signals.worker_process_init.connect(lambda **_: trace_into(os.environ["SPANS"]), weak=False)


@stabilize.task("charge")
def charge(stage: StageExecution) -> dict[str, str]:
    logger.info("charging")
    run = current_run()
    if "flaky" in stage.context and run is not None and run.attempt == 1:
        raise TransientError("later", retry_after=0.05)
    return {"secret": "topsecret-output"}


@stabilize.task("fail")
def fail(stage: StageExecution) -> None:
    raise ValueError("topsecret-error")


@stabilize.task("ship")
def ship(stage: StageExecution) -> dict[str, int]:
    from opentelemetry import trace

    with trace.get_tracer("shop").start_as_current_span("call the carrier"):
        return {"pid": os.getpid()}
