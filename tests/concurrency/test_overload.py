"""More work than workers: the broker is not flooded, nothing starves, nobody's memory grows.

``make overload`` runs it with a hundred thousand messages.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import psutil
import pytest
from sqlalchemy import func, select, text, update

from stabilize_celery import StageExecution, Workflow
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.delivery.relay import Relay
from stabilize_celery.messages import StartWaitingWorkflows
from stabilize_celery.persistence.rows import new_row
from stabilize_celery.persistence.tables import messages
from tests.concurrency.overloaded import BROKER, DATABASE, make_app
from tests.processes import wait_until
from tests.services import RabbitService
from tests.worker import WorkerProcess

COUNT = int(os.environ.get("OVERLOAD_MESSAGES", "10000"))
TASKS, CONTROL = "stabilize.tasks", "stabilize"
MIB = 1024 * 1024
#: What a process may grow by; a list of all messages would be larger.
GROWTH = 60 * MIB
PATIENCE = 120.0
#: Columns that are not copied from the workflow that all others are copies of.
_COPY = {
    "workflows": "id",
    "stages": "id workflow_id",
    "messages": "id workflow_id stage_id",
}


class Overload:
    """Very many workflows whose task waits for a worker."""

    def __init__(self, rabbit: RabbitService, broker: str, database: str) -> None:
        self._rabbit = rabbit
        self.broker = broker
        self.database = database
        self.app, self.stabilize = make_app(broker, database)
        self.store = self.stabilize.store
        self.relay = Relay(self.app, self.store, self.stabilize.settings)

    def depth(self, queue: str) -> int:
        return self._rabbit.queue_length(self.broker, queue)

    def rows(self, *conditions: Any) -> int:
        with self.store.database.begin() as connection:
            return int(connection.scalar(select(func.count()).select_from(messages).where(*conditions)) or 0)

    def fill(self, count: int) -> None:
        """Copy one workflow whose task is about to run; nothing of the copies is in the broker."""
        run = self.stabilize.start(one("template"))
        with self.store.database.begin() as connection:
            (first,) = connection.scalars(select(messages.c.id))
        self.stabilize.dispatcher.handle(first)
        self._rabbit.purge_all(self.broker)
        with self.store.database.begin() as connection:
            for table, ids in _COPY.items():
                columns = connection.scalars(
                    text("SELECT column_name FROM information_schema.columns WHERE table_name = :table"),
                    {"table": f"stabilize_{table}"},
                ).all()
                own = {name: f"left(md5({name} || n), 26)" for name in ids.split()}
                own |= {"sends": "0", "send_at": "due_at"} if table == "messages" else {}
                names = ", ".join(f'"{name}"' for name in columns)
                values = ", ".join(own.get(name, f'"{name}"') for name in columns)
                connection.execute(
                    text(
                        f"INSERT INTO stabilize_{table} ({names}) SELECT {values} "
                        f"FROM stabilize_{table}, generate_series(1, :count) AS n"
                    ),
                    {"count": count},
                )
            connection.execute(text("DELETE FROM stabilize_messages WHERE workflow_id = :id"), {"id": run.id})
            connection.execute(text("ANALYZE"))

    def make_overdue(self) -> None:
        """As if all had been sent so long ago that something should have come of it."""
        with self.store.database.begin() as connection:
            past = self.store.now() - timedelta(seconds=1)
            connection.execute(update(messages).where(messages.c.lease_owner.is_(None)).values(send_at=past))

    def sweep_all(self) -> int:
        """Let the relay send until nothing is due; returns how often it had to look."""
        sweeps = 0
        while self.relay.sweep():
            sweeps += 1
        return sweeps


def one(name: str) -> Workflow:
    return Workflow.create("overload", name, [StageExecution.single("a", "slow")])


def memory_of(pid: int) -> int:
    process = psutil.Process(pid)
    return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))


@pytest.fixture
def overload(rabbit_service: RabbitService, broker_url: str, postgres_url: str) -> Iterator[Overload]:
    made = Overload(rabbit_service, broker_url, postgres_url)
    yield made
    made.relay.disconnect()
    made.app.close()
    made.stabilize.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_more_work_than_workers(overload: Overload, start_worker: Callable[..., WorkerProcess]) -> None:
    overload.fill(COUNT)

    # An empty broker is filled from the rows.
    overload.sweep_all()
    assert overload.relay.sent == overload.depth(TASKS) == COUNT

    # A queue that is merely long is left alone, however often its messages are overdue; what is due behind them is
    # sent all the same, and soon.
    memory = psutil.Process().memory_info().rss
    for _ in range(3):
        overload.make_overdue()
        timer = StartWaitingWorkflows(pipeline_config_id="nobody")
        overload.store.insert_messages(
            [new_row(timer, overload.stabilize.settings, overload.store.now(), delay=1e-6)]
        )
        sent = overload.depth(CONTROL)
        sweeps = 0
        while overload.depth(CONTROL) == sent:
            assert overload.relay.sweep(), "the timer was not sent"
            sweeps += 1
        assert sweeps <= 2 + COUNT / 10_000, (
            "the timer had to wait until the relay had looked at each message"
        )
        overload.sweep_all()
        assert overload.rows(messages.c.send_at <= overload.store.now()) == 0
    assert overload.relay.resent == 0
    assert overload.depth(TASKS) == COUNT
    assert psutil.Process().memory_info().rss - memory < GROWTH

    # What the broker has lost is sent again, and not one more.
    with overload._rabbit.channel(overload.broker) as channel:
        for _ in range(70):
            assert channel.basic_get(TASKS, no_ack=True) is not None
    overload.make_overdue()
    overload.sweep_all()
    assert overload.depth(TASKS) == COUNT
    assert 70 <= overload.relay.resent <= 71, "with the timer, whose queue has nobody to empty it"

    # Controls have a queue of their own: a new workflow starts and is canceled while all the tasks wait.
    environment = {BROKER: overload.broker, DATABASE: overload.database}
    module = "tests.concurrency.overloaded"
    workers = [
        start_worker(module, queues=[queue], env=environment, wait=False) for queue in (CONTROL, TASKS)
    ]
    for worker in workers:
        worker.wait_ready(PATIENCE)
    before = [memory_of(worker.pid) for worker in workers]
    run = overload.stabilize.start(one("new"))
    wait_until(lambda: run.status is S.RUNNING, PATIENCE, "the new workflow to start")
    run.cancel()
    wait_until(run.ready, PATIENCE, "the new workflow to be canceled")
    assert run.status is S.CANCELED
    waiting = overload.depth(TASKS)
    assert waiting > COUNT * 0.9, "the backlog was gone by then: nothing is proved"

    # The workers' own relays meet the same backlog.
    overload.make_overdue()
    done = overload.rows
    wait_until(
        lambda: done(messages.c.send_at <= overload.store.now()) == 0, PATIENCE, "the relays to look at all"
    )
    rows = overload.rows()
    # One belongs to the canceled workflow; and what a worker holds, but has not begun, may be sent once more.
    assert overload.depth(TASKS) <= rows + 1 + 2 * len(workers)
    assert rows <= COUNT
    for worker, size in zip(workers, before, strict=True):
        assert memory_of(worker.pid) - size < GROWTH, worker.output[-2000:]
