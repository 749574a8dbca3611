"""The graph of a workflow laid out as a tree: where each stage's line stands, and what it comes after.

A stage stands under the stage where its branch begins.  Stages that follow one another stand below each
other, so a chain does not wander to the right; only the branches of a fork are indented.  A join stands once,
after the branches it joins, at the level of the stage where they parted: its immediate dominator.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from stabilize_celery.dag.topology import topological_order
from stabilize_celery.models.stage import Phase, StageExecution, SyntheticStageOwner
from stabilize_celery.models.workflow import Workflow

_ROOT = ""


@dataclass
class Line:
    """A stage's place in the tree."""

    stage: StageExecution
    #: What it requires, unless that is just the stage it stands under.
    after: list[str] = field(default_factory=list)
    #: Its synthetic stages, in the order of their phases.
    inside: list[Line] = field(default_factory=list)
    #: What begins with it and has several branches.
    branches: list[Line] = field(default_factory=list)

    @property
    def below(self) -> list[Line]:
        """Everything drawn under it."""
        return [*self.inside, *self.branches]

    def walk(self) -> Iterator[Line]:
        """It and everything under it, from top to bottom."""
        waiting = [self]
        while waiting:
            line = waiting.pop()
            yield line
            waiting.extend(reversed(line.below))


def title(stage: StageExecution) -> str:
    """What people call a stage; the ref_id of a synthetic stage means nothing to them."""
    text = stage.called
    return "".join(char if char.isprintable() else " " for char in text)


def phase_of(stage: StageExecution) -> Phase | None:
    """When a synthetic stage runs, also where only its owner says so."""
    if not stage.is_synthetic or stage.phase is not None:
        return stage.phase
    before = stage.synthetic_stage_owner is SyntheticStageOwner.STAGE_BEFORE
    return Phase.BEFORE if before else Phase.AFTER


def arrange(workflow: Workflow) -> list[Line]:
    """The lines at the top of the tree, which hold the others."""
    known = {stage.id for stage in workflow.stages}
    groups: dict[tuple[str | None, Phase | None], list[StageExecution]] = {}
    for stage in workflow.stages:
        parent = stage.parent_stage_id if stage.parent_stage_id in known else None
        groups.setdefault((parent, phase_of(stage) if parent else None), []).append(stage)
    arranged = {key: _arrange_siblings(stages) for key, stages in groups.items()}
    for lines in list(arranged.values()):
        for line in (line for top in lines for line in _branches_only(top)):
            for phase in Phase:
                line.inside += arranged.get((line.stage.id, phase), [])
    return arranged.get((None, None), [])


def _branches_only(top: Line) -> Iterator[Line]:
    waiting = [top]
    while waiting:
        line = waiting.pop()
        yield line
        waiting.extend(line.branches)


def _arrange_siblings(stages: list[StageExecution]) -> list[Line]:
    """Stages that may require each other.  Keys keep the order in which the stages were given."""
    keys = {stage.ref_id: f"{number:09d}" for number, stage in enumerate(stages)}
    lines = {f"{number:09d}": Line(stage) for number, stage in enumerate(stages)}
    requires = {
        key: sorted(keys[ref] for ref in line.stage.requisite_stage_ref_ids if ref in keys)
        for key, line in lines.items()
    }
    order = topological_order(requires)
    following = _dominated(requires, order)

    placed: list[Line] = []
    # What is drawn next: its key, the line it stands under, and whether its followers stand under itself.
    waiting: list[tuple[str, str, bool]] = []

    def follow(key: str, container: str) -> None:
        """One follower of ``key`` goes on in ``container``, several branch off under ``key``."""
        branches = [other for other in following[key] if requires[other] in ([], [key])]
        joins = [other for other in following[key] if requires[other] not in ([], [key])]
        steps = [(other, container, False) for other in joins]
        if len(branches) > 1:
            steps = [(other, key, True) for other in branches] + steps
        else:
            steps = [(other, container, False) for other in branches] + steps
        waiting.extend(reversed(steps))

    follow(_ROOT, _ROOT)
    while waiting:
        key, container, is_branch = waiting.pop()
        line = lines[key]
        if requires[key] and requires[key] != [container]:
            line.after = [title(lines[other].stage) for other in requires[key]]
        (lines[container].branches if container else placed).append(line)
        follow(key, key if is_branch else container)
    return placed


def _dominated(requires: dict[str, list[str]], order: Iterable[str]) -> dict[str, list[str]]:
    """Per stage those it is the immediate dominator of: the nearest that all ways to them lead through."""
    dominator = {_ROOT: _ROOT}
    depth = {_ROOT: 0}
    following: dict[str, list[str]] = {_ROOT: []}

    def common(one: str, other: str) -> str:
        while one != other:
            if depth[one] < depth[other]:
                other = dominator[other]
            else:
                one = dominator[one]
        return one

    for key in order:
        nearest = requires[key][0] if requires[key] else _ROOT
        for upstream in requires[key][1:]:
            nearest = common(nearest, upstream)
        dominator[key], depth[key] = nearest, depth[nearest] + 1
        following[key] = []
        following[nearest].append(key)
    return following
