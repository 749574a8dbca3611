"""The worker bootstep that serves metrics to Prometheus, from the worker's main process."""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery import bootsteps

from stabilize_celery.delivery.bootstep import RelayStep
from stabilize_celery.errors import StabilizeError

logger = logging.getLogger(__name__)


class MetricsStep(bootsteps.StartStopStep):
    """Serves on ``stabilize_metrics_port``, if there is one; starts after the relay, whose counts it serves too."""

    requires = {RelayStep}

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        self._server: Any = None
        self._thread: threading.Thread | None = None
        super().__init__(worker, **kwargs)

    def start(self, worker: Any) -> None:
        """Begin to serve; a port that cannot be had is an error in the log, and no reason not to work."""
        from stabilize_celery.delivery.install import engine_of

        engine = engine_of(worker.app)
        settings = engine.settings
        if settings.metrics_port is None:
            return
        try:
            from prometheus_client import CollectorRegistry, start_http_server

            from stabilize_celery.observe.metrics import RelayCollector, WorkflowCollector
        except ImportError:
            logger.error(
                "stabilize_metrics_port is set, but prometheus_client is not installed: "
                "pip install 'stabilize-celery[metrics]'"
            )
            return
        registry = CollectorRegistry()
        collector = WorkflowCollector(lambda: engine.store)
        registry.register(collector)
        relay = getattr(worker, "stabilize_relay", None)
        if relay is not None:
            registry.register(RelayCollector(relay.info))
        address, port = settings.metrics_address, settings.metrics_port
        try:
            collector.start()
            self._server, self._thread = start_http_server(port, address, registry)
        except (OSError, StabilizeError) as error:
            logger.error("metrics cannot be served on %s:%d: %s", address, port, error)
            return
        logger.info("metrics are served on %s:%d", address, port)

    def stop(self, worker: Any) -> None:
        """End the server."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            assert self._thread is not None
            self._thread.join(5)

    terminate = stop
