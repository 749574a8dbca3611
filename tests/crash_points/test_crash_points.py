"""A process is killed at each point where some of a step has happened and some has not (promises P1 to P3).

Real processes on PostgreSQL and RabbitMQ.  The simulator goes through every arrival at every point; these are the ones
where what a real worker, broker or pool does afterwards is different.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from sqlalchemy import func, select

from stabilize_celery import WorkflowRun
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.crash_points import POINTS
from stabilize_celery.persistence import tables
from tests.chaos.checks import check_all
from tests.crash_points.flow import BODIES, workflow
from tests.integration.workers.conftest import Deploy, Deployment
from tests.processes import wait_until
from tests.worker import ROOT, WorkerProcess

APP = "tests.conformance.deployment"
SHORT = {"stabilize_lease": 4.0, "stabilize_heartbeat": 0.2, "stabilize_resend_delay": 0.5}
TIMEOUT = 60

#: Where, and how many task bodies run once more because of it.  With continuation the arrivals are: 1 the start, 2 the
#: result of the first stage, 7 that of the join, 8 that of the stage that jumps back, 9 the jump.
IN_PLACE = [
    ("message.taken:2", 1),
    ("message.taken:9", 0),
    ("message.handled:1", 0),
    ("message.handled:7", 1),
    ("message.handled:9", 0),
    ("message.committed:1", 0),
    ("message.committed:8", 0),
    ("message.published:8", 0),
    ("message.done:1", 0),
    ("message.done:2", 0),
    ("task.claimed:1", 0),
    ("task.returned:1", 1),
]
#: Without it each message is one: 1 StartWorkflow, 2 StartStage, 3 StartTask, 4 RunTask, 5 CompleteTask,
#: 6 CompleteStage, ... 28 that of the join, 44 CompleteWorkflow.
ONE_BY_ONE = [
    ("message.taken:4", 1),
    ("message.handled:28", 0),
    ("message.handled:44", 0),
    ("message.committed:6", 0),
    ("message.done:3", 0),
]
CASES = [(True, *case) for case in IN_PLACE] + [(False, *case) for case in ONE_BY_ONE]


class Death:
    """The one death of a process at a crash point."""

    def __init__(self, where: str, counter: Path) -> None:
        self.where, self._counter = where, counter
        self.environment = {"STABILIZE_CRASH_AT": where, "STABILIZE_CRASH_ONCE": str(counter)}

    @property
    def happened(self) -> bool:
        """Whether a process has got there so often; the last thing it did."""
        needed = int(self.where.partition(":")[2] or 1)
        return self._counter.exists() and self._counter.stat().st_size >= needed


@pytest.fixture
def death(request: pytest.FixtureRequest, tmp_path: Path) -> Death:
    return Death(request.param, tmp_path / "arrivals")


def is_alive(pid: int) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def victim_of(
    deployment: Deployment, death: Death, pool: str, concurrency: int, queues: Sequence[str] = ()
) -> WorkerProcess:
    environment = {**deployment.environment, **death.environment}
    worker = deployment.start(APP, env=environment, pool=pool, concurrency=concurrency, queues=queues)
    deployment.workers.append(worker)
    return worker


def assert_as_if_nothing_had_happened(
    deployment: Deployment, run: WorkflowRun, death: Death, repeated: int = 0
) -> None:
    """It ends as ever; task bodies have run as often as ever, but for ``repeated``; nothing is there twice or left."""
    deployment.engine.wait_final(run, TIMEOUT)
    assert death.happened, f"no process has come to {death.where}"
    # A message that was handled and not acknowledged comes once more, and finds nothing.
    result = deployment.engine.settle(run, TIMEOUT)
    assert result.status is S.SUCCEEDED
    assert set(result.statuses().values()) == {"SUCCEEDED"}
    counted = {ref: result.executions(ref) for ref in BODIES}
    assert all(counted[ref] >= times for ref, times in BODIES.items()), counted
    assert sum(counted.values()) == sum(BODIES.values()) + repeated, counted
    assert check_all(deployment.engine.stabilize, [run.id]) == []


@pytest.mark.parametrize(
    ("inline", "death", "repeated"),
    CASES,
    ids=[f"{where}{'' if inline else '-one-by-one'}" for inline, where, _ in CASES],
    indirect=["death"],
)
def test_another_process_of_the_pool_goes_on(
    deploy: Deploy, death: Death, inline: bool, repeated: int
) -> None:
    deployment = deploy(inline=inline, **SHORT)
    # Two processes, because Celery replaces a lost one only after up to five seconds.
    victim = victim_of(deployment, death, "prefork", 2)
    pool = victim.pool_pids()

    run = deployment.engine.start(workflow())

    assert_as_if_nothing_had_happened(deployment, run, death, repeated)
    wait_until(lambda: not all(map(is_alive, pool)), 30, "end of a pool process")
    assert victim.running


@pytest.mark.parametrize(
    ("death", "repeated"),
    [("message.handled:2", 1), ("message.done:1", 0)],
    indirect=["death"],
)
def test_another_worker_goes_on(deploy: Deploy, death: Death, repeated: int) -> None:
    """The whole worker dies, as machines do."""
    deployment = deploy(**SHORT)
    victim = victim_of(deployment, death, "threads", 1)

    run = deployment.engine.start(workflow())
    assert victim.wait(TIMEOUT) == -signal.SIGKILL
    assert not run.ready()
    deployment.worker()

    assert_as_if_nothing_had_happened(deployment, run, death, repeated)


@pytest.mark.parametrize("death", ["relay.taken", "relay.sent"], indirect=True)
def test_another_relay_goes_on(deploy: Deploy, death: Death) -> None:
    """It dies in a worker of its own, so that no task body dies with it."""
    deployment = deploy(**SHORT)
    victim = victim_of(deployment, death, "threads", 1, queues=["nobody"])
    deployment.worker(arguments=["--no-stabilize-relay"])

    run = deployment.engine.start(workflow())
    assert victim.wait(TIMEOUT) == -signal.SIGKILL
    deployment.worker(queues=["nobody"])

    assert_as_if_nothing_had_happened(deployment, run, death)


STARTER = """
import json, sys
from tests.conformance.deployment import stabilize
from tests.crash_points.flow import workflow
started = workflow()
started.context.update(json.loads(sys.argv[1]))
stabilize.start(started, dedup_key="the one")
"""


def die_starting(deployment: Deployment, death: Death) -> None:
    environment = {**os.environ, **deployment.environment, **death.environment, "PYTHONPATH": str(ROOT)}
    context = json.dumps(deployment.engine.prepare(workflow()).context)
    command = [sys.executable, "-c", STARTER, context]
    ended = subprocess.run(command, env=environment, check=False, timeout=TIMEOUT)
    assert ended.returncode == -signal.SIGKILL
    assert death.happened


def rows_left(deployment: Deployment) -> dict[str, int]:
    with deployment.engine.stabilize.store.database.autocommit() as connection:
        counts = {
            table.name: connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in tables.metadata.sorted_tables
        }
    return {name: count for name, count in counts.items() if count}


@pytest.mark.parametrize("death", ["start.written"], indirect=True)
def test_a_start_that_was_not_committed_leaves_nothing(deploy: Deploy, death: Death) -> None:
    deployment = deploy(**SHORT)

    die_starting(deployment, death)

    assert rows_left(deployment) == {}
    deployment.worker()
    run = deployment.engine.start(workflow(), dedup_key="the one")
    assert_as_if_nothing_had_happened(deployment, run, death)


@pytest.mark.parametrize("death", ["start.committed"], indirect=True)
def test_a_start_that_was_committed_counts(deploy: Deploy, death: Death) -> None:
    deployment = deploy(**SHORT)

    die_starting(deployment, death)

    again = workflow()
    run = deployment.engine.start(again, dedup_key="the one")
    assert run.id != again.id
    deployment.worker()
    assert_as_if_nothing_had_happened(deployment, run, death)


def test_every_crash_point_is_in_a_test() -> None:
    elsewhere = {"start.written", "start.committed", "relay.taken", "relay.sent"}
    assert {where.partition(":")[0] for _, where, _ in CASES} | elsewhere == POINTS.keys()
