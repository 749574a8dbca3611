"""Each process corrects its clock to the database's: what is due is due for all of them."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event
from ulid import ULID

from stabilize_celery import Stabilize, StageExecution, Workflow, WorkflowStatus
from stabilize_celery.clock import Clock, FakeClock
from stabilize_celery.models import ids
from stabilize_celery.models.ids import new_id
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
