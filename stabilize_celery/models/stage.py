"""A stage: a node of the workflow's graph, or a synthetic stage inside one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any

from stabilize_celery.errors import InvalidWorkflowError
from stabilize_celery.models.ids import new_id
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.task import TaskExecution

if TYPE_CHECKING:
    from stabilize_celery.models.workflow import Workflow


#: In a stage's own context: milliseconds it may take, and when that is over.
TIME_LIMIT_KEY = "stageTimeoutMs"
DEADLINE_KEY = "_deadline"
#: Milliseconds: a limit of more than a hundred years is none.
_ENDLESS = 100 * 365.25 * 24 * 3600 * 1000


class SyntheticStageOwner(Enum):
    """When a synthetic stage runs, seen from its parent (seed document *Flow Control*)."""

    #: Before the parent's tasks.
    STAGE_BEFORE = "STAGE_BEFORE"
    #: After the parent's tasks: on success, or on failure only when it was planned by ``on_failure_stages``.
    STAGE_AFTER = "STAGE_AFTER"


class Phase(Enum):
    """Which of the three builder methods planned a synthetic stage."""

    BEFORE = "before"
    AFTER = "after"
    ON_FAILURE = "on_failure"


@dataclass(repr=False)
class StageExecution:
    """One stage of a workflow.

    What users set comes first.  ``context`` is the stage's own context; while a task runs it holds what the stage
    *sees* (own context over the outputs of its ancestors), and ``own_context`` holds the stage's own part, from
    which options are read.  ``outputs`` is what the stage gives to the stages after it.
    """

    id: str = field(default_factory=new_id)
    ref_id: str = ""
    type: str = ""
    name: str = ""
    status: WorkflowStatus = WorkflowStatus.NOT_STARTED
    context: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, Any] = field(default_factory=dict)
    tasks: list[TaskExecution] = field(default_factory=list)
    requisite_stage_ref_ids: set[str] = field(default_factory=set)
    parent_stage_id: str | None = None
    synthetic_stage_owner: SyntheticStageOwner | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    #: Not started until then, the stage is skipped.
    start_time_expiry: datetime | None = None
    #: key -> name of the reducer that combines the direct upstreams' values of that key.
    output_reducers: dict[str, str] = field(default_factory=dict)

    #: Raised by every reset (jump, restart); a message of another generation is dropped (promise P5).
    generation: int = 0
    #: Place in the topological order, a list so that synthetic stages fit between: see ``context/sources.py``.
    rank: list[int] = field(default_factory=list)
    #: key -> [producing stage's id, *its rank*]: what the stage sees of others, without copying the values.
    sources: dict[str, list[Any]] = field(default_factory=dict)
    #: How many stages it directly requires, and how many of them have not arrived yet.
    upstream_count: int = 0
    open_upstreams: int = 0
    #: A required stage ended in a way that will never let this one start.
    blocked: bool = False
    #: Taken out of the ordinary rules.  Before it starts: a jump leads to it, so it starts whatever the stages it
    #: requires do.  When it is TERMINAL: its failure was dealt with, see :attr:`ends_workflow`.
    released: bool = False
    #: Phase of the parent it belongs to; ``None`` for a stage of the workflow itself.
    phase: Phase | None = None
    #: phase -> number of synthetic stages planned for it in this generation.
    planned: dict[str, int] = field(default_factory=dict)
    #: Synthetic children of the current phase that have not ended.
    open_children: int = 0

    #: While a task of it runs: reads the outputs of other stages, see :meth:`outputs_of`.
    outputs_reader: Callable[[Iterable[str]], dict[str, dict[str, Any]]] | None = field(
        default=None, compare=False
    )
    _execution: Workflow | None = field(default=None, compare=False)
    _own_context: dict[str, Any] | None = field(default=None, compare=False)

    def __repr__(self) -> str:
        return f"<StageExecution {self.ref_id or self.id} ({self.type}) {self.status}>"

    def __post_init__(self) -> None:
        self.requisite_stage_ref_ids = set(self.requisite_stage_ref_ids)

    # ------------------------------------------------------------------ making stages

    @classmethod
    def create(
        cls,
        type: str,
        name: str,
        ref_id: str,
        context: Mapping[str, Any] | None = None,
        requisite_stage_ref_ids: Iterable[str] | None = None,
    ) -> StageExecution:
        """A stage without tasks of its own; a builder registered for ``type`` may give it some."""
        return cls(
            ref_id=ref_id,
            type=type,
            name=name,
            context=_mapping(context, ref_id),
            requisite_stage_ref_ids=set(requisite_stage_ref_ids or ()),
        )

    @classmethod
    def single(
        cls,
        ref_id: str,
        type: str,
        context: Mapping[str, Any] | None = None,
        requires: Iterable[str] | None = None,
        name: str | None = None,
        output_reducers: Mapping[str, str] | None = None,
    ) -> StageExecution:
        """A stage of one task of that type: the short form."""
        return cls(
            ref_id=ref_id,
            type=type,
            name=name or ref_id,
            context=_mapping(context, ref_id),
            requisite_stage_ref_ids=set(requires or ()),
            tasks=[TaskExecution.create(name or ref_id, type, stage_start=True, stage_end=True)],
            output_reducers=dict(output_reducers or {}),
        )

    @classmethod
    def celery(
        cls,
        ref_id: str,
        signature: Any,
        requires: Iterable[str] | None = None,
        context: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> StageExecution:
        """A stage that runs a Celery task: ``StageExecution.celery("send", send.s("{{ order.email }}"))``.

        Arguments may refer to what earlier stages gave (:mod:`stabilize_celery.canvas.references`); ``context`` holds
        options of the stage, such as ``continuePipelineOnFailure``.

        Raises:
            InvalidWorkflowError: it is no signature of a single task, or it cannot be stored.
        """
        from stabilize_celery.canvas.call import call_context

        own = {**call_context(signature, f"stage {ref_id}"), **(context or {})}
        return cls.single(ref_id, "celery", context=own, requires=requires, name=name)

    @classmethod
    def create_synthetic(
        cls,
        type: str,
        name: str,
        parent: StageExecution,
        owner: SyntheticStageOwner,
        context: Mapping[str, Any] | None = None,
        tasks: Iterable[TaskExecution] | None = None,
        requisite_stage_ref_ids: Iterable[str] | None = None,
    ) -> StageExecution:
        """A stage that runs before or after ``parent``; a builder adds it to the graph it is given."""
        stage = cls(
            ref_id=new_id(),
            type=type,
            name=name,
            context=_mapping(context, name),
            tasks=list(tasks or ()),
            parent_stage_id=parent.id,
            synthetic_stage_owner=owner,
            requisite_stage_ref_ids=set(requisite_stage_ref_ids or ()),
        )
        stage._execution = parent._execution
        return stage

    # ------------------------------------------------------------------ reading

    @property
    def own_context(self) -> dict[str, Any]:
        """The stage's own context, without what it sees of others; options are read from here."""
        return self.context if self._own_context is None else self._own_context

    @property
    def execution(self) -> Workflow:
        """The workflow it belongs to.

        Raises:
            ValueError: it belongs to none.
        """
        if self._execution is None:
            raise ValueError(f"stage {self.ref_id or self.id} does not belong to a workflow yet")
        return self._execution

    @execution.setter
    def execution(self, workflow: Workflow) -> None:
        self._execution = workflow

    @property
    def is_synthetic(self) -> bool:
        return self.parent_stage_id is not None

    @property
    def called(self) -> str:
        """What people call it: its ref_id; a synthetic stage, whose ref_id is made up, by its name."""
        return (self.name or self.type) if self.is_synthetic else (self.ref_id or self.name)

    @property
    def is_initial(self) -> bool:
        """Requires nothing."""
        return not self.requisite_stage_ref_ids

    @property
    def is_join(self) -> bool:
        """Requires more than one stage."""
        return len(self.requisite_stage_ref_ids) > 1

    def _siblings(self) -> list[StageExecution]:
        return [s for s in self.execution.stages if s.parent_stage_id == self.parent_stage_id]

    def upstream_stages(self) -> list[StageExecution]:
        """The stages it directly requires."""
        return [s for s in self._siblings() if s.ref_id in self.requisite_stage_ref_ids]

    def downstream_stages(self) -> list[StageExecution]:
        """The stages that directly require it."""
        return [s for s in self._siblings() if self.ref_id in s.requisite_stage_ref_ids]

    def ancestors(self) -> list[StageExecution]:
        """Every stage it sees data of, nearest first: what it requires, then its parent and that one's ancestors."""
        found: dict[str, StageExecution] = {}

        def visit(stage: StageExecution) -> None:
            waiting = sorted(stage.upstream_stages(), key=lambda s: s.ref_id)
            while waiting:
                near, waiting = waiting, []
                for upstream in near:
                    if upstream.id not in found:
                        found[upstream.id] = upstream
                        waiting.extend(sorted(upstream.upstream_stages(), key=lambda s: s.ref_id))

        stage: StageExecution | None = self
        while stage is not None:
            visit(stage)
            stage = stage.parent()
            if stage is not None:
                found.setdefault(stage.id, stage)
        return list(found.values())

    def outputs_of(self, ref_ids: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The outputs of those of some stages of the workflow that have ended, by ref_id.

        Of a stage before this one that is certain; of any other it depends on the moment.
        """
        if self.outputs_reader is not None:
            return self.outputs_reader(ref_ids)
        wanted = set(ref_ids)
        return {
            s.ref_id: s.outputs for s in self.execution.stages if s.ref_id in wanted and s.status.is_complete
        }

    def parent(self) -> StageExecution | None:
        """The stage it is a synthetic stage of."""
        return None if self.parent_stage_id is None else self.execution.stage_by_id(self.parent_stage_id)

    def synthetic_stages(self) -> list[StageExecution]:
        """Its synthetic stages, in the order planned."""
        return [s for s in self.execution.stages if s.parent_stage_id == self.id]

    def before_stages(self) -> list[StageExecution]:
        """Its synthetic stages that run before its tasks."""
        return [
            s for s in self.synthetic_stages() if s.synthetic_stage_owner is SyntheticStageOwner.STAGE_BEFORE
        ]

    def after_stages(self) -> list[StageExecution]:
        """Its synthetic stages that run after its tasks, on-failure stages included."""
        return [
            s for s in self.synthetic_stages() if s.synthetic_stage_owner is SyntheticStageOwner.STAGE_AFTER
        ]

    def task_by_id(self, task_id: str) -> TaskExecution | None:
        """The task of that id, or ``None``."""
        for task in self.tasks:
            if task.id == task_id:
                return task
        return None

    def first_task(self) -> TaskExecution | None:
        """The task it starts with."""
        return self.tasks[0] if self.tasks else None

    def next_task(self, task: TaskExecution) -> TaskExecution | None:
        """The task after ``task``: list order is execution order."""
        index = next(i for i, other in enumerate(self.tasks) if other.id == task.id)
        return self.tasks[index + 1] if index + 1 < len(self.tasks) else None

    @property
    def time_limit(self) -> timedelta | None:
        """``stageTimeoutMs`` of its own context: how long it may take from its start, pauses of the workflow excepted."""
        milliseconds = self.own_context.get(TIME_LIMIT_KEY)
        if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
            return None
        return timedelta(milliseconds=max(0, milliseconds)) if milliseconds < _ENDLESS else None

    @property
    def deadline(self) -> datetime | None:
        """When its time is over; ``None`` without a limit, or before it has started.  A pause puts it off."""
        said = self.own_context.get(DEADLINE_KEY)
        return datetime.fromisoformat(said) if isinstance(said, str) else None

    @property
    def ends_workflow(self) -> bool:
        """Whether its failure ends the workflow at once.

        Once another stage was restarted it does not: the other branches end first, and then the workflow is TERMINAL.
        """
        return self.status is WorkflowStatus.TERMINAL and not self.released

    def failure_status(self, default: WorkflowStatus = WorkflowStatus.TERMINAL) -> WorkflowStatus:
        """What a failure of this stage becomes under its own failure policy (behaviour: failure mapping)."""
        own = self.own_context
        if own.get("continuePipelineOnFailure") or own.get("continuePipeline"):
            return WorkflowStatus.FAILED_CONTINUE
        return default if own.get("failPipeline", True) else WorkflowStatus.STOPPED


def _mapping(context: Mapping[str, Any] | None, ref_id: str) -> dict[str, Any]:
    if context is not None and not isinstance(context, Mapping):
        raise InvalidWorkflowError(
            f"stage {ref_id}: context must be a mapping, not of type {type(context).__name__}"
        )
    return dict(context or {})
