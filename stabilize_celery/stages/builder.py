"""What a stage type is made of: its tasks, and the synthetic stages before and after them."""

from __future__ import annotations

from stabilize_celery.dag.graph import StageGraphBuilder
from stabilize_celery.errors import ConfigurationError
from stabilize_celery.models.stage import StageExecution
from stabilize_celery.models.task import TaskExecution


class StageDefinitionBuilder:
    """Defines a stage type (seed document *Flow Control*, "StageDefinitionBuilder").

    Its methods are called in the transaction that plans the stage, at most once per pass of the workflow, with
    ``stage.context`` holding what the stage sees.  They should only describe, never do the work.
    """

    @property
    def type(self) -> str:
        """The stage type it defines; by default its class name without ``StageBuilder``, in lower case."""
        name = type(self).__name__
        for suffix in ("StageDefinitionBuilder", "StageBuilder", "Builder"):
            if name.endswith(suffix) and name != suffix:
                return name.removesuffix(suffix).lower()
        return name.lower()

    @property
    def aliases(self) -> set[str]:
        """Other names of the type."""
        return set()

    def build_tasks(self, stage: StageExecution) -> list[TaskExecution]:
        """The tasks of a stage that was given none."""
        return []

    def before_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        """Add stages that run before the tasks."""

    def after_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        """Add stages that run after the tasks, on success."""

    def next_in_turn(self, stage: StageExecution) -> str | None:
        """A synthetic stage has ended: the ref_id of the one that waited for any of them to end, if there is one.

        Such a stage is planned with an ``upstream_count`` of 1 and requires nothing.
        """
        return None

    def on_failure_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        """Add stages that run on failure only; they never turn it into a success."""


class StageDefinitionBuilderFactory:
    """Builders by stage type.  A factory falls back on another, by default on the global one."""

    def __init__(self, fallback: StageDefinitionBuilderFactory | None = None) -> None:
        self._builders: dict[str, StageDefinitionBuilder] = {}
        self._fallback = fallback

    def register(self, builder: StageDefinitionBuilder) -> None:
        """Register a builder under its type and aliases; a later one of the same type replaces it.

        Raises:
            ConfigurationError: it is no builder, or has no type.
        """
        if not isinstance(builder, StageDefinitionBuilder):
            raise ConfigurationError(f"{builder!r} is not a StageDefinitionBuilder instance")
        if not builder.type:
            raise ConfigurationError(f"{type(builder).__name__} has an empty type")
        for name in (builder.type, *builder.aliases):
            self._builders[name] = builder

    def adopt(self, other: StageDefinitionBuilderFactory) -> None:
        """Take over the builders of another factory."""
        self._builders = {**other._builders, **self._builders}

    def find(self, stage_type: str) -> StageDefinitionBuilder | None:
        """The builder of a type, or ``None``: a stage type needs none."""
        builder = self._builders.get(stage_type)
        fallback = self._fallback or _global_factory
        if builder is None and fallback is not self:
            return fallback.find(stage_type)
        return builder

    def get(self, stage_type: str) -> StageDefinitionBuilder:
        """The builder of a type; one that adds nothing if there is none."""
        return self.find(stage_type) or _NO_BUILDER


_NO_BUILDER = StageDefinitionBuilder()
_global_factory = StageDefinitionBuilderFactory()


def global_factory() -> StageDefinitionBuilderFactory:
    """The factory that :func:`register_builder` fills."""
    return _global_factory


def register_builder(builder: StageDefinitionBuilder) -> None:
    """Register a builder for every engine of this process."""
    _global_factory.register(builder)
