"""The graph a builder fills with synthetic stages."""

from __future__ import annotations

from stabilize_celery.errors import CircularDependencyError, InvalidStageGraphError
from stabilize_celery.models.stage import Phase, StageExecution
from stabilize_celery.topology import find_cycle, topological_order


class StageGraphBuilder:
    """Collects the synthetic stages of one phase of a stage and their order.

    Stages that are only added run side by side; on-failure stages run one after the other in the order added unless
    they are connected.
    """

    def __init__(self, parent: StageExecution, phase: Phase) -> None:
        self.parent = parent
        self.phase = phase
        self._stages: list[StageExecution] = []
        self._connected = False

    def add(self, stage: StageExecution) -> StageExecution:
        """Add a stage without an order.

        Raises:
            InvalidStageGraphError: it belongs to another parent, or was added already.
        """
        if stage.parent_stage_id != self.parent.id:
            raise InvalidStageGraphError(
                f"foreign_stage: {stage.name or stage.ref_id} is not a synthetic stage of {self.parent.ref_id}; "
                "make it with StageExecution.create_synthetic(parent=...) of the stage the builder was given"
            )
        if any(known is stage for known in self._stages):
            return stage
        if any(known.id == stage.id or known.ref_id == stage.ref_id for known in self._stages):
            raise InvalidStageGraphError(f"duplicate_ref: two synthetic stages {stage.ref_id!r}")
        self._stages.append(stage)
        return stage

    def append(self, stage: StageExecution) -> StageExecution:
        """Add a stage that runs after the one added last."""
        last = self._stages[-1] if self._stages else None
        self.add(stage)
        if last is not None and last is not stage:
            self.connect(last, stage)
        return stage

    def connect(self, previous: StageExecution, following: StageExecution) -> None:
        """Let ``following`` run after ``previous``; adds either if it is not in the graph yet.

        Raises:
            InvalidStageGraphError: a stage cannot follow itself, nor a stage of another parent.
        """
        self.add(previous)
        self.add(following)
        if previous is following:
            raise InvalidStageGraphError(f"self_edge: synthetic stage {previous.name!r} cannot follow itself")
        following.requisite_stage_ref_ids.add(previous.ref_id)
        self._connected = True

    def build(self) -> list[StageExecution]:
        """The stages in topological order.

        Raises:
            InvalidStageGraphError, CircularDependencyError: they do not form a graph.
        """
        if self.phase is Phase.ON_FAILURE and not self._connected:
            for previous, following in zip(self._stages, self._stages[1:], strict=False):
                following.requisite_stage_ref_ids.add(previous.ref_id)
        by_ref = {stage.ref_id: stage for stage in self._stages}
        # Numbered so that among stages that are ready the one added first comes first.
        number = {ref: f"{index:06d}" for index, ref in enumerate(by_ref)}
        for stage in self._stages:
            unknown = sorted(stage.requisite_stage_ref_ids - by_ref.keys())
            if unknown:
                raise InvalidStageGraphError(
                    f"unknown_ref: synthetic stage {stage.name or stage.ref_id} requires {', '.join(unknown)}, "
                    f"which the builder did not add to the same phase of {self.parent.ref_id}"
                )
        requires = {
            number[ref]: {number[r] for r in stage.requisite_stage_ref_ids} for ref, stage in by_ref.items()
        }
        cycle = find_cycle(requires)
        if cycle:
            names = [self._stages[int(n)].name for n in cycle]
            raise CircularDependencyError(
                f"synthetic stages of {self.parent.ref_id} wait for each other: {' -> '.join(names)}", names
            )
        return [self._stages[int(n)] for n in topological_order(requires)]
