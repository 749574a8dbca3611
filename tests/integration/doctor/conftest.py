"""Deployments that are well, and others that are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery import Celery

from stabilize_celery import Stabilize
from stabilize_celery.contrib.doctor import Finding, Level, examine

#: What docs/how-to/doctor.md recommends.
GOOD = {
    "accept_content": ["json"],
    "broker_channel_error_retry": True,
    "broker_connection_retry_on_startup": True,
    "broker_heartbeat": 20,
    "broker_transport_options": {"confirm_publish": True},
    "worker_soft_shutdown_timeout": 20,
    "worker_cancel_long_running_tasks_on_connection_loss": True,
}


def problems(found: list[Finding], area: str = "") -> list[str]:
    """What is wrong, in an area or in all."""
    return [one.what for one in found if one.level is not Level.OK and area in ("", one.area)]


def errors(found: list[Finding]) -> list[str]:
    return [one.what for one in found if one.level is Level.ERROR]


@pytest.fixture
def make_engine(postgres_url: str, broker_url: str) -> Iterator[Callable[..., Stabilize]]:
    """An engine on an app of good settings but for those given."""
    made: list[Stabilize] = []

    def make(**conf: Any) -> Stabilize:
        app = Celery("shop", broker=conf.pop("broker_url", broker_url), set_as_current=False)
        app.conf.update(GOOD)
        app.conf.update(stabilize_database_url=postgres_url)
        app.conf.update(conf)
        made.append(Stabilize(app))
        return made[-1]

    yield make
    for engine in made:
        engine.close()
        assert engine.app is not None
        engine.app.close()


@pytest.fixture
def checkup(make_engine: Callable[..., Stabilize]) -> Callable[..., list[Finding]]:
    """What the doctor says of an app with such settings."""

    def check(**conf: Any) -> list[Finding]:
        return examine(make_engine(**conf), timeout=1.0)

    return check
