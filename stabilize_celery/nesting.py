"""Workflows within workflows: what tasks ask of the engine they run in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from stabilize_celery.errors import ConfigurationError, InvalidWorkflowError, StoreError, TransientError
from stabilize_celery.files import workflow_from_dict
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow
from stabilize_celery.persistence.database import is_unavailable, patiently
from stabilize_celery.run import WorkflowRun, merged_outputs, stage_errors
from stabilize_celery.stages.builder import StageDefinitionBuilderFactory
from stabilize_celery.stages.map import MapStageBuilder
from stabilize_celery.suggestions import did_you_mean
from stabilize_celery.tasks.registry import TaskRegistry
from stabilize_celery.tasks.run import current_run
from stabilize_celery.tasks.sub_workflow import MapTask, SubWorkflowTask

if TYPE_CHECKING:
    from stabilize_celery.persistence.store import WorkflowStore
    from stabilize_celery.settings import Settings

T = TypeVar("T")

#: Makes a new workflow from what the starting stage sees.
WorkflowFactory = Callable[[Mapping[str, Any]], Workflow]


class Nesting:
    """The part of :class:`stabilize_celery.engine.Stabilize` behind ``sub_workflow`` and ``map`` stages."""

    registry: TaskRegistry
    builders: StageDefinitionBuilderFactory

    if TYPE_CHECKING:

        @property
        def store(self) -> WorkflowStore: ...
        @property
        def settings(self) -> Settings: ...
        def start(self, workflow: Workflow, *, dedup_key: str | None = None) -> WorkflowRun: ...

    def _enable_nesting(self) -> None:
        self._factories: dict[str, WorkflowFactory] = {}
        self.registry.register("sub_workflow", SubWorkflowTask(self))
        self.registry.register("map", MapTask(self._read_instances))
        self.builders.register(MapStageBuilder())

    def register_workflow(self, name: str, factory: WorkflowFactory) -> None:
        """Register a workflow that ``sub_workflow`` stages can name.

        Args:
            name: how they name it.
            factory: makes a new :class:`Workflow` each time, from what the starting stage sees.
        """
        if not name or not callable(factory):
            raise ConfigurationError("a registered workflow needs a name and a function that makes it")
        self._factories[name] = factory

    def adopt(self, other: Nesting) -> None:
        """Know the task types, builders and named workflows of another engine as well."""
        self.registry.adopt(other.registry)
        self.builders.adopt(other.builders)
        self._factories |= other._factories

    def build_sub_workflow(self, definition: Any, context: Mapping[str, Any]) -> Workflow:
        """A new workflow from a definition, or by the name it is registered under.

        Raises:
            InvalidWorkflowError, WorkflowFileError: the definition is none, or nothing has that name.
        """
        if not isinstance(definition, str):
            return workflow_from_dict(definition, "sub-workflow")
        factory = self._factories.get(definition)
        if factory is None:
            raise InvalidWorkflowError(
                f"no workflow is registered as {definition!r}{did_you_mean(definition, self._factories)}"
            )
        workflow = factory(context)
        if not isinstance(workflow, Workflow):
            raise InvalidWorkflowError(
                f"the function registered as {definition!r} gave {type(workflow).__name__}, not a Workflow"
            )
        return workflow

    def start_sub_workflow(self, workflow: Workflow, dedup_key: str) -> str:
        """Start a workflow once for its key; returns its id."""
        return self._patiently(lambda: self.start(workflow, dedup_key=dedup_key).id)

    def sub_workflow_result(
        self, workflow_id: str, stage: StageExecution
    ) -> tuple[WorkflowStatus, dict[str, Any], dict[str, str]]:
        """Status, merged outputs, and errors by stage; from now on this pass of ``stage`` is told of its end."""
        workflow = self._patiently(lambda: self.store.retrieve(workflow_id))
        parent = workflow.parent
        if parent is not None and parent.stage_id == stage.id and parent.generation < stage.generation:
            adopted = replace(parent, generation=stage.generation)
            self._patiently(lambda: self.store.adopt(workflow_id, adopted))
            # It may have ended before it could know that.
            workflow = self._patiently(lambda: self.store.retrieve(workflow_id))
        return workflow.status, merged_outputs(workflow), stage_errors(workflow)

    def _read_instances(self, stage_id: str) -> Sequence[tuple[WorkflowStatus, dict[str, Any]]]:
        return self._patiently(lambda: self.store.instances(stage_id))

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Wait for a database that is away, for as long as the lease of the task that asks may last.

        Raises:
            TransientError: it is away for longer: the attempt failed, and is repeated.
        """
        run = current_run()
        try:
            return patiently(ask, self.settings.lease, lambda: run is not None and run.cancelled.is_set())
        except StoreError as error:
            if not is_unavailable(error):
                raise
            raise TransientError(str(error)) from error
