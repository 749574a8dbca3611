"""OpenTelemetry: one trace per workflow, a span for every run of a task, wherever it runs.

A workflow that is started within a span joins its trace.  The trace of any other has the number that the workflow's id
stands for, 128 bits as well, so that all workers find it without asking.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ulid import ULID

from stabilize_celery.errors import ConfigurationError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.plugins import AttemptHook, Plugin
from stabilize_celery.settings import Settings
from stabilize_celery.tasks.outcome import Outcome
from stabilize_celery.tasks.run import TaskRun


class OpenTelemetry(Plugin):
    """Makes spans, with ``stabilize_tracing``."""

    def attempt_hook(self, settings: Settings) -> AttemptHook | None:
        """The span of a run."""
        if not settings.tracing:
            return None
        _opentelemetry()
        return span_of

    def starting(self, engine: Any, workflows: Sequence[Workflow]) -> None:
        """Workflows carry the span in which they are started."""
        if engine.settings.tracing:
            traceparent = current_traceparent()
            for workflow in workflows:
                workflow.trigger.traceparent = workflow.trigger.traceparent or traceparent


def _opentelemetry() -> Any:
    try:
        from opentelemetry import trace
    except ImportError:
        raise ConfigurationError(
            "stabilize_tracing is on, but OpenTelemetry is not installed: pip install 'stabilize-celery[otel]'"
        ) from None
    return trace


@contextmanager
def span_of(
    run: TaskRun, stage: StageExecution, task: TaskExecution, hook: str = ""
) -> Iterator[Callable[[Outcome | None], None]]:
    """The span of a run, current while the block runs: what user code traces is below it."""
    api = _opentelemetry()
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
        **({"stabilize.hook": hook} if hook else {}),
    }
    # The provider may be set after the engine was made, so the tracer is asked for each time.
    with api.get_tracer("stabilize_celery").start_as_current_span(
        " / ".join(filter(None, [workflow.name, stage.ref_id, hook])),
        context=_parent(api, workflow),
        kind=api.SpanKind.CONSUMER,
        attributes=attributes,
    ) as span:
        yield lambda outcome: _describe(api, span, outcome)


def _parent(api: Any, workflow: Workflow) -> Any:
    """The context in which a workflow's spans are made."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carried = workflow.trigger.traceparent
    if carried:
        return TraceContextTextMapPropagator().extract({"traceparent": carried})
    trace_id, span_id = trace_ids(workflow.id)
    sampled = api.TraceFlags(api.TraceFlags.SAMPLED)
    root = api.SpanContext(trace_id, span_id, is_remote=True, trace_flags=sampled)
    return api.set_span_in_context(api.NonRecordingSpan(root))


def _describe(api: Any, span: Any, outcome: Outcome | None) -> None:
    """Write the outcome of a run into its span."""
    kind, text, failed = "TaskTimeoutError", "its time was over", True
    if outcome is not None:
        result = outcome.result
        span.set_attribute("stabilize.verdict", outcome.verdict.value)
        if result is not None:
            span.set_attribute("stabilize.status", result.status.name)
        details = (outcome.error or {}).get("details") or {}
        kind, text = str(details.get("type", "")), str(details.get("error", outcome.reason))
        failed = bool(details) or (result is not None and result.status.is_failure)
    if not failed:
        return
    if kind:
        span.add_event("exception", {"exception.type": kind, "exception.message": text})
    span.set_status(api.Status(api.StatusCode.ERROR, f"{kind}: {text}" if kind else text))


def trace_ids(workflow_id: str) -> tuple[int, int]:
    """The trace of a workflow that was started outside any span, and the span that would be its root."""
    try:
        trace_id = int(ULID.from_str(workflow_id))
    except ValueError:
        trace_id = int.from_bytes(hashlib.sha256(workflow_id.encode()).digest()[:16], "big")
    span_id = int.from_bytes(hashlib.sha256(b"root " + workflow_id.encode()).digest()[:8], "big")
    return trace_id or 1, span_id or 1


def current_traceparent() -> str | None:
    """The current span as W3C's Trace Context writes it; ``None`` if there is none.

    Raises:
        ConfigurationError: OpenTelemetry is not installed.
    """
    _opentelemetry()
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")
