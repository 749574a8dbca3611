"""What happens in one history, written down: the workflows, what people do to them, and what goes wrong."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from tests.simulation.faults import Fault


@dataclass(frozen=True)
class Control:
    """Something a person does to a workflow before the ``at``-th message is delivered.

    ``workflow`` and ``target`` are numbers of a workflow and of one of its stages, modulo how many there are;
    ``flag`` is ``force`` of a cancel, ``persistent`` of a signal.
    """

    at: int
    verb: str
    workflow: int = 0
    target: int = 0
    flag: bool = False

    def __str__(self) -> str:
        return f"{self.verb} before delivery {self.at}"


@dataclass(frozen=True)
class Plan:
    """One history.

    Attributes:
        workflows: per workflow its stages: ``{"ref", "requires", "scripts", "options", "children", "chained", "nested"}``.
        max_jumps: jumps that are let through.
        limit: how many of the workflows may run at once; ``None`` for any number.
        keep_waiting: ``keepWaitingPipelines``.
        inline: whether follow-ons are handled in place.
        controls: what people do.
        faults: what goes wrong.
    """

    workflows: list[list[dict[str, Any]]] = field(default_factory=list)
    max_jumps: int = 2
    limit: int | None = None
    keep_waiting: bool = True
    inline: bool = True
    controls: tuple[Control, ...] = ()
    faults: tuple[Fault, ...] = ()

    def parts(self) -> list[str]:
        """The names of everything that can be left out, the first to be tried first."""
        names = [f"w{number}" for number in range(len(self.workflows))]
        names += [f"f{number}" for number in range(len(self.faults))]
        names += [f"c{number}" for number in range(len(self.controls))]
        for number, stages in enumerate(self.workflows):
            for stage in stages:
                name = f"w{number}.{stage['ref']}"
                names.append(name)
                names += [f"{name}.{phase}" for phase in stage["children"]]
                names += [f"{name}.{key}" for key in ("options", "nested") if stage[key]]
                names += [f"{name}.t{n}" for n in range(len(stage["scripts"]))]
        return names

    def without(self, dropped: Collection[str]) -> Plan:
        """The same without some of its parts; the others keep their numbers."""
        return replace(
            self,
            workflows=[
                []
                if f"w{number}" in dropped
                else [
                    _stage_without(stage, f"w{number}.", dropped)
                    for stage in stages
                    if f"w{number}.{stage['ref']}" not in dropped
                ]
                for number, stages in enumerate(self.workflows)
            ],
            controls=tuple(each for n, each in enumerate(self.controls) if f"c{n}" not in dropped),
            faults=tuple(each for n, each in enumerate(self.faults) if f"f{n}" not in dropped),
        )


def _stage_without(stage: dict[str, Any], prefix: str, dropped: Collection[str]) -> dict[str, Any]:
    name = prefix + stage["ref"]
    return {
        **stage,
        "requires": [ref for ref in stage["requires"] if prefix + ref not in dropped],
        "children": {
            phase: children
            for phase, children in stage["children"].items()
            if f"{name}.{phase}" not in dropped
        },
        "options": {} if f"{name}.options" in dropped else stage["options"],
        "nested": [] if f"{name}.nested" in dropped else stage["nested"],
        "scripts": [script for n, script in enumerate(stage["scripts"]) if f"{name}.t{n}" not in dropped],
    }
