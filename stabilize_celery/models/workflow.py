"""A workflow: the graph of stages, and everything known about its execution."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from enum import Enum
from typing import Any

from stabilize_celery.errors import InvalidWorkflowError
from stabilize_celery.models.ids import new_id
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus


@dataclass
class Trigger:
    """What started a workflow: kind, user, parameters.

    Attributes:
        traceparent: the span in which it was started, as W3C's Trace Context writes it, if there was one.
    """

    type: str = "manual"
    user: str = "anonymous"
    parameters: dict[str, Any] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    payload: dict[str, Any] = field(default_factory=dict)
    traceparent: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        said = asdict(self)
        if self.traceparent is None:
            del said["traceparent"]
        return said

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Trigger:
        """From the JSON form; unknown keys are ignored so that rows of a newer version can be read."""
        known = {f.name for f in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})


@dataclass
class PausedDetails:
    """Who paused a workflow, since when, and how long it has been paused in all (``paused_ms``)."""

    paused_by: str = ""
    pause_time: datetime | None = None
    resume_time: datetime | None = None
    paused_ms: int = 0

    @property
    def mark(self) -> str:
        """Tells the last pause, or the end of it, from any other: what a control carries that was sent since."""
        moment = self.resume_time or self.pause_time
        return "" if moment is None else moment.isoformat()

    @property
    def is_paused(self) -> bool:
        """Paused now."""
        return self.pause_time is not None and self.resume_time is None


@dataclass(frozen=True)
class ParentTask:
    """The task of another workflow that waits for this one, and how deep they are nested."""

    workflow_id: str
    stage_id: str
    generation: int = 0
    depth: int = 1


class WorkflowType(Enum):
    """A workflow with a configuration behind it, or one made up on the spot."""

    PIPELINE = "PIPELINE"
    ORCHESTRATION = "ORCHESTRATION"


@dataclass(repr=False)
class Workflow:
    """One execution of a graph of stages.

    ``context`` is given at its start and visible to people, conditions and :meth:`get_context`.  Times are
    timezone-aware.
    """

    id: str = field(default_factory=new_id)
    type: WorkflowType = WorkflowType.PIPELINE
    application: str = ""
    name: str = ""
    status: WorkflowStatus = WorkflowStatus.NOT_STARTED
    stages: list[StageExecution] = field(default_factory=list)
    context: dict[str, Any] = field(default_factory=dict)
    trigger: Trigger = field(default_factory=Trigger)
    created_at: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    #: Not started until then, it is canceled.
    start_time_expiry: datetime | None = None
    is_canceled: bool = False
    canceled_by: str | None = None
    cancellation_reason: str | None = None
    paused: PausedDetails | None = None
    pipeline_config_id: str | None = None
    is_limit_concurrent: bool = False
    max_concurrent_executions: int = 0
    keep_waiting_pipelines: bool = False
    origin: str = "unknown"
    config_version: str | None = None
    #: A second start with the same application and key returns this execution.
    dedup_key: str | None = None

    #: The task that started it as a sub-workflow and is told when it ends.
    parent: ParentTask | None = None

    #: Branches that are still going on or wait in a join; zero means nothing more will happen.
    live_branches: int = 0
    #: A stage of the workflow itself ended in a halting status.
    has_halted: bool = False

    def __repr__(self) -> str:
        count = len(self.stages)
        return f"<Workflow {self.name} {self.id} {self.status}, {count} stage{'s' if count != 1 else ''}>"

    def __post_init__(self) -> None:
        for stage in self.stages:
            stage.execution = self

    # ------------------------------------------------------------------ making workflows

    @classmethod
    def create(
        cls,
        application: str,
        name: str,
        stages: Iterable[StageExecution],
        trigger: Trigger | None = None,
        pipeline_config_id: str | None = None,
        context: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        start_time_expiry: datetime | None = None,
    ) -> Workflow:
        """A workflow ready to be started.

        Args:
            application: the system it belongs to.
            name: what people call it.
            stages: its stages, in any order.
            trigger: what starts it.
            pipeline_config_id: the configuration whose executions are counted together.
            context: its own data; ``_max_jumps`` limits jumps (default 10).
            config: concurrency limits under the seeds' keys ``limitConcurrent``, ``maxConcurrentExecutions``,
                ``keepWaitingPipelines``, and ``id`` or ``pipeline_config_id`` (default: application/name).
            start_time_expiry: not started until then, it is canceled.

        Raises:
            InvalidStageGraphError: no stages, a duplicate ref_id, a stage that requires itself or an unknown one.
            CircularDependencyError: stages that wait for each other.
            UnknownReducerError: ``output_reducers`` names no registered reducer.
            ExpressionError: a condition that cannot be parsed.
            InvalidWorkflowError: a limit that makes no sense, or values that are not JSON.
        """
        from stabilize_celery.canvas.references import check_references
        from stabilize_celery.models.validation import validate_workflow

        maps: dict[str, Any] = {"context": context, "config": config}
        for part, given in maps.items():
            if given is not None and not isinstance(given, Mapping):
                kind = type(given).__name__
                raise InvalidWorkflowError(f"workflow {name}: {part} must be a mapping, not of type {kind}")
        workflow = cls(
            application=application,
            name=name,
            stages=list(stages),
            trigger=trigger or Trigger(),
            context=dict(context or {}),
            pipeline_config_id=pipeline_config_id,
            start_time_expiry=start_time_expiry,
        )
        if config is not None:
            workflow._configure(config)
        validate_workflow(workflow)
        check_references(workflow.stages)
        return workflow

    @classmethod
    def from_canvas(cls, canvas: Any, application: str, name: str, **kwargs: Any) -> Workflow:
        """A Celery canvas as a workflow, one stage per task: see :mod:`stabilize_celery.canvas.compiler`.

        ``run.get()["result"]`` is what the canvas gives.

        Args:
            canvas: chain, group, chord, map, starmap, chunks or a single signature, nested as one likes.
            application, name, kwargs: as for :meth:`create`.

        Raises:
            InvalidWorkflowError: it is no canvas, or its arguments cannot be stored.
        """
        from stabilize_celery.canvas.compiler import compile_canvas

        stages = [
            StageExecution.single(
                each.ref_id, each.kind, each.context, requires=each.requires, name=each.name
            )
            for each in compile_canvas(canvas)
        ]
        return cls.create(application, name, stages, **kwargs)

    @classmethod
    def create_orchestration(
        cls, application: str, name: str, stages: Iterable[StageExecution], **kwargs: Any
    ) -> Workflow:
        """A workflow without a configuration behind it."""
        workflow = cls.create(application, name, stages, **kwargs)
        workflow.type = WorkflowType.ORCHESTRATION
        return workflow

    def _configure(self, config: Mapping[str, Any]) -> None:
        limited = config.get("limitConcurrent", False)
        maximum = config.get("maxConcurrentExecutions", 0)
        keep = config.get("keepWaitingPipelines", False)
        for key, flag in (("limitConcurrent", limited), ("keepWaitingPipelines", keep)):
            if not isinstance(flag, bool):
                raise InvalidWorkflowError(f"workflow {self.name}: {key} must be true or false, not {flag!r}")
        if isinstance(maximum, bool) or not isinstance(maximum, int) or maximum < 0:
            raise InvalidWorkflowError(
                f"workflow {self.name}: maxConcurrentExecutions must be a whole number from 0, not {maximum!r}"
            )
        identity = config.get("id", config.get("pipeline_config_id", self.pipeline_config_id))
        self.pipeline_config_id = str(identity or f"{self.application}/{self.name}")
        self.is_limit_concurrent = limited
        # Orca: the flag without a number allows one execution at a time.
        self.max_concurrent_executions = (maximum or 1) if limited else maximum
        self.keep_waiting_pipelines = keep

    # ------------------------------------------------------------------ reading

    @property
    def pause_mark(self) -> str:
        """Of its last pause or resume; empty if it was never paused."""
        return "" if self.paused is None else self.paused.mark

    @property
    def limit(self) -> int | None:
        """How many executions of its configuration may run at once; ``None`` without a limit."""
        return self.max_concurrent_executions if self.is_limit_concurrent else None

    def stage_by_id(self, stage_id: str) -> StageExecution:
        """The stage of that id.

        Raises:
            ValueError: there is none.
        """
        for stage in self.stages:
            if stage.id == stage_id:
                return stage
        raise ValueError(f"workflow {self.id} has no stage with id {stage_id}")

    def stage_by_ref_id(self, ref_id: str) -> StageExecution | None:
        """The stage of that ref_id, or ``None``."""
        return next((stage for stage in self.stages if stage.ref_id == ref_id), None)

    def initial_stages(self) -> list[StageExecution]:
        """The stages it starts with."""
        return [stage for stage in self.top_level_stages() if stage.is_initial]

    def top_level_stages(self) -> list[StageExecution]:
        """Its stages without the synthetic ones."""
        return [stage for stage in self.stages if not stage.is_synthetic]

    def add_stage(self, stage: StageExecution) -> None:
        """Add a stage to a workflow that has not been started."""
        stage.execution = self
        self.stages.append(stage)

    def remove_stage(self, stage_id: str) -> None:
        """Remove a stage from a workflow that has not been started."""
        self.stages = [stage for stage in self.stages if stage.id != stage_id]

    def get_context(self) -> dict[str, Any]:
        """Its own context under the outputs of all stages, in topological order: the last value of a key survives."""
        merged = dict(self.context)
        for stage in sorted(self.stages, key=lambda s: [*s.rank, 0]):
            merged.update(stage.outputs)
        return merged
