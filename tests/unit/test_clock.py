"""Each process corrects its clock to the database's: what is due is due for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event
from ulid import ULID

from stabilize_celery import Stabilize, StageExecution, Workflow, WorkflowStatus
from stabilize_celery import clock as clock_module
from stabilize_celery.clock import Clock, FakeClock
from stabilize_celery.models import ids
from stabilize_celery.models.ids import new_id
from stabilize_celery.persistence import database as database_module
from stabilize_celery.persistence.database import Database

NEAR = timedelta(seconds=0.4)
SLOW = 2 * NEAR.total_seconds()


def test_a_clock_follows_the_database_as_of_when_it_was_asked():
    clock = Clock()
    hour = timedelta(hours=1)
    clock.synchronise(datetime.now(UTC) + hour, datetime.now(UTC))
    assert abs(clock.now() - datetime.now(UTC) - hour) < NEAR


def test_a_fake_clock_follows_nobody():
    clock = FakeClock(datetime(2030, 1, 1, tzinfo=UTC))
    clock.synchronise(datetime.now(UTC), datetime.now(UTC))
    assert clock.now() == datetime(2030, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("slow", ["after_cursor_execute", "rollback"])
def test_an_answer_that_comes_late_does_not_make_the_clock_late(postgres_url: str, slow: str):
    """A late clock would find every message it is handed not due yet, and leave it to be sent again."""
    database = Database(postgres_url)
    with database.engine.connect():
        pass  # The driver's own questions at its first connection are not what this is about.
    times = iter([SLOW])
    event.listen(database.engine, slow, lambda *_arguments: time.sleep(next(times, 0)))
    with database.autocommit():
        pass
    database.dispose()
    assert abs(database.clock.now() - datetime.now(UTC)) < NEAR


@pytest.fixture
def step(monkeypatch) -> Callable[[float], None]:
    """Set this machine's wall clock, as NTP and hypervisors do."""
    real_time, real_now, steps = time.time, datetime.now, [0.0]

    class Stepped(datetime):
        @classmethod
        def now(cls, tz=None):
            return real_now(tz) + timedelta(seconds=sum(steps))

    monkeypatch.setattr(clock_module, "datetime", Stepped)
    monkeypatch.setattr(clock_module.time, "time", lambda: real_time() + sum(steps))
    return steps.append


@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_wall_clock_that_is_set_changes_no_time_of_the_engine(postgres_url: str, step, seconds: float):
    database = Database(postgres_url)
    with database.autocommit():
        pass
    assert not database.clock.is_stale()
    before = datetime.now(UTC)
    step(seconds)
    assert abs(database.clock.now() - before) < NEAR
    assert database.clock.is_stale(), "the machine may have slept: the database is asked again"
    with database.autocommit():
        pass
    database.dispose()
    assert not database.clock.is_stale()
    assert abs(database.clock.now() - before) < NEAR


def test_after_a_sleep_that_no_clock_has_seen_the_database_tells_the_time(postgres_url: str, step):
    """A virtual machine was paused: all its clocks stood still, and its wall clock was set right afterwards."""
    database = Database(postgres_url)
    with database.autocommit():
        pass
    database.clock._offset -= timedelta(hours=1)
    step(3600)
    with database.autocommit():
        pass
    database.dispose()
    assert abs(database.clock.now() - datetime.now(UTC)) < NEAR


def test_the_database_is_asked_again_after_a_while_and_only_then(postgres_url: str, monkeypatch):
    database = Database(postgres_url)
    asked = []
    monkeypatch.setattr(database_module, "_measure", lambda *_arguments: asked.append(1))
    for _ in range(3):
        with database.autocommit():
            pass
    monkeypatch.setattr(clock_module, "_FRESH", 0.0)
    with database.autocommit():
        pass
    database.dispose()
    assert len(asked) == 2


@pytest.mark.parametrize("url", ["sqlite", "postgresql"])
@pytest.mark.parametrize("seconds", [-3600, 3600])
def test_a_lease_survives_the_step_of_a_clock(
    request: pytest.FixtureRequest, tmp_path: Path, step, url: str, seconds: float
):
    """Set forward, it would seem to have ended; set back, what is due would not be."""
    where = f"sqlite:///{tmp_path}/a.db" if url == "sqlite" else request.getfixturevalue("postgres_url")
    calls = []
    with Stabilize.embedded(where, concurrency=2, lease=20, heartbeat=0.1) as engine:

        @engine.task("steps")
        def steps(stage: StageExecution) -> None:
            calls.append(1)
            step(seconds)
            for _ in range(20):
                assert engine.store.take_due(10, lambda _row: 1.0) == []
                time.sleep(0.02)

        flow = [StageExecution.single("a", "steps"), StageExecution.single("b", "noop", requires={"a"})]
        run = engine.run(Workflow.create("clocks", "one", flow), timeout=10)
        assert run.status is WorkflowStatus.SUCCEEDED
        # Whatever starts later is due at once.
        later = engine.run(Workflow.create("clocks", "two", [StageExecution.single("a", "noop")]), timeout=10)
        assert later.status is WorkflowStatus.SUCCEEDED
    assert calls == [1]


class BehindClock(Clock):
    """Never hears what time it is elsewhere."""

    def __init__(self, behind: float) -> None:
        super().__init__()
        self._offset = -timedelta(seconds=behind)

    def synchronise(self, database_time: datetime, own_time: datetime | None = None) -> None:
        """Not even now."""


@pytest.mark.parametrize(("behind", "handled"), [(0.2, True), (60, False)])
def test_a_machine_that_is_a_little_behind_handles_what_others_have_just_sent(
    postgres_url: str, behind: float, handled: bool
):
    with (
        Stabilize.embedded(postgres_url, concurrency=1) as ahead,
        Stabilize.embedded(postgres_url, concurrency=1, clock=BehindClock(behind)) as late,
    ):
        run = ahead.start(
            Workflow.create("clocks", "one", [StageExecution.single("a", "python", context={"script": "1"})])
        )
        [(message_id, message_type)] = ahead.publisher.ready
        assert late.dispatcher.process(message_id, message_type) is handled
        assert (run.status is WorkflowStatus.RUNNING) is handled


def test_ids_of_one_process_sort_in_the_order_they_were_made(monkeypatch):
    made = [new_id() for _ in range(5000)]
    # The clock is set back.
    monkeypatch.setattr(ids, "ULID", lambda: 17)
    monkeypatch.setattr(ids.ULID, "from_int", ULID.from_int, raising=False)
    made += [new_id() for _ in range(10)]
    assert made == sorted(set(made))
    assert {len(each) for each in made} == {26}


def test_a_forked_process_does_not_go_on_with_the_ids_of_its_parent(monkeypatch):
    monkeypatch.setattr(ids, "_last", int(ULID()) + (1 << 90))
    before = new_id()
    ids._forget()
    assert new_id() < before
