"""The stage type ``map``: one synthetic stage per item of a list that is known only when the stage starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stabilize_celery.dag.graph import StageGraphBuilder
from stabilize_celery.errors import InvalidWorkflowError
from stabilize_celery.expressions import parse
from stabilize_celery.models.stage import Phase, StageExecution, SyntheticStageOwner
from stabilize_celery.models.task import TaskExecution
from stabilize_celery.stages.builder import StageDefinitionBuilder

MAX_ITEMS = 100_000


class MapStageBuilder(StageDefinitionBuilder):
    """Plans the instances before the stage's own task, ``map``, which collects their results in order.

    Options of the stage's own context:

    - ``items``: the list, or a text that names it among what the stage sees, such as ``"files"`` or ``"result.files"``;
    - ``stage``: what to run for each, ``{"type": ..., "context": {...}, "name": ...}``; each instance finds its
      ``item`` and ``index`` in its context;
    - ``limit``: how many run at any time (all of them); when one ends the next begins;
    - ``on_failure``: ``"stop"`` (the first failure cancels the others and fails the stage) or ``"continue"``.

    Outputs: ``results``, the outputs of each instance in the order of the items, ``None`` for one that failed; and
    ``failed``, the indexes of those.
    """

    @property
    def type(self) -> str:
        return "map"

    def build_tasks(self, stage: StageExecution) -> list[TaskExecution]:
        return [TaskExecution.create("collect", "map")]

    def before_stages(self, stage: StageExecution, graph: StageGraphBuilder) -> None:
        own = stage.own_context
        items = _items(stage)
        template = own.get("stage")
        if not isinstance(template, Mapping) or not isinstance(template.get("type"), str):
            raise InvalidWorkflowError(
                f'stage {stage.called}: map needs "stage": {{"type": ..., "context": {{...}}}}'
            )
        limit = own.get("limit", len(items) or 1)
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
            raise InvalidWorkflowError(
                f"stage {stage.called}: limit must be a whole number from 1, not {limit!r}"
            )
        goes_on = _goes_on(stage)
        name = str(template.get("name", stage.name or stage.ref_id))
        for index, item in enumerate(items):
            context = {**template.get("context", {}), **goes_on, "item": item, "index": index}
            instance = StageExecution.create_synthetic(
                type=template["type"],
                name=f"{name} [{index}]",
                parent=stage,
                owner=SyntheticStageOwner.STAGE_BEFORE,
                context=context,
                tasks=[TaskExecution.create(name, template["type"])],
            )
            instance.ref_id = f"{stage.ref_id}[{index}]"
            # Those beyond the limit wait for one that ends, whichever it is.
            instance.upstream_count = int(index >= limit)
            graph.add(instance)

    def next_in_turn(self, stage: StageExecution) -> str | None:
        limit = stage.own_context.get("limit")
        planned = stage.planned.get(Phase.BEFORE.value, 0)
        if not isinstance(limit, int) or not planned:
            return None
        index = limit + (planned - stage.open_children) - 1
        return f"{stage.ref_id}[{index}]" if limit <= index < planned else None


def _items(stage: StageExecution) -> list[Any]:
    items = stage.own_context.get("items")
    if isinstance(items, str):
        items = parse(items).evaluate(stage.context)
    if not isinstance(items, list):
        raise InvalidWorkflowError(
            f"stage {stage.called}: items must be a list, or name one that the stage sees; it is {type(items).__name__}"
        )
    if len(items) > MAX_ITEMS:
        raise InvalidWorkflowError(f"stage {stage.called}: {len(items)} items are more than {MAX_ITEMS}")
    return items


def _goes_on(stage: StageExecution) -> dict[str, bool]:
    choice = stage.own_context.get("on_failure", "stop")
    if choice not in ("stop", "continue"):
        raise InvalidWorkflowError(
            f'stage {stage.called}: on_failure must be "stop" or "continue", not {choice!r}'
        )
    if choice == "stop":
        return {}
    return {"continuePipelineOnFailure": True, "allowSiblingStagesToContinueOnFailure": True}
