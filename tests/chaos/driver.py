"""Runs workflows, and injects faults while they run."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from amqp.exceptions import NotFound
from celery import Celery
from sqlalchemy import select

from stabilize_celery import Stabilize, WorkflowRun
from stabilize_celery.errors import StoreError, WorkflowStateError
from stabilize_celery.persistence import tables
from stabilize_celery.persistence.schema import create_tables
from tests.chaos import effects, faults, flows, slots
from tests.chaos.app import BROKER, DATABASE, make_app
from tests.chaos.checks import check_all
from tests.chaos.crew import Crew
from tests.chaos.faults import Fault
from tests.chaos.report import Injection, Report
from tests.processes import wait_until
from tests.services import PostgresService, RabbitService

T = TypeVar("T")

#: For a call of the client while the database is away, and for all workflows to end once nothing is injected any more.
CALL_PATIENCE, END_PATIENCE = 90.0, 240.0


@dataclass
class Deployment:
    """Everything faults may touch."""

    postgres: PostgresService
    rabbit: RabbitService
    database: str
    broker: str
    folder: Path
    app: Celery
    stabilize: Stabilize
    crew: Crew

    @property
    def effects(self) -> Path:
        """Where task bodies leave their traces."""
        return effects_file(self.folder)


def effects_file(folder: Path) -> Path:
    return folder / "effects.jsonl"


@contextmanager
def deployed(postgres: PostgresService, rabbit: RabbitService, folder: Path) -> Iterator[Deployment]:
    """A deployment on these servers, which must be nobody else's; `folder` takes logs and effects."""
    with ExitStack() as stack:
        database = postgres.create_database("chaos")
        stack.callback(postgres.drop_database, "chaos")
        create_tables(database)
        broker = rabbit.add_vhost("chaos")
        app, stabilize = make_app(broker, database)
        stack.callback(app.close)
        stack.callback(stabilize.close)
        slots.watch(stabilize)
        environment = {BROKER: broker, DATABASE: database, effects.FILE: str(effects_file(folder))}
        crew = Crew(folder, environment)
        stack.callback(crew.stop)
        crew.start()
        yield Deployment(postgres, rabbit, database, broker, folder, app, stabilize, crew)


@dataclass
class Started:
    """A workflow that was started."""

    case: flows.Case
    run: WorkflowRun
    at: float


@dataclass
class Client:
    """Keeps workflows going, in a thread: whenever one has ended the next is started."""

    chaos: Deployment
    at_once: int
    at_least: int
    started: list[Started] = field(default_factory=list)
    error: BaseException | None = None
    _enough: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._work, name="client", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """No fault is injected any more: start what is missing to `at_least`, and return.

        Raises:
            Exception: what the client died of.
        """
        self._enough.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _work(self) -> None:
        try:
            going: list[Started] = []
            while not self._enough.is_set() or len(self.started) < self.at_least:
                going = [each for each in going if not persistently(each.run.ready)]
                while len(going) < self.at_once:
                    going.append(self._start())
                time.sleep(0.05)
        except BaseException as error:
            self.error = error

    def _start(self) -> Started:
        number = len(self.started)
        make = flows.ALL[number % len(flows.ALL)]

        def start() -> tuple[flows.Case, WorkflowRun]:
            # Whether a start that failed was committed is not known: its key makes it one workflow all the same.
            case = make(self.chaos.app)
            return case, self.chaos.stabilize.start(case.workflow, dedup_key=f"{case.workflow.name}-{number}")

        case, run = persistently(start)
        # After a call whose answer was lost it may be over already.
        with suppress(WorkflowStateError):
            persistently(lambda: case.then(run))
        self.started.append(Started(case, run, time.time()))
        return self.started[-1]


def persistently(call: Callable[[], T]) -> T:
    """Repeat while the database is away, as anybody would.

    Raises:
        StoreError: it does not come back.
    """
    end = time.monotonic() + CALL_PATIENCE
    while True:
        try:
            return call()
        except StoreError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


class Driver:
    """Injects faults in a random order, each kind as often as any other.

    Args:
        chaos: what is broken.
        kinds: of faults.
        seed: of the order and of every choice.
        tell: is called with a line of progress.
    """

    def __init__(
        self,
        chaos: Deployment,
        kinds: Sequence[Fault],
        seed: int,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._chaos = chaos
        self._kinds = list(kinds)
        self._rng = random.Random(seed)
        self._tell = tell

    def run(self, workflows: int, seconds: float, at_once: int = 12) -> Report:
        """Rounds of all faults until that many seconds have passed, then wait for all workflows and check them."""
        client = Client(self._chaos, at_once, workflows)
        wait_until(lambda: len(client.started) >= at_once or client.error, 60, "the first workflows")
        injections: list[Injection] = []
        end = time.monotonic() + seconds
        while not injections or time.monotonic() < end:
            for fault in self._rng.sample(self._kinds, len(self._kinds)):
                injections.append(self._inject(fault))
                time.sleep(self._rng.uniform(0.2, 1.5))
        client.finish()
        return self._conclude(client.started, injections)

    def _inject(self, fault: Fault) -> Injection:
        begin = time.time()
        fault.inject(self._chaos, self._rng)
        injection = Injection(fault.name, begin, time.time())
        self._tell(f"{fault.name} ({injection.end - injection.begin:.1f} s)")
        return injection

    def _conclude(self, started: list[Started], injections: list[Injection]) -> Report:
        stabilize = self._chaos.stabilize
        with suppress(TimeoutError, RuntimeError):
            wait_until(lambda: self._all_done(started), END_PATIENCE, "end of all workflows")
        findings = [finding for each in started for finding in each.case.check(each.run)]
        ids = self._ids()
        findings += check_all(stabilize, ids)
        bodies = effects.read(self._chaos.effects)
        crashes = [each.begin for each in injections if each.fault == faults.DATABASE_KILLED]
        findings += effects.check(stabilize, ids, bodies, crashes)
        report = Report(injections, findings, bodies, len(ids))
        report.forgotten = sum(effects.is_forgotten(*pair, crashes) for pair in effects.twice(bodies))
        report.granted = slots.granted(stabilize)
        report.deserters = list(self._chaos.crew.deserters)
        report.restarts = self._chaos.crew.restarts
        report.stubborn = self._chaos.crew.stubborn
        report.refused = self._chaos.crew.count("its lease was lost")
        report.idle = self._idle_queues()
        for workflow_id in ids:
            report.add_workflow(stabilize.store.retrieve(workflow_id), stabilize.store.history(workflow_id))
        return report

    def _all_done(self, started: list[Started]) -> bool:
        return all(each.run.ready() for each in started) and not self._chaos.stabilize.store.count_messages()

    def _ids(self) -> list[str]:
        """Those of the workflows within workflows too."""
        with self._chaos.stabilize.store.database.autocommit() as connection:
            return list(connection.execute(select(tables.workflows.c.id)).scalars())

    def _idle_queues(self) -> list[str]:
        """Queues that not every worker consumes from, though nothing is broken any more: somebody only seems alive."""

        def consumers(queue: str) -> int:
            with suppress(NotFound), self._chaos.rabbit.channel(self._chaos.broker) as channel:
                return int(channel.queue_declare(queue, passive=True).consumer_count)
            return 0

        queues = self._chaos.stabilize.settings.queues()
        workers = len(self._chaos.crew.workers)
        with suppress(TimeoutError, RuntimeError):
            wait_until(lambda: all(consumers(queue) == workers for queue in queues), 60, "all consumers")
        return [
            f"{queue}: {consumers(queue)} of {workers}" for queue in queues if consumers(queue) != workers
        ]
