"""What the database tells, on the ``/metrics`` page that Flower has anyway."""

from __future__ import annotations

from functools import cache

from prometheus_client import REGISTRY

from stabilize_celery.delivery.install import installed_engines
from stabilize_celery.errors import ConfigurationError
from stabilize_celery.observe.metrics import WorkflowCollector
from stabilize_celery.persistence.store import WorkflowStore


@cache
def serve_metrics() -> None:
    """Add the metrics of the engine in this process to those Flower serves; a second time changes nothing."""
    REGISTRY.register(WorkflowCollector(_find_store))


def _find_store() -> WorkflowStore:
    # Asked when somebody scrapes: Flower is prepared before the app is known.
    for engine in installed_engines():
        return engine.store
    raise ConfigurationError("no Stabilize is installed on the app that Flower shows")
