"""OpenTelemetry: one trace per workflow, a span for every run of a task, wherever it runs.

The trace is that of whoever started the workflow, if there was a span then; otherwise it is named after the workflow:
its id is a number of 128 bits, as that of a trace is, so that all workers find it by themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ulid import ULID

from stabilize_celery.errors import ConfigurationError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.settings import Settings
from stabilize_celery.tasks.outcome import Outcome
from stabilize_celery.tasks.run import TaskRun

_NAME = "stabilize_celery"


def _opentelemetry() -> Any:
    try:
        from opentelemetry import trace
    except ImportError:
        raise ConfigurationError(
            "stabilize_tracing is on, but OpenTelemetry is not installed: pip install 'stabilize-celery[otel]'"
        ) from None
    return trace


class RunSpan:
    """The span of one run; this one is for when tracing is off."""

    def ended(self, outcome: Outcome | None) -> None:
        """How the run ended; ``None`` if somebody else has said so."""


NO_SPAN = RunSpan()


class Tracer:
    """Makes the spans of one process.

    Raises:
        ConfigurationError: OpenTelemetry is not installed.
    """

    def __init__(self, settings: Settings) -> None:
        self._api = _opentelemetry()

    @contextmanager
    def run(
        self, run: TaskRun, stage: StageExecution, task: TaskExecution, hook: str = ""
    ) -> Iterator[RunSpan]:
        """The span of a run, current while the block runs: what user code traces is below it."""
        workflow = stage.execution
        attributes: dict[str, str | int] = {
            "stabilize.workflow.id": workflow.id,
            "stabilize.workflow.name": workflow.name,
            "stabilize.workflow.application": workflow.application,
            "stabilize.stage.id": stage.id,
            "stabilize.stage.ref": stage.ref_id,
            "stabilize.stage.type": stage.type,
            "stabilize.stage.generation": run.generation,
            "stabilize.task.id": task.id,
            "stabilize.task.type": task.implementing_class,
            "stabilize.task.attempt": run.attempt,
        }
        if hook:
            attributes["stabilize.hook"] = hook
        name = f"{workflow.name} / {stage.ref_id}" + (f" / {hook}" if hook else "")
        # The provider may be set after this object was made.
        tracer = self._api.get_tracer(_NAME)
        with tracer.start_as_current_span(
            name,
            context=self._parent(workflow),
            kind=self._api.SpanKind.CONSUMER,
            attributes=attributes,
        ) as span:
            yield _LiveSpan(self._api, span)

    def _parent(self, workflow: Workflow) -> Any:
        """The context in which a workflow's spans are made."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        carried = workflow.trigger.traceparent
        if carried:
            return TraceContextTextMapPropagator().extract({"traceparent": carried})
        trace_id, span_id = trace_ids(workflow.id)
        return self._api.set_span_in_context(
            self._api.NonRecordingSpan(
                self._api.SpanContext(
                    trace_id,
                    span_id,
                    is_remote=True,
                    trace_flags=self._api.TraceFlags(self._api.TraceFlags.SAMPLED),
                )
            )
        )


class _LiveSpan(RunSpan):
    def __init__(self, api: Any, span: Any) -> None:
        self._api = api
        self._span = span

    def ended(self, outcome: Outcome | None) -> None:
        if outcome is None:
            self._fail("TaskTimeoutError", "its time was over")
            return
        self._span.set_attribute("stabilize.verdict", outcome.verdict.value)
        if outcome.result is not None:
            self._span.set_attribute("stabilize.status", outcome.result.status.name)
        details = (outcome.error or {}).get("details") or {}
        if details:
            self._fail(str(details.get("type", "")), str(details.get("error", outcome.reason)))
        elif outcome.result is not None and outcome.result.status.is_failure:
            self._fail("", outcome.reason)

    def _fail(self, kind: str, said: str) -> None:
        if kind:
            self._span.add_event("exception", {"exception.type": kind, "exception.message": said})
        self._span.set_status(
            self._api.Status(self._api.StatusCode.ERROR, f"{kind}: {said}" if kind else said)
        )


def trace_ids(workflow_id: str) -> tuple[int, int]:
    """The trace of a workflow that was started outside any span, and the span that would be its root."""
    try:
        trace_id = int(ULID.from_str(workflow_id))
    except ValueError:
        trace_id = int.from_bytes(hashlib.sha256(workflow_id.encode()).digest()[:16], "big")
    span_id = int.from_bytes(hashlib.sha256(b"root " + workflow_id.encode()).digest()[:8], "big")
    return trace_id or 1, span_id or 1


def current_traceparent() -> str | None:
    """The span in which a workflow is started, as W3C's Trace Context writes it; ``None`` if there is none.

    Raises:
        ConfigurationError: OpenTelemetry is not installed.
    """
    _opentelemetry()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")
