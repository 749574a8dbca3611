"""Metrics for Prometheus, made of the database when it is scraped.

Tasks run in pool processes on many machines, and each would count for itself; what they commit is in one place.  So the
figures are those of the whole deployment, whichever process serves them; where several do, one is enough.  Counters
begin when the serving process begins, as counters do.
"""

from __future__ import annotations

import logging
import threading
import time
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from sqlalchemy import Select, func, literal_column, select
from ulid import ULID

from stabilize_celery.errors import ConfigurationError, StabilizeError
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.persistence.rows import WAITS_IN
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import dead_letters, history, messages, stages, workflows
from stabilize_celery.plugins import Plugin

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Metric

    from stabilize_celery.engine import Stabilize

logger = logging.getLogger(__name__)
#: Upper ends of the durations' buckets, in seconds.
BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
#: Nothing is counted further than that.
MOST = 10_000
#: The oldest messages, and those only, are looked at.
_MESSAGES = 100_000
_PAGE = 5_000
#: A row may be committed so long after its identifier was made; rows seen since then are remembered.
_LATE = timedelta(seconds=30)
#: Older rows are not counted any more, if no scrape has read them.
_FORGOTTEN = timedelta(hours=1)
#: Seconds for which one look at the database answers every scrape.
_FRESH = 1.0
#: The names of more workflows are left empty, so that the number of series is bounded.
_MOST_NAMES = 200
_INSTALL = "prometheus_client is not installed: pip install 'stabilize-celery[metrics]'"


class Prometheus(Plugin):
    """Serves metrics from workers, with ``stabilize_metrics_port``, and on Flower's own page ``/metrics``."""

    def __init__(self) -> None:
        self._shown = False

    def install(self, app: Any, engine: Stabilize) -> None:
        app.steps["worker"].add(MetricsStep)

    def show(self) -> None:
        """Flower has ``prometheus_client``, and serves its default registry."""
        from prometheus_client import REGISTRY

        if not self._shown:
            self._shown = True
            REGISTRY.register(WorkflowCollector(_installed_store))


def _installed_store() -> WorkflowStore:
    from stabilize_celery.delivery.celery_app import installed_engines

    for engine in installed_engines():
        return engine.store
    raise ConfigurationError("no Stabilize is installed on the app that Flower shows")


def register(engine: Stabilize, registry: CollectorRegistry | None = None) -> WorkflowCollector:
    """Let a registry of this process serve the metrics of an engine; a second time changes nothing.

    Args:
        engine: whose database is read.
        registry: by default the one that Flower and others serve.

    Raises:
        ConfigurationError: ``prometheus_client`` is not installed.
    """
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        raise ConfigurationError(_INSTALL) from None
    known: WorkflowCollector | None = getattr(engine, "_metrics", None)
    if known is None:
        known = WorkflowCollector(lambda: engine.store)
        (REGISTRY if registry is None else registry).register(known)
        engine._metrics = known  # type: ignore[attr-defined]
    return known


class MetricsStep(bootsteps.StartStopStep):
    """Serves from the worker's main process; starts after the relay, whose counts it serves too."""

    requires = {"stabilize_celery.delivery.celery_app:RelayStep"}

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        self._server: Any = None
        self._thread: threading.Thread | None = None
        super().__init__(worker, **kwargs)

    def start(self, worker: Any) -> None:
        """Begin to serve; a port that cannot be had is an error in the log, and no reason not to work."""
        from stabilize_celery.engine import engine_of

        engine = engine_of(worker.app)
        address, port = engine.settings.metrics_address, engine.settings.metrics_port
        if port is None:
            return
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError:
            logger.error("stabilize_metrics_port is set, but %s", _INSTALL)
            return
        registry = CollectorRegistry()
        collector = WorkflowCollector(lambda: engine.store)
        registry.register(collector)
        if (relay := getattr(worker, "stabilize_relay", None)) is not None:
            registry.register(RelayCollector(relay.info))
        try:
            collector.start()
            self._server, self._thread = start_http_server(port, address, registry)
        except (OSError, StabilizeError) as error:
            logger.error("metrics cannot be served on %s:%d: %s", address, port, error)
            return
        logger.info("metrics are served on %s:%d", address, port)

    def stop(self, worker: Any) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            assert self._thread is not None
            self._thread.join(5)

    terminate = stop


Labels = tuple[str, ...]


def _family(kind: str, name: str, text: str, labels: Sequence[str], values: Mapping[Any, Any]) -> Metric:
    """A family of ``prometheus_client``, which the first scrape imports; a value is a number, or buckets and a sum."""
    from prometheus_client import core

    family: Any = getattr(core, f"{kind}MetricFamily")(f"stabilize_{name}", text, labels=labels)
    for each, value in values.items():
        family.add_metric(each, *(value if isinstance(value, tuple) else [float(value)]))
    made: Metric = family
    return made


class Durations:
    """A histogram by labels."""

    def __init__(self) -> None:
        self.counts: dict[Labels, list[int]] = {}
        self.sums: dict[Labels, float] = {}

    def observe(self, labels: Labels, seconds: float) -> None:
        """One more."""
        self.counts.setdefault(labels, [0] * (len(BUCKETS) + 1))[bisect_left(BUCKETS, seconds)] += 1
        self.sums[labels] = self.sums.get(labels, 0.0) + seconds

    def values(self) -> dict[Labels, Any]:
        """By labels, buckets and the sum; to Prometheus each bucket holds those below as well."""
        ends = (*map(str, BUCKETS), "+Inf")
        return {
            labels: (list(zip(ends, map(float, accumulate(counts)), strict=True)), self.sums[labels])
            for labels, counts in self.counts.items()
        }


class WorkflowCollector:
    """What the database says.

    Args:
        find_store: gives the store when it is first needed, in the process that serves.
    """

    def __init__(self, find_store: Callable[[], WorkflowStore]) -> None:
        self._find_store = find_store
        self._lock = threading.Lock()
        self._after: str | None = None
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._names: set[tuple[str, str]] = set()
        #: By event: ``workflow``, ``stage``, ``task``, ``retry``.
        self._counts: dict[str, Counter[Labels]] = {}
        self._times = {"stage": Durations(), "workflow": Durations()}
        self._made: tuple[float, list[Metric]] = (-_FRESH, [])

    def describe(self) -> Iterable[Metric]:
        """Nothing is read when it is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Read what is new, and give all figures; only ``stabilize_up`` if the database does not answer."""
        with self._lock:
            if time.monotonic() - self._made[0] >= _FRESH:
                self._made = (time.monotonic(), self._read())
            yield from self._made[1]

    def start(self) -> None:
        """Count what happens from now on, also before the first scrape."""
        with self._lock:
            self._count(self._find_store())

    def _read(self) -> list[Metric]:
        try:
            store = self._find_store()
            self._count(store)
            found = [*self._counters(), *self._gauges(store)]
        except Exception:
            found = []
        return [_family("Gauge", "up", "Whether the database answers.", [], {(): bool(found)}), *found]

    def _count(self, store: WorkflowStore) -> None:
        now = store.now()
        if self._after is None:
            # Nothing that was there before; what is committed late counts as new.
            self._after = _id_before(now)
            return
        for row in _rows_after(store, max(self._after, _id_before(now - _FORGOTTEN))):
            if row.id not in self._seen:
                self._seen[row.id] = None
                self._note(row)
        self._after = max(self._after, _id_before(now - _LATE))
        while self._seen and next(iter(self._seen)) <= self._after:
            self._seen.popitem(last=False)

    def _note(self, row: Any) -> None:
        event, status = row.event, row.to_status
        about = self._named(row.application, row.name) if event == "workflow" else (row.stage_type or "",)
        labels = about if event == "retry" else (*about, "" if status is None else status.name)
        self._counts.setdefault(event, Counter())[labels] += 1
        started = {"stage": row.stage_start, "workflow": row.workflow_start}.get(event)
        # A stage that was reset since has started after that.
        if started is not None and status is not None and status.is_complete and row.at >= started:
            self._times[event].observe(labels, (row.at - started).total_seconds())

    def _named(self, application: str, name: str) -> tuple[str, str]:
        if (application, name) not in self._names and len(self._names) >= _MOST_NAMES:
            return (application, "")
        self._names.add((application, name))
        return (application, name)

    def _counters(self) -> Iterator[Metric]:
        by_type, by_name = ["type", "status"], ["application", "name", "status"]
        for event, name, text, labels in (
            ("workflow", "workflows", "Workflows that came to a status.", by_name),
            ("stage", "stages", "Stages that came to a status, by type.", by_type),
            ("task", "tasks", "Tasks that came to a status, by the type of their stage.", by_type),
            ("retry", "task_retries", "Attempts that failed and are repeated.", ["type"]),
        ):
            yield _family("Counter", name, text, labels, self._counts.get(event, {}))
        for event, labels in (("stage", by_type), ("workflow", by_name)):
            name, text = f"{event}_duration_seconds", f"From the start of a {event} to its end."
            yield _family("Histogram", name, text, labels, self._times[event].values())

    def _gauges(self, store: WorkflowStore) -> Iterator[Metric]:
        """Bounded reads over indexes, however many workflows there are."""
        now, due = store.now(), store.next_due()
        waiting, oldest = _queues(store, now)
        leased = messages.c.lease_owner.is_not(None) & ~messages.c.lease_owner.startswith(WAITS_IN)
        live = {
            (status.name,): _number_of(store, select(workflows.c.id).where(workflows.c.status == status))
            for status in WorkflowStatus
            if not status.is_complete
        }
        expired = _number_of(store, select(literal_column("1")).where(messages.c.send_at < now, leased))
        lag = 0.0 if due is None else max(0.0, (now - due).total_seconds())
        for name, text, labels, values in (
            ("live_workflows", f"Workflows that have not ended; at most {MOST:,} each.", ["status"], live),
            ("queue_messages", "Messages that are due and not handled yet.", ["queue"], waiting),
            ("queue_oldest_seconds", "How long the oldest of them has been due.", ["queue"], oldest),
            ("relay_lag_seconds", "How overdue the first message is.", [], {(): lag}),
            ("expired_leases", "Tasks whose worker is gone.", [], {(): expired}),
            ("dead_letters", "Dead letters.", [], {(): _number_of(store, select(dead_letters.c.id))}),
        ):
            yield _family("Gauge", name, text, labels, values)


class RelayCollector:
    """What the relay of this worker has done; unlike the rest, these are this process's own.

    Args:
        info: gives its counts.
    """

    def __init__(self, info: Callable[[], dict[str, Any]]) -> None:
        self._info = info

    def describe(self) -> Iterable[Metric]:
        """Nothing is read when it is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Its counts."""
        info = self._info()
        yield _family("Gauge", "relay_alive", "Whether it runs.", [], {(): bool(info.get("alive"))})
        for key, text in (
            ("sent", "Messages it has sent."),
            ("resent", "Those of them that had been sent before."),
            ("leases_lost", "Tasks it has sent again because their worker was gone."),
            ("failures", "Times it was interrupted."),
        ):
            yield _family("Counter", f"relay_{key}", text, [], {(): info.get(key, 0)})


def _id_before(moment: datetime) -> str:
    """An identifier that sorts before all that are made from that moment on."""
    random_bits = 80
    return str(ULID.from_int(int(moment.timestamp() * 1000) << random_bits))


def _rows_after(store: WorkflowStore, after: str) -> Iterator[Any]:
    """The history behind an identifier, in the order of identifiers, with the type of the stage and both starts."""
    statement = (
        select(
            *history.c["id", "event", "to_status", "at"],
            stages.c.type.label("stage_type"),
            stages.c.start_time.label("stage_start"),
            *workflows.c["application", "name"],
            workflows.c.start_time.label("workflow_start"),
        )
        .join_from(history, workflows, workflows.c.id == history.c.workflow_id)
        .outerjoin(stages, stages.c.id == history.c.stage_id)
        .order_by(history.c.id)
        .limit(_PAGE)
    )
    while True:
        with store.database.autocommit() as connection:
            page = connection.execute(statement.where(history.c.id > after)).all()
        yield from page
        if len(page) < _PAGE:
            return
        after = page[-1].id


def _number_of(store: WorkflowStore, rows: Select[Any]) -> int:
    """How many there are, :data:`MOST` at most."""
    with store.database.autocommit() as connection:
        return int(
            connection.execute(select(func.count()).select_from(rows.limit(MOST).subquery())).scalar_one()
        )


def _queues(store: WorkflowStore, now: datetime) -> tuple[dict[Labels, float], dict[Labels, float]]:
    """By queue: messages that are due and not handled yet, and for how many seconds the oldest has been due."""
    first = (
        select(*messages.c["queue", "due_at", "lease_owner"])
        .order_by(messages.c.id)
        .limit(_MESSAGES)
        .subquery()
    )
    statement = (
        select(first.c.queue, func.count(), func.min(first.c.due_at))
        .where(first.c.due_at <= now, first.c.lease_owner.is_(None))
        .group_by(first.c.queue)
    )
    with store.database.autocommit() as connection:
        found = connection.execute(statement).all()
    return (
        {(queue,): count for queue, count, _ in found},
        {(queue,): max(0.0, (now - due).total_seconds()) for queue, _, due in found},
    )
