"""Metrics for Prometheus, made of the database when somebody scrapes.

Why of the database: tasks run in pool processes, on many machines, and each would count for itself; what they commit
is in one place.  So the figures are those of the whole deployment, whoever serves them; where several workers do, one
is enough.  Counters begin when the serving process begins, as counters do.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import REGISTRY, Collector, CollectorRegistry

from stabilize_celery.persistence import metrics_store as reads
from stabilize_celery.persistence.metrics_store import Happened
from stabilize_celery.persistence.store import WorkflowStore

if TYPE_CHECKING:
    from prometheus_client import Metric

#: Upper ends of the durations' buckets, in seconds.
BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
#: A row may be committed so long after its identifier was made; rows seen since then are remembered.
_LATE = timedelta(seconds=30)
#: What happened longer ago than that is not counted any more, if nobody scraped since.
_FORGOTTEN = timedelta(hours=1)
#: Seconds for which one look at the database answers every scrape.
_FRESH = 1.0
#: Workflows whose names are told apart; those of more go under an empty name, so that the number of series is bounded.
_MOST_NAMES = 200


class Durations:
    """A histogram by labels."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, ...], list[int]] = {}
        self.sums: dict[tuple[str, ...], float] = {}

    def observe(self, labels: tuple[str, ...], seconds: float) -> None:
        """One more."""
        counts = self.counts.setdefault(labels, [0] * (len(BUCKETS) + 1))
        counts[bisect_left(BUCKETS, seconds)] += 1
        self.sums[labels] = self.sums.get(labels, 0.0) + seconds

    def family(self, name: str, text: str, labels: list[str]) -> Metric:
        """As Prometheus wants it: each bucket holds those below as well."""
        family = HistogramMetricFamily(name, text, labels=labels)
        for values, counts in self.counts.items():
            so_far, buckets = 0, []
            for end, count in zip((*map(str, BUCKETS), "+Inf"), counts, strict=True):
                so_far += count
                buckets.append((end, float(so_far)))
            family.add_metric(values, buckets, self.sums[values])
        return family


class WorkflowCollector(Collector):
    """Everything that the database tells.

    Args:
        find_store: gives the store when it is first needed, in the process that serves.
    """

    def __init__(self, find_store: Callable[[], WorkflowStore]) -> None:
        self._find_store = find_store
        self._lock = threading.Lock()
        self._after: str | None = None
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._names: set[tuple[str, str]] = set()
        self._stages: Counter[tuple[str, ...]] = Counter()
        self._workflows: Counter[tuple[str, ...]] = Counter()
        self._tasks: Counter[tuple[str, ...]] = Counter()
        self._retries: Counter[tuple[str, ...]] = Counter()
        self._stage_times, self._workflow_times = Durations(), Durations()
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
        up = GaugeMetricFamily("stabilize_up", "Whether the database answers.")
        try:
            store = self._find_store()
            self._count(store)
            gauges = list(_gauges(store))
        except Exception:
            up.add_metric([], 0)
            return [up]
        up.add_metric([], 1)
        return [up, *self._counters(), *gauges]

    def _count(self, store: WorkflowStore) -> None:
        now = store.now()
        if self._after is None:
            # Nothing that was there before; what is committed late counts as new.
            self._after = reads.id_before(now)
            return
        oldest = reads.id_before(now - _FORGOTTEN)
        for each in reads.happened_since(store, max(self._after, oldest)):
            if each.id not in self._seen:
                self._seen[each.id] = None
                self._note(each)
        self._after = max(self._after, reads.id_before(now - _LATE))
        while self._seen and next(iter(self._seen)) <= self._after:
            self._seen.popitem(last=False)

    def _note(self, each: Happened) -> None:
        status = "" if each.status is None else each.status.name
        if each.event == "retry":
            self._retries[each.stage_type,] += 1
        elif each.event == "task":
            self._tasks[each.stage_type, status] += 1
        elif each.event == "stage":
            self._stages[each.stage_type, status] += 1
            if each.duration is not None:
                self._stage_times.observe((each.stage_type, status), each.duration)
        elif each.event == "workflow":
            labels = (*self._named(each), status)
            self._workflows[labels] += 1
            if each.duration is not None:
                self._workflow_times.observe(labels, each.duration)

    def _named(self, each: Happened) -> tuple[str, str]:
        name = (each.application, each.name)
        if name not in self._names and len(self._names) >= _MOST_NAMES:
            return (each.application, "")
        self._names.add(name)
        return name

    def _counters(self) -> Iterator[Metric]:
        by_type, by_name = ["type", "status"], ["application", "name", "status"]
        yield _counter("stabilize_workflows", "Workflows that came to a status.", by_name, self._workflows)
        yield _counter("stabilize_stages", "Stages that came to a status, by type.", by_type, self._stages)
        yield _counter(
            "stabilize_tasks",
            "Tasks that came to a status, by the type of their stage.",
            by_type,
            self._tasks,
        )
        yield _counter(
            "stabilize_task_retries", "Attempts that failed and are repeated.", ["type"], self._retries
        )
        yield self._stage_times.family(
            "stabilize_stage_duration_seconds", "From the start of a stage to its end.", by_type
        )
        yield self._workflow_times.family(
            "stabilize_workflow_duration_seconds", "From the start of a workflow to its end.", by_name
        )


def _counter(name: str, text: str, labels: list[str], counts: Counter[tuple[str, ...]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _gauges(store: WorkflowStore) -> Iterator[Metric]:
    live = GaugeMetricFamily(
        "stabilize_live_workflows",
        f"Workflows that have not ended; at most {reads.MOST:,} each.",
        labels=["status"],
    )
    for status, count in reads.live_workflows(store).items():
        live.add_metric([status.name], count)
    yield live
    waiting = GaugeMetricFamily(
        "stabilize_queue_messages", "Messages that are due and that nobody handles yet.", labels=["queue"]
    )
    oldest = GaugeMetricFamily(
        "stabilize_queue_oldest_seconds", "How long the oldest of them has been due.", labels=["queue"]
    )
    for queue in reads.queues(store):
        waiting.add_metric([queue.name], queue.waiting)
        oldest.add_metric([queue.name], queue.oldest)
    yield waiting
    yield oldest
    yield GaugeMetricFamily(
        "stabilize_relay_lag_seconds", "How overdue the first message is.", value=reads.relay_lag(store)
    )
    yield GaugeMetricFamily(
        "stabilize_expired_leases", "Tasks whose worker is gone.", value=reads.expired_leases(store)
    )
    yield GaugeMetricFamily(
        "stabilize_dead_letters", "Messages that were given up.", value=reads.count_dead_letters(store)
    )


class RelayCollector(Collector):
    """What the relay of this worker has done; unlike the rest, these are this process's own.

    Args:
        info: gives its counts.
    """

    def __init__(self, info: Callable[[], dict[str, Any]]) -> None:
        self._info = info

    def describe(self) -> Iterable[Metric]:
        """Nothing is asked when it is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Its counts."""
        info = self._info()
        yield GaugeMetricFamily(
            "stabilize_relay_alive", "Whether it runs.", value=float(bool(info.get("alive")))
        )
        for key, text in _RELAY_COUNTS.items():
            family = CounterMetricFamily(f"stabilize_relay_{key}", text)
            family.add_metric([], float(info.get(key, 0)))
            yield family


_RELAY_COUNTS = {
    "sent": "Messages it has sent.",
    "resent": "Those of them that had been sent before.",
    "leases_lost": "Tasks it has sent again because their worker was gone.",
    "failures": "Times it was interrupted.",
}


def register(engine: Any, registry: CollectorRegistry = REGISTRY) -> WorkflowCollector:
    """Let a registry of this process serve the metrics of an engine; a second time changes nothing.

    Args:
        engine: a :class:`~stabilize_celery.engine.Stabilize`.
        registry: by default the one that Flower and others serve.
    """
    known: WorkflowCollector | None = getattr(engine, "_metrics", None)
    if known is None:
        known = WorkflowCollector(lambda: engine.store)
        registry.register(known)
        engine._metrics = known
    return known
