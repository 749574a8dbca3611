"""The shapes that are run, and how many stages they have: a name, the edges, and what a stage puts out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One kind of workload of ``n`` stages."""

    name: str
    title: str
    #: Bytes that each stage puts out under the key ``value``.
    payload: int = 0
    #: Stages of each workflow, where a workload is many workflows.
    each: int | None = None


CHAIN = Shape("chain", "chain")
FAN = Shape("fan", "fan-out with join")
FAN_IN = Shape("fan-in", "fan-in: roots and a join")
WIDE = Shape("wide", "independent stages")
MANY = Shape("many", "many workflows of 3 stages", each=3)
PAYLOAD = Shape("payload", "chain, 1 KB per stage", payload=1024)
SHAPES = {shape.name: shape for shape in (CHAIN, FAN, FAN_IN, WIDE, MANY, PAYLOAD)}


def requires(shape: Shape, size: int) -> list[list[int]]:
    """For each stage of one workflow the numbers of the stages before it."""
    numbers = range(size)
    if shape is FAN:
        arms = list(range(1, size - 1))
        return [[], *([0] for _ in arms), arms]
    if shape is FAN_IN:
        return [*([] for _ in range(size - 1)), list(range(size - 1))]
    if shape is WIDE:
        return [[] for _ in numbers]
    return [[number - 1] if number else [] for number in numbers]
