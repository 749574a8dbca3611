"""Celery's own canvas, with a result backend on PostgreSQL or Redis."""

from __future__ import annotations

import time
from typing import Any, Literal

import celery

from benchmarks.apps import canvas as app
from benchmarks.contenders.base import LONGEST_RUN, LOOK, Contender
from benchmarks.servers import Servers
from benchmarks.shapes import Shape

Backend = Literal["PostgreSQL", "Redis"]


def name_of(backend: Backend) -> str:
    """Of the contender with that backend."""
    return f"Celery canvas, results in {backend}"


class Canvas(Contender):
    """Chains, chords and groups."""

    def __init__(self, backend: Backend, *, processes: int = 2) -> None:
        super().__init__(name_of(backend), processes=processes)
        self._backend = backend
        self._app: Any = None

    def version(self) -> str:
        return str(celery.__version__)

    def start(self, servers: Servers) -> None:
        broker = servers.rabbit.add_vhost(self.slug)
        if self._backend == "Redis":
            if servers.redis_url is None:
                raise FileNotFoundError("there is no redis-server")
            backend = servers.redis_url
        else:
            backend = "db+" + servers.postgres.create_database(self.slug)
        self._app = app.make_app(broker, backend)
        self.stack.callback(self._app.close)
        self.start_worker(servers, "benchmarks.apps.canvas:app", {app.BROKER: broker, app.BACKEND: backend})

    def run(self, shape: Shape, size: int) -> float:
        each = shape.each or size
        signatures = [app.signature_of(self._app, shape, each) for _ in range(size // each)]
        begun = time.perf_counter()
        for result in [signature.apply_async() for signature in signatures]:
            result.get(timeout=LONGEST_RUN, interval=LOOK)
        return time.perf_counter() - begun
