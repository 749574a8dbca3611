"""Leases are renewed in time, and what the heartbeat hears reaches the task."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from stabilize_celery.tasks.run import TaskRun
from stabilize_celery.worker.leases import Lease, LeaseKeeper

SOON = 5.0


class RecordingStore:
    """Stands in for the store: answers heartbeats, and tells when there was one."""

    def __init__(self, verdict: str | None = None) -> None:
        self.beats: list[dict[str, int]] = []
        self.beaten = threading.Semaphore(0)
        self.verdict = verdict

    def heartbeat(self, leases: Mapping[str, int], lease: float) -> dict[str, str | None]:
        self.beats.append(dict(leases))
        self.beaten.release()
        return dict.fromkeys(leases, self.verdict)


def keeper_of(
    store: Any, heartbeat: float = 0.05, end_process: Callable[[], None] | None = None
) -> LeaseKeeper:
    return LeaseKeeper(store, lease=60, heartbeat=heartbeat, kill_grace=0, end_process=end_process)


def lease_of(
    message_id: str, deadline: float = 3600, on_deadline: Callable[[], None] = lambda: None
) -> Lease:
    return Lease(message_id, 1, TaskRun("w", "s", "t"), time.monotonic() + deadline, on_deadline)


def test_a_lease_taken_after_an_idle_time_is_renewed_in_time() -> None:
    store = RecordingStore()
    keeper = keeper_of(store)
    with keeper.keep(lease_of("first")):
        assert store.beaten.acquire(timeout=SOON)
    # The thread has nothing to do now; wait until it has gone to sleep for long.
    deadline = time.monotonic() + SOON
    while keeper._wakes_at < time.monotonic() + 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    while store.beaten.acquire(blocking=False):
        pass
    with keeper.keep(lease_of("second")):
        assert store.beaten.acquire(timeout=SOON)

    assert store.beats[-1] == {"second": 1}


def test_a_task_is_told_what_the_heartbeat_hears() -> None:
    lease = lease_of("m")
    with keeper_of(RecordingStore("ask")).keep(lease):
        assert lease.run.cancelled.wait(SOON)


def test_a_lost_lease_tells_the_task_to_stop() -> None:
    class Forgetful(RecordingStore):
        def heartbeat(self, leases: Mapping[str, int], lease: float) -> dict[str, str | None]:
            return {}

    lease = lease_of("m")
    with keeper_of(Forgetful()).keep(lease):
        assert lease.run.cancelled.wait(SOON)


def test_a_failing_heartbeat_is_tried_again() -> None:
    class Flaky(RecordingStore):
        def heartbeat(self, leases: Mapping[str, int], lease: float) -> dict[str, str | None]:
            held = super().heartbeat(leases, lease)
            if len(self.beats) == 1:
                raise RuntimeError("the database is away")
            return held

    store = Flaky()
    lease = lease_of("m")
    with keeper_of(store).keep(lease):
        assert store.beaten.acquire(timeout=SOON)
        assert store.beaten.acquire(timeout=SOON)

    assert not lease.run.cancelled.is_set()


def test_the_deadline_of_a_task_is_noticed_while_the_thread_sleeps_for_long() -> None:
    expired = threading.Event()
    keeper = keeper_of(RecordingStore(), heartbeat=600)
    with keeper.keep(lease_of("long")), keeper.keep(lease_of("short", 0.05, expired.set)):
        assert expired.wait(SOON)


def test_only_a_task_that_does_not_stop_takes_its_process_along() -> None:
    ended = threading.Event()
    with keeper_of(RecordingStore("kill"), end_process=ended.set).keep(lease_of("m")):
        assert ended.wait(SOON)

    asked = threading.Event()
    lease = lease_of("m")
    with keeper_of(RecordingStore("ask"), end_process=asked.set).keep(lease):
        assert lease.run.cancelled.wait(SOON)
    assert not asked.is_set()
