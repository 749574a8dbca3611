"""A second net, broad where the explorer is deep: random graphs with every failure policy, four threads, real PostgreSQL.

No schedule is chosen; there are many graphs instead, each larger than what can be explored.  The oracle is the explorer's: a
graph must come to what it comes to one message after the other, and no invariant may be broken.  A graph in which a
failure ends the workflow leaves open how far the others come; there only the stages that ended in both are compared.

``make dags DAGS=5000 SEED=7`` tries more; ``DAGS=1`` tries the graph of a seed again, a hundred times.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.crash_points import watching
from tests.interleaving.faults import FAULTS
from tests.interleaving.situations import stage
from tests.interleaving.world import Result, World

DAGS = int(os.environ.get("STABILIZE_DAGS") or 40)
SEED = int(os.environ.get("STABILIZE_DAGS_SEED") or 0)
#: How often a graph is played concurrently for each time it is played serially.
TIMES = 2 if DAGS > 1 else 100
_REFS = "abcdefghijklmnop"
_POLICIES: tuple[dict[str, Any], ...] = (
    {"failPipeline": False},
    {"failPipeline": False},
    {"failPipeline": False, "completeOtherBranchesThenFail": True},
    {"continuePipelineOnFailure": True},
    {"continuePipeline": True},
    {"continuePipelineOnFailure": True, "allowSiblingStagesToContinueOnFailure": True},
)
_OUTCOMES: tuple[dict[str, Any], ...] = ({"do": "transient"}, {"stageEnabled": False}, {"manualSkip": True})
#: Statuses of what a failure elsewhere has kept from its own end.
_CUT_OFF = ("CANCELED", "NOT_STARTED")


def random_dag(seed: int) -> Workflow:
    """The graph of a seed, always the same: 5 to 16 stages."""
    choose = random.Random(f"dag {seed}")
    refs = _REFS[: choose.choice((5, 5, 5, 6, 6, 7, 8, 10, 12, 14, 16))]
    ends_at_once = choose.random() < 0.2
    stages = [_random_stage(choose, refs[:number], ref) for number, ref in enumerate(refs)]
    if ends_at_once:
        choose.choice(stages).context.update(
            {"do": "fail", "failPipeline": True, "continuePipelineOnFailure": False}
        )
    return Workflow.create("tests", f"dag {seed}", stages, context={"_max_jumps": 0})


def _random_stage(choose: random.Random, before: str, ref: str) -> StageExecution:
    requires = choose.sample(before, min(len(before), choose.choice((0, 0, 1, 1, 1, 2, 2, 3))))
    made = stage(ref, None if choose.random() < 0.1 else "ok", "".join(requires))
    kind = choose.random()
    if kind < 0.4:
        made.context.update({"do": "fail", **choose.choice(_POLICIES)})
    elif kind < 0.5:
        made.context.update(choose.choice(_OUTCOMES))
    if choose.random() < 0.2:
        made.context["plan"] = _random_children(choose)
    return made


def _random_children(choose: random.Random) -> dict[str, Any]:
    """Side by side all of them succeed: what a failure does to siblings at work depends on when it happens."""
    made: dict[str, Any] = {}
    for phase in choose.sample(("before", "after", "on_failure"), choose.choice((1, 1, 2))):
        chained = choose.random() < 0.5
        children = [
            {"do": choose.choice(("ok", "ok", "transient")), "chained": chained}
            for _ in range(choose.randint(1, 3))
        ]
        if chained and choose.random() < 0.4:
            choose.choice(children).update({"do": "fail", **choose.choice(({}, *_POLICIES))})
        made[phase] = children
    return made


def _linger(point: str) -> None:
    """Now and then a transaction is between two statements, with what it has locked and read, for a little longer."""
    if point in ("message.taken", "message.handled") and random.random() < 0.5:
        time.sleep(random.uniform(0, 0.004))


class Net:
    """Plays graphs one message after the other, and with four threads."""

    def __init__(self, world: World, inline: bool) -> None:
        self.world = world
        self.inline = inline
        self.crowd: Stabilize = world.crowd(inline)

    def play(self, seed: int, engine: Stabilize) -> Result:
        self.world.clear()
        self.world.turn_to(self.inline)
        engine.start(random_dag(seed))
        if engine is self.crowd:
            with watching(_linger):
                engine.processor.drain(60)
        else:
            assert not self.world.drain()
        return self.world.result([])

    def judge_all(self, seeds: Iterable[int]) -> None:
        for seed in seeds:
            self.judge(seed)

    def judge(self, seed: int) -> None:
        """Raises AssertionError if the graph of a seed comes to something it should not come to."""
        alone = self.play(seed, self.world.engine)
        for _ in range(TIMES):
            together = self.play(seed, self.crowd)
            told = f"inline={self.inline}, SEED={seed}: {_told(random_dag(seed))}"
            assert not alone.problems + together.problems, (told, alone.problems, together.problems)
            assert _comparable(together, alone) == _comparable(alone, together), told


def _comparable(result: Result, other: Result) -> tuple[Any, ...]:
    (workflow,), signals, bodies, _ = result.outcome
    mine, others = _ended(result), _ended(other)
    if "TERMINAL" not in {*mine.values(), *others.values()}:
        return workflow, signals, bodies
    # Stages that never came to their own end, or were never planned, in one of them do not count.
    return workflow[:3], {name: status for name, status in mine.items() if name in others}


def _ended(result: Result) -> dict[str, str]:
    (workflow,), *_ = result.outcome
    return {name: status for name, status, *_ in workflow[-1] if status not in _CUT_OFF}


def _told(workflow: Workflow) -> str:
    return "; ".join(
        f"{s.ref_id}({''.join(sorted(s.requisite_stage_ref_ids))}) {s.context}" for s in workflow.stages
    )


@pytest.fixture(params=[True, False], ids=["continued", "each message alone"])
def net(world: World, request: pytest.FixtureRequest) -> Iterator[Net]:
    made = Net(world, request.param)
    with world.watching():
        yield made
    made.crowd.close()


@pytest.mark.timeout(60 + 2 * DAGS)
def test_random_graphs_come_to_what_they_come_to_one_message_after_the_other(net: Net) -> None:
    net.judge_all(range(SEED, SEED + DAGS))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("net", [True], indirect=True)
def test_premature_success_is_found(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    FAULTS["premature_success"](monkeypatch, net.world)
    with pytest.raises(AssertionError, match="SEED="):
        net.judge_all(range(200))
