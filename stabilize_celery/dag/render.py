"""The graph of a workflow as a picture: Mermaid for web pages and READMEs, DOT for Graphviz.

Stages are coloured by status; the synthetic stages of a stage stand in a box with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stabilize_celery.models.stage import Phase, StageExecution, SyntheticStageOwner
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import Workflow

#: status -> (fill, line): light fills, so that black text stays readable on them.
COLOURS: dict[WorkflowStatus, tuple[str, str]] = {
    WorkflowStatus.NOT_STARTED: ("#f3f4f6", "#9ca3af"),
    WorkflowStatus.RUNNING: ("#dbeafe", "#2563eb"),
    WorkflowStatus.PAUSED: ("#ede9fe", "#7c3aed"),
    WorkflowStatus.SUSPENDED: ("#ede9fe", "#7c3aed"),
    WorkflowStatus.BUFFERED: ("#fef9c3", "#ca8a04"),
    WorkflowStatus.REDIRECT: ("#cffafe", "#0891b2"),
    WorkflowStatus.SUCCEEDED: ("#dcfce7", "#16a34a"),
    WorkflowStatus.SKIPPED: ("#ffffff", "#9ca3af"),
    WorkflowStatus.FAILED_CONTINUE: ("#ffedd5", "#ea580c"),
    WorkflowStatus.TERMINAL: ("#fee2e2", "#dc2626"),
    WorkflowStatus.STOPPED: ("#fee2e2", "#dc2626"),
    WorkflowStatus.CANCELED: ("#e5e7eb", "#4b5563"),
}


class _Graph:
    """What both forms need: short names that need no escaping, children per stage, edges."""

    def __init__(self, workflow: Workflow) -> None:
        self.names = {stage.id: f"s{number}" for number, stage in enumerate(workflow.stages)}
        self.children: dict[str, list[StageExecution]] = {}
        self._by_ref: dict[tuple[str | None, str], StageExecution] = {}
        for stage in workflow.stages:
            self._by_ref[stage.parent_stage_id, stage.ref_id] = stage
            if stage.parent_stage_id is not None:
                self.children.setdefault(stage.parent_stage_id, []).append(stage)
        self.stages = list(workflow.stages)
        self.top = [stage for stage in self.stages if stage.parent_stage_id not in self.names]

    def edges(self) -> Iterator[tuple[str, str, str]]:
        """From, to, and the name of the arrow, which those between a stage and its synthetic stages have."""
        for stage in self.stages:
            for ref in sorted(stage.requisite_stage_ref_ids):
                upstream = self._by_ref.get((stage.parent_stage_id, ref))
                if upstream is not None:
                    yield self.names[upstream.id], self.names[stage.id], ""
            if stage.parent_stage_id in self.names:
                yield from self._edges_with_parent(stage)

    def _edges_with_parent(self, stage: StageExecution) -> Iterator[tuple[str, str, str]]:
        parent, own = self.names[str(stage.parent_stage_id)], self.names[stage.id]
        siblings = self.children[str(stage.parent_stage_id)]
        if stage.synthetic_stage_owner is SyntheticStageOwner.STAGE_AFTER:
            if stage.is_initial:
                yield parent, own, "on failure" if stage.phase is Phase.ON_FAILURE else "after"
        elif not any(stage.ref_id in other.requisite_stage_ref_ids for other in siblings):
            yield own, parent, "before"


def to_mermaid(workflow: Workflow) -> str:
    """The graph as Mermaid's ``flowchart``, one statement per line."""
    graph = _Graph(workflow)
    lines = ["flowchart LR"]

    def draw(stage: StageExecution, indent: str) -> None:
        children = graph.children.get(stage.id, [])
        inside = indent + "  " if children else indent
        if children:
            lines.append(f'{indent}subgraph {graph.names[stage.id]}_all["{_mermaid_text(_title(stage))}"]')
        label = "<br/>".join(_mermaid_text(part) for part in _label(stage))
        lines.append(f'{inside}{graph.names[stage.id]}["{label}"]:::{stage.status}')
        for child in children:
            draw(child, inside)
        if children:
            lines.append(f"{indent}end")

    for stage in graph.top:
        draw(stage, "  ")
    for source, target, name in graph.edges():
        lines.append(f"  {source} -. {name} .-> {target}" if name else f"  {source} --> {target}")
    for status in dict.fromkeys(stage.status for stage in graph.stages):
        fill, line = COLOURS[status]
        lines.append(f"  classDef {status} fill:{fill},stroke:{line},color:#111827")
    return "\n".join(lines) + "\n"


def to_dot(workflow: Workflow) -> str:
    """The graph in Graphviz' language."""
    graph = _Graph(workflow)
    lines = [
        f'digraph "{_dot_text(workflow.name)}" {{',
        "  rankdir=LR",
        '  node [shape=box, style="rounded,filled", fontname="Helvetica"]',
    ]

    def draw(stage: StageExecution, indent: str) -> None:
        children = graph.children.get(stage.id, [])
        inside = indent + "  " if children else indent
        name = graph.names[stage.id]
        if children:
            lines.append(f"{indent}subgraph cluster_{name} {{")
            lines.append(f'{inside}label="{_dot_text(_title(stage))}"')
        fill, line = COLOURS[stage.status]
        label = "\\n".join(_dot_text(part) for part in _label(stage))
        lines.append(f'{inside}{name} [label="{label}", fillcolor="{fill}", color="{line}"]')
        for child in children:
            draw(child, inside)
        if children:
            lines.append(f"{indent}}}")

    for stage in graph.top:
        draw(stage, "  ")
    for source, target, name in graph.edges():
        style = f' [style=dashed, label="{name}"]' if name else ""
        lines.append(f"  {source} -> {target}{style}")
    lines.append("}")
    return "\n".join(lines) + "\n"


def _title(stage: StageExecution) -> str:
    # The ref_id of a synthetic stage is an identifier that means nothing to people.
    return stage.called


def _label(stage: StageExecution) -> list[str]:
    """Lines of text: what it is called, then its type, then its status once there is one."""
    parts = [_title(stage)]
    if stage.name not in ("", parts[0]):
        parts.append(stage.name)
    if stage.type not in ("", parts[0]):
        parts.append(stage.type)
    if stage.status is not WorkflowStatus.NOT_STARTED:
        parts.append(str(stage.status))
    return parts


def _mermaid_text(text: str) -> str:
    """For use in double quotes: what Mermaid or HTML might read as syntax becomes a character code."""
    return re.sub(r"[^\w .,:/-]|[.-](?=\s|$)", lambda found: f"#{ord(found[0])};", _one_line(text))


def _dot_text(text: str) -> str:
    return _one_line(text).replace("\\", "\\\\").replace('"', '\\"')


def _one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
