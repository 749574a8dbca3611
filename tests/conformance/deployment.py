"""The Celery app of the conformance suite: what its workers are started with (`-A tests.conformance.deployment`).

Workers read the broker, the database and the setting under test from the environment; the tests make the client's
app, with the same configuration, by calling :func:`make_app`.
"""

from __future__ import annotations

import json
import os
from typing import Any

from celery import Celery

from stabilize_celery import Stabilize
from tests.conformance import behaviours

BROKER = "CONFORMANCE_BROKER_URL"
DATABASE = "CONFORMANCE_DATABASE_URL"
INLINE = "CONFORMANCE_INLINE"
#: More settings, as a JSON mapping of keys of the Celery configuration.
MORE = "CONFORMANCE_MORE"

#: The same for every backend; short, so that a scenario with ten attempts takes a second.
SETTINGS = {
    # Unknown types are let through here, to see what a worker says of them.
    "check_types": False,
    # So long, on workers: embedded engines know at once that no other process will know it.
    "unknown_type_grace": 0.3,
    "retry_delay": 0.05,
    "retry_delay_max": 0.1,
    "poll_delay": 0.05,
    "heartbeat": 0.2,
    "lease": 3.0,
    "task_kill_grace": 0.3,
    "relay_interval": 0.2,
    "resend_delay": 1.0,
    "control_retry_delay": 0.05,
    "allow_private_urls": False,
}


def _add(first: int, second: int) -> int:
    """A Celery task that knows nothing of the engine."""
    return first + second


def make_app(
    broker: str, database: str, *, inline: bool, task_cls: Any = None, **more: Any
) -> tuple[Celery, Stabilize]:
    """A Celery app with the engine and every behaviour on it; ``more`` are keys of its configuration."""
    app = Celery("conformance", broker=broker, set_as_current=False, task_cls=task_cls)
    app.conf.update({f"stabilize_{name}": value for name, value in SETTINGS.items()})
    app.conf.update(
        stabilize_database_url=database,
        stabilize_inline=inline,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
    )
    app.conf.update(more)
    stabilize = Stabilize(app)
    behaviours.register(stabilize)
    app.task(_add, name="conformance.add", shared=False)
    return app, stabilize


if BROKER in os.environ:
    app, stabilize = make_app(
        os.environ[BROKER],
        os.environ[DATABASE],
        inline=os.environ[INLINE] == "1",
        **json.loads(os.environ.get(MORE, "{}")),
    )
