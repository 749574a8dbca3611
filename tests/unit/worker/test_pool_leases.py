"""The main process of a pool keeps the leases of processes that cannot, and ends those that go on for too long."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from stabilize_celery.worker.pool_leases import Held, PoolLeases, PoolSlots

OVERDUE = 1.0


class FakeWorker:
    """Notes what is asked of its store."""

    def __init__(self) -> None:
        self.settings = SimpleNamespace(lease=30.0, heartbeat=3.0, task_kill_grace=0.0)
        self.store = self
        self.renewed: list[dict[str, int]] = []
        self.handed_back: list[tuple[str, int, bool]] = []
        self.wanted: str | None = None

    def heartbeat(self, leases: dict[str, int], lease: float) -> dict[str, str | None]:
        self.renewed.append(leases)
        return dict.fromkeys(leases, self.wanted)

    def hand_back(self, message_id: str, token: int, *, counted: bool) -> None:
        self.handed_back.append((message_id, token, counted))

    def settle_for(self, message_id: str, owner: str, outcome_of: object) -> bool:
        return False


@pytest.fixture
def slots() -> PoolSlots:
    return PoolSlots()


@pytest.fixture
def child() -> Iterator[int]:
    """A process of this one that does nothing."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    yield pid
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def fill(slots: PoolSlots, monkeypatch: pytest.MonkeyPatch, pid: int, **options: Any) -> None:
    """As the process itself does when it begins."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid)
        slot = slots.slot(3)
        assert slot is not None
        slot.fill("m", 7, options.get("deadline", time.monotonic() + 60))
    if options.get("silent", True):
        patched = time.monotonic() - 2 * OVERDUE
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: patched)
            slot.beat()


def leases(slots: PoolSlots) -> tuple[PoolLeases, FakeWorker]:
    worker = FakeWorker()
    return PoolLeases(slots, lambda: worker), worker  # type: ignore[arg-type,return-value]


def test_a_slot_says_what_its_process_runs_until_it_has_ended(slots: PoolSlots) -> None:
    slot = slots.slot(3)
    assert slot is not None
    slot.fill("first", 7, 100.0)
    slot.fill("inside", 1, 100.0)
    slot.limit("first", 50.0)
    slot.clear("inside")
    ((index, held),) = slots.held()
    assert (index, held.message_id, held.token, held.deadline) == (3, "first", 7, 50.0)
    assert held.owner.endswith(f":{os.getpid()}")
    slot.clear("first")
    assert slots.held() == []
    assert slots.slot(100_000) is None


def test_another_process_sees_it(slots: PoolSlots) -> None:
    pid = os.fork()
    if pid == 0:
        slot = slots.slot(5)
        assert slot is not None
        slot.fill("m", 1, 9.0)
        os._exit(0)
    os.waitpid(pid, 0)
    assert [(index, held.pid) for index, held in slots.held()] == [(5, pid)]


@pytest.mark.parametrize("silent", [True, False])
def test_only_a_process_that_does_not_do_so_itself_has_its_lease_renewed(
    slots: PoolSlots, monkeypatch: pytest.MonkeyPatch, child: int, silent: bool
) -> None:
    fill(slots, monkeypatch, child, silent=silent)
    keeper, worker = leases(slots)
    keeper.turn(OVERDUE)
    assert worker.renewed == ([{"m": 7}] if silent else [])


def test_a_stopped_process_loses_its_lease(
    slots: PoolSlots, monkeypatch: pytest.MonkeyPatch, child: int
) -> None:
    fill(slots, monkeypatch, child)
    keeper, worker = leases(slots)
    os.kill(child, signal.SIGSTOP)
    os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOWAIT)
    keeper.turn(OVERDUE)
    assert worker.renewed == []
    os.kill(child, signal.SIGCONT)
    os.waitid(os.P_PID, child, os.WCONTINUED)
    keeper.turn(OVERDUE)
    assert worker.renewed == [{"m": 7}]


@pytest.mark.parametrize("why", ["its time is over", "canceled by force"])
def test_a_process_that_must_not_go_on_is_ended(
    slots: PoolSlots, monkeypatch: pytest.MonkeyPatch, child: int, why: str
) -> None:
    over = time.monotonic() - 1 if why == "its time is over" else time.monotonic() + 60
    fill(slots, monkeypatch, child, deadline=over)
    keeper, worker = leases(slots)
    worker.wanted = "kill" if why == "canceled by force" else None
    keeper.turn(OVERDUE)
    keeper.turn(OVERDUE)
    found = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert found is not None
    assert found.si_status == signal.SIGKILL


def test_a_process_that_is_gone_needs_no_lease(slots: PoolSlots, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    fill(slots, monkeypatch, pid)
    keeper, worker = leases(slots)
    keeper.turn(OVERDUE)
    keeper.turn(OVERDUE)
    assert worker.handed_back == [("m", 7, True)], "once"
    assert worker.renewed == []


def test_what_a_slot_holds_can_be_compared(slots: PoolSlots) -> None:
    """A slot that was written again in the meantime is another one's."""
    assert Held(1, 2, 3.0, 4.0, "m") == Held(1, 2, 3.0, 4.0, "m")
    assert Held(1, 2, 3.0, 4.0, "m") != Held(1, 3, 3.0, 4.0, "m")
