"""Workflows that Celery beat starts: once per tick, however many beats run and however often they are restarted.

A tick is the planned time, not the time at which a beat came round to it: every beat finds the same tick by itself,
and it is the key by which a second start of the same tick finds the first.  Beat gives a task no planned time, so the
entrypoint works it out when it is sent, in the process of the beat.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.schedules import crontab, schedstate, schedule

from stabilize_celery.clock import check_seconds
from stabilize_celery.errors import ConfigurationError, StabilizeError
from stabilize_celery.messages import TASK_PREFIX
from stabilize_celery.models.workflow import Trigger, Workflow
from stabilize_celery.persistence.database import is_unavailable
from stabilize_celery.plugins import Plugin

if TYPE_CHECKING:
    from stabilize_celery.engine import Stabilize
    from stabilize_celery.run import WorkflowRun

logger = logging.getLogger(__name__)
NAME = TASK_PREFIX + "start"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: A crontab that names a time at all names one within so many: the 29th of February comes every eight years at worst.
_LONGEST_MINUTES = (8 * 366 + 1) * 1440
#: Seconds between tries while the database is away.
_LONGEST_PAUSE = 60

#: Makes the workflow of a tick; the tick is given to those that take a parameter.
Maker = Callable[..., Workflow]


class Every(schedule):
    """Each full interval since 1970-01-01 00:00 UTC, so that it falls due at the same moments for every beat."""

    def __init__(self, run_every: float | timedelta, nowfun: Any = None, app: Celery | None = None) -> None:
        super().__init__(run_every, nowfun=nowfun, app=app)
        if self.run_every < timedelta(seconds=1):
            raise ConfigurationError(f"a schedule's interval is a second at least, not {run_every}")

    def tick(self, moment: datetime) -> datetime:
        """The last one up to a moment."""
        interval: timedelta = self.run_every
        moment = moment.astimezone(UTC)
        return moment - (moment - _EPOCH) % interval

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """Until the tick after the one in which it last ran."""
        due = self.tick(self.maybe_make_aware(last_run_at)) + self.run_every
        left: timedelta = due - self.maybe_make_aware(self.now())
        return left

    def is_due(self, last_run_at: datetime) -> Any:
        """As beat asks it: whether, and in how many seconds to ask again."""
        left = self.remaining_estimate(last_run_at).total_seconds()
        if left > 0:
            return schedstate(False, left)
        now = self.maybe_make_aware(self.now())
        return schedstate(True, (self.tick(now) + self.run_every - now).total_seconds())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Every) and self.run_every == other.run_every

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return type(self), (self.run_every,)


def last_tick(when: crontab, moment: datetime) -> datetime:
    """The last time up to a moment that a crontab names, in UTC.

    Raises:
        ConfigurationError: it names none.
    """
    moment = moment.astimezone(UTC)

    def following(minutes: int) -> datetime:
        """The first time after so many minutes before the moment."""
        local, delta, _ = when.remaining_delta(moment - timedelta(minutes=minutes))
        due: datetime = local + delta
        return due.astimezone(UTC)

    # From how few minutes back is there still one to come?  That one is the tick.
    back = bisect_left(range(_LONGEST_MINUTES), True, key=lambda minutes: following(minutes) <= moment)
    if back == _LONGEST_MINUTES:
        raise ConfigurationError(f"{when} names no time")
    return following(back)


@dataclass(frozen=True)
class Scheduled:
    """A workflow with a schedule."""

    name: str
    when: Every | crontab
    make: Maker

    def tick(self, moment: datetime) -> datetime:
        """The last planned time up to a moment."""
        return self.when.tick(moment) if isinstance(self.when, Every) else last_tick(self.when, moment)

    def workflow(self, tick: datetime) -> Workflow:
        """The workflow to be started for a tick."""
        workflow: Any = self.make(tick) if signature(self.make).parameters else self.make()
        if not isinstance(workflow, Workflow):
            kind = type(workflow).__name__
            raise ConfigurationError(f"schedule {self.name}: its function gave {kind}, not a Workflow")
        if workflow.trigger == Trigger():
            parameters = {"scheduled_at": tick.isoformat()}
            workflow.trigger = Trigger(type="schedule", user=self.name, parameters=parameters)
        return workflow


class Schedules(Plugin):
    """The Celery task ``stabilize.start``, which beat sends and workers carry out; what ``engine.schedule`` calls."""

    def install(self, app: Celery, engine: Stabilize) -> None:
        from stabilize_celery.delivery.entrypoints import entrypoint_class

        base = entrypoint_class(app)

        def apply_async(self: Any, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
            args, kwargs = list(args or ()), dict(kwargs or {})
            if len(args) < 2 and "tick" not in kwargs:
                name = args[0] if args else kwargs.get("name")
                kwargs["tick"] = scheduled(engine, name).tick(datetime.now(UTC)).isoformat()
            options.setdefault("queue", engine.settings.queue)
            return base.apply_async(self, args, kwargs, *more, **options)

        def start(self: Any, name: str, tick: str | None = None) -> str:
            """Start the workflow of a schedule for a tick; a second start of the same tick changes nothing."""
            now = datetime.now(UTC)
            try:
                moment = datetime.fromisoformat(tick) if tick else scheduled(engine, name).tick(now)
                return start_tick(engine, name, moment).id
            except StabilizeError as error:
                if not is_unavailable(error):
                    raise
                pause = min(_LONGEST_PAUSE, 2**self.request.retries)
                raise self.retry(exc=error, countdown=pause) from None

        options = {"bind": True, "shared": False, "acks_late": True, "reject_on_worker_lost": True}
        based = type("StartEntrypoint", (base,), {"abstract": True, "apply_async": apply_async})
        app.task(start, name=NAME, base=based, max_retries=1000, **options)

    def add(self, engine: Stabilize, name: str, when: Any, source: Maker | str | Path) -> None:
        """See :meth:`stabilize_celery.engine.Stabilize.schedule`."""
        app = engine.app
        if app is None:
            raise ConfigurationError(f"schedule {name}: Celery beat starts workflows on a Celery app only")
        if not name or name in engine.schedules:
            raise ConfigurationError(f"schedule {name!r}: a schedule needs a name that no other has")
        planned = _planned(name, when, app)
        engine.schedules[name] = Scheduled(name, planned, _maker(name, source))
        app.add_periodic_task(planned, app.signature(NAME), kwargs={"name": name}, name=name)


def scheduled(engine: Stabilize, name: Any) -> Scheduled:
    """The schedule of that name.

    Raises:
        ConfigurationError: there is none in this process.
    """
    found: Scheduled | None = engine.schedules.get(name)
    if found is None:
        raise ConfigurationError(
            f"no schedule {name!r} is known here: stabilize.schedule({name!r}, ...) has to stand in a module that "
            "beat and workers import"
        )
    return found


def start_tick(engine: Stabilize, name: str, tick: datetime) -> WorkflowRun:
    """Start the workflow of a schedule for a tick, or find the one that was started for it.

    Raises:
        ConfigurationError: there is no such schedule, or its function gives no workflow.
        StabilizeError: the workflow is refused, or the database cannot be reached.
    """
    key = f"schedule:{name}:{tick.astimezone(UTC).isoformat()}"
    run = engine.start(scheduled(engine, name).workflow(tick), dedup_key=key)
    logger.info("schedule %s, tick %s: workflow %s", name, tick.isoformat(), run.id)
    return run


def _planned(name: str, when: Any, app: Celery) -> Every | crontab:
    if isinstance(when, crontab):
        when.app = app
        return when
    if type(when) in (schedule, Every):
        when = when.run_every
    if isinstance(when, int | float | timedelta) and not isinstance(when, bool):
        seconds = when.total_seconds() if isinstance(when, timedelta) else when
        try:
            check_seconds(seconds, f"schedule {name}: it")
        except ValueError as error:
            raise ConfigurationError(str(error)) from None
        return Every(when, app=app)
    raise ConfigurationError(
        f"schedule {name}: {when!r} is neither a crontab, nor a timedelta or a number of seconds"
    )


def _maker(name: str, source: Maker | str | Path) -> Maker:
    if isinstance(source, str | Path):
        from stabilize_celery.files import load_workflow

        path = Path(source).absolute()
        return lambda: load_workflow(path)
    if callable(source):
        return source
    raise ConfigurationError(
        f"schedule {name}: {source!r} is neither a function that makes a workflow nor the path of a workflow file"
    )
