"""The Celery app under chaos: what its workers are started with (`-A tests.chaos.app`).

It reads the broker, the database and the file of effects from the environment; the client's app is made by the same
:func:`make_app`.
"""

from __future__ import annotations

import os
from typing import Any

from celery import Celery

from stabilize_celery import Stabilize
from tests.chaos import flows
from tests.conformance import deployment

BROKER, DATABASE = "CHAOS_BROKER_URL", "CHAOS_DATABASE_URL"

#: Short, so that what has to be waited for is waited for in seconds.
SETTINGS = {
    "lease": 2.0,
    "heartbeat": 0.4,
    "relay_interval": 0.5,
    "resend_delay": 2.0,
    "resend_delay_max": 10.0,
    # A worker that dies costs its tasks an attempt, and here workers die all the time.
    "max_attempts": 30,
}


def make_app(broker: str, database: str) -> tuple[Celery, Stabilize]:
    """An app with the engine and everything the flows need."""
    conf: dict[str, Any] = {f"stabilize_{name}": value for name, value in SETTINGS.items()}
    made, stabilize = deployment.make_app(broker, database, inline=True, **conf)
    flows.register(made, stabilize)
    return made, stabilize


if BROKER in os.environ:
    app, stabilize = make_app(os.environ[BROKER], os.environ[DATABASE])
