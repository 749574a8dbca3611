"""Which tick a moment belongs to, and what a schedule may be."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import Celery
from celery.schedules import crontab, schedule
from hypothesis import given, settings
from hypothesis import strategies as st

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.contrib.schedules import NAME, Every, last_tick, start_tick
from stabilize_celery.errors import ConfigurationError

MOMENTS = st.integers(10**9, 4 * 10**9).map(lambda s: datetime.fromtimestamp(s + 0.25, UTC))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.fixture
def app() -> Celery:
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.stabilize_database_url = "sqlite://"
    return app


def nightly() -> Workflow:
    return Workflow.create("shop", "nightly", [StageExecution.single("a", "noop")])


# ---------------------------------------------------------------------- ticks


@pytest.mark.parametrize(
    ("when", "moment", "tick"),
    [
        (crontab(), "2030-01-31 12:00:00", "2030-01-31 12:00:00"),
        (crontab(), "2030-01-31 12:00:59.9", "2030-01-31 12:00:00"),
        (crontab(minute="*/15"), "2030-01-31 12:14:59", "2030-01-31 12:00:00"),
        (crontab(minute="30", hour="2"), "2030-01-31 02:29:00", "2030-01-30 02:30:00"),
        (crontab(minute="0", hour="0", day_of_month="31"), "2030-03-30 00:00:00", "2030-01-31 00:00:00"),
        (crontab(minute="0", hour="0", day_of_month="29", month_of_year="2"), "2031-01-01", "2028-02-29"),
        (crontab(minute="0", hour="6", day_of_week="mon"), "2030-02-03 23:00:00", "2030-01-28 06:00:00"),
    ],
)
def test_the_last_time_a_crontab_names(app: Celery, when: crontab, moment: str, tick: str) -> None:
    when.app = app
    assert last_tick(when, at(moment)) == at(tick)


def test_a_crontab_goes_by_the_timezone_of_the_app(app: Celery) -> None:
    app.conf.timezone = "Europe/Berlin"
    when = crontab(minute="0", hour="3")
    when.app = app
    assert last_tick(when, at("2030-07-01 12:00")) == at("2030-07-01 01:00")


@settings(deadline=None, max_examples=60)
@given(MOMENTS, st.sampled_from(["*", "*/7", "0", "13,47"]), st.sampled_from(["*", "5", "*/6"]))
def test_a_tick_is_the_last_one_and_its_own(moment: datetime, minute: str, hour: str) -> None:
    when = crontab(minute=minute, hour=hour)
    when.app = Celery("shop", broker="memory://", set_as_current=False)
    tick = last_tick(when, moment)
    assert tick <= moment
    assert last_tick(when, tick) == tick
    local, delta, _ = when.remaining_delta(tick)
    assert local + delta > moment


@given(MOMENTS, st.integers(1, 10**6))
def test_intervals_are_counted_from_one_point(moment: datetime, seconds: int) -> None:
    every = Every(seconds)
    tick = every.tick(moment)
    assert timedelta() <= moment - tick < timedelta(seconds=seconds)
    assert (tick - datetime(1970, 1, 1, tzinfo=UTC)) % timedelta(seconds=seconds) == timedelta()
    assert every.tick(tick) == tick


@given(MOMENTS, st.floats(0, 1e5), st.integers(1, 10**5))
def test_an_interval_is_due_in_the_tick_after_the_one_it_ran_in(
    last: datetime, passed: float, seconds: int
) -> None:
    now = last + timedelta(seconds=passed)
    every = Every(seconds, nowfun=lambda: now)
    every.app = Celery("shop", broker="memory://", set_as_current=False)
    is_due, following = every.is_due(last)
    assert is_due is (every.tick(now) > every.tick(last))
    assert 0 < following <= seconds
    assert every.tick(now + timedelta(seconds=following)) > every.tick(now)


def test_beat_can_keep_it_in_its_file() -> None:
    again = pickle.loads(pickle.dumps(Every(90)))
    assert again == Every(90)
    assert again != Every(91)


# ---------------------------------------------------------------------- registering


def test_it_is_an_entry_of_the_beat_schedule(app: Celery) -> None:
    stabilize = Stabilize(app)
    stabilize.schedule("nightly", crontab(minute=0, hour=2), nightly)
    stabilize.schedule("often", timedelta(seconds=90), nightly)
    entries = app.conf.beat_schedule
    assert entries["nightly"]["task"] == entries["often"]["task"] == NAME
    assert entries["nightly"]["schedule"] == crontab(minute=0, hour=2)
    assert entries["often"]["schedule"] == Every(90)
    assert entries["often"]["kwargs"] == {"name": "often"}


def test_a_configuration_that_is_read_later_keeps_it(app: Celery) -> None:
    app = Celery("shop", set_as_current=False)
    Stabilize(app).schedule("nightly", schedule(3600), nightly)
    app.config_from_object({"broker_url": "memory://", "timezone": "Europe/Berlin"})
    assert app.conf.beat_schedule["nightly"]["schedule"] == Every(3600)


@pytest.mark.parametrize(
    ("name", "when", "source", "told"),
    [
        ("", 60, nightly, "a schedule needs a name"),
        ("taken", 60, nightly, "a name that no other has"),
        ("a", 0.5, nightly, "a second at least"),
        ("a", object(), nightly, "neither a crontab"),
        ("a", float("nan"), nightly, "is a number of seconds"),
        ("a", float("inf"), nightly, "is a number of seconds"),
        ("a", 1e300, nightly, "is a number of seconds"),
        ("a", "daily", nightly, "'daily' is neither a crontab"),
        ("a", 60, 5, "neither a function that makes a workflow nor the path"),
    ],
)
def test_what_makes_no_sense_is_refused(
    app: Celery, name: str, when: object, source: object, told: str
) -> None:
    stabilize = Stabilize(app)
    stabilize.schedule("taken", 60, nightly)
    with pytest.raises(ConfigurationError, match=told):
        stabilize.schedule(name, when, source)  # type: ignore[arg-type]


def test_an_embedded_engine_has_no_beat() -> None:
    with Stabilize.embedded() as stabilize, pytest.raises(ConfigurationError, match="on a Celery app only"):
        stabilize.schedule("nightly", 60, nightly)


# ---------------------------------------------------------------------- starting


def test_a_tick_is_started_once(app: Celery, tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text("application: shop\nname: filed\nstages: [{ref: a, type: noop}]\n")
    stabilize = Stabilize(app)
    stabilize.create_tables()
    stabilize.schedule("nightly", 3600, nightly)
    stabilize.schedule("filed", 3600, tmp_path / "flow.yaml")
    stabilize.schedule(
        "dated", 3600, lambda tick: Workflow.create("shop", f"at {tick:%H:%M}", nightly().stages)
    )
    tick = at("2030-01-31 12:00")
    first, second = (start_tick(stabilize, "nightly", tick) for _ in range(2))
    assert first.id == second.id
    assert start_tick(stabilize, "nightly", tick + timedelta(hours=1)).id != first.id
    trigger = first.workflow().trigger
    assert (trigger.type, trigger.user) == ("schedule", "nightly")
    assert trigger.parameters == {"scheduled_at": "2030-01-31T12:00:00+00:00"}
    assert start_tick(stabilize, "filed", tick).workflow().name == "filed"
    assert start_tick(stabilize, "dated", tick).workflow().name == "at 12:00"
    with pytest.raises(ConfigurationError, match="no schedule 'weekly' is known here"):
        start_tick(stabilize, "weekly", tick)
    stabilize.close()
