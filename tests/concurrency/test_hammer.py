"""Eight engines at once on one workflow with a thousand stages, while people interfere: nobody ever deadlocks.

``make hammer`` does it for a minute.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from stabilize_celery import Stabilize, StabilizeError, StageExecution, TaskResult, Workflow, WorkflowRun
from stabilize_celery.crash_points import watching
from tests.concurrency.aftermath import check_branches, check_history
from tests.concurrency.stage_hands import HANDLED, Scene, engine_on
from tests.conformance.harness import stage as a_stage

SECONDS = float(os.environ.get("HAMMER_SECONDS", "10"))
ENGINES, LAYERS, WIDTH = 8, 20, 50


def work(stage: StageExecution) -> object:
    """Some stop, so that what comes after them is blocked from several sides at once."""
    return TaskResult.stopped() if stage.own_context.get("stops") else {"done": stage.ref_id}


def web(choose: random.Random) -> Workflow:
    """Layers of stages, each of which requires some of the layer before and one from further back."""
    stages: list[StageExecution] = []
    layers: list[list[str]] = []
    for layer in range(LAYERS):
        refs = [f"{layer:02}-{number:02}" for number in range(WIDTH)]
        for ref in refs:
            requires = set(choose.sample(layers[-1], 8)) if layers else set()
            if len(layers) > 1:
                requires.add(choose.choice(choose.choice(layers[:-1])))
            stops = layer > 0 and choose.random() < 0.005
            stages.append(a_stage(ref, "work", requires, stops=stops))
        layers.append(refs)
    return Workflow.create("hammer", "web", stages)


def stretch(point: str) -> None:
    """Hold locks longer than anybody does, so that many meet: pure chance would need hours."""
    if point == HANDLED:
        time.sleep(random.uniform(0, 0.02))


def interfere(run: WorkflowRun, choose: random.Random) -> None:
    """Something a person might do; what makes no sense at the moment is refused."""
    ref = f"{choose.randrange(LAYERS):02}-{choose.randrange(WIDTH):02}"
    orders: list[Callable[[], None]] = [
        run.pause,
        run.resume,
        run.resume,
        lambda: run.skip_stage(ref),
        lambda: run.restart_stage(ref),
        lambda: run.signal(ref, "hello"),
    ]
    with suppress(StabilizeError):
        choose.choice(orders)()


@pytest.fixture
def engines(scene: Scene) -> Iterator[list[Stabilize]]:
    """Half of them handle follow-ons in place; each sees what the others have left within a moment."""
    with ExitStack() as stack:
        made = [
            stack.enter_context(engine_on(scene.url, inline=number % 2 == 0, resend_delay=0.1))
            for number in range(ENGINES)
        ]
        for engine in made:
            engine.registry.register("work", work)
        yield made


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 300)
@pytest.mark.parametrize("interfered", [False, True], ids=["alone", "interfered"])
def test_nobody_deadlocks(scene: Scene, engines: list[Stabilize], interfered: bool) -> None:
    choose = random.Random(7)
    run = engines[0].start(web(choose))
    stop = threading.Event()
    end = time.monotonic() + SECONDS / 2

    def toil(engine: Stabilize) -> int:
        return engine.processor.drain(until=stop.is_set)

    with watching(stretch), ThreadPoolExecutor(ENGINES) as pool:
        toiling = [pool.submit(toil, engine) for engine in engines]
        try:
            while time.monotonic() < end and not run.ready():
                if interfered:
                    interfere(run, choose)
                stop.wait(0.1)
        finally:
            stop.set()
        handled = sum(each.result() for each in toiling)

    for engine in engines:
        # A backend tells the statistics what it has met at the latest when it goes.
        engine.store.close()
    scene.until(lambda: scene.backends() <= 2)
    assert scene.deadlocks() == 0
    assert handled > 50, "hardly anything happened"
    check_branches(run)
    check_history(run)
