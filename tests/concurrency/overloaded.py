"""The Celery app of the overload test: what its workers are started with (`-A tests.concurrency.overloaded`)."""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery

from stabilize_celery import Stabilize, TaskResult

BROKER, DATABASE = "OVERLOADED_BROKER_URL", "OVERLOADED_DATABASE_URL"
SETTINGS = {"relay_interval": 0.2, "resend_delay": 2.0, "lease": 60.0}


def slow(_stage: Any) -> TaskResult:
    time.sleep(0.5)
    return TaskResult.success()


def make_app(broker: str, database: str) -> tuple[Celery, Stabilize]:
    made = Celery("overloaded", broker=broker, set_as_current=False)
    made.conf.update({f"stabilize_{name}": value for name, value in SETTINGS.items()})
    made.conf.update(
        stabilize_database_url=database,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
    )
    stabilize = Stabilize(made)
    stabilize.registry.register("slow", slow)
    return made, stabilize


if BROKER in os.environ:
    app, stabilize = make_app(os.environ[BROKER], os.environ[DATABASE])
