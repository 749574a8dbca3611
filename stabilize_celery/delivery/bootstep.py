"""The worker bootstep: the schema is checked, then the relay runs in a thread of the worker's main process."""

from __future__ import annotations

import logging
from typing import Any

from celery import bootsteps

from stabilize_celery.delivery.publisher import CeleryPublisher
from stabilize_celery.delivery.relay import Relay
from stabilize_celery.errors import StabilizeError
from stabilize_celery.observe.tracing import Tracer

logger = logging.getLogger(__name__)


class RelayStep(bootsteps.StartStopStep):
    """Starts after the pool, so that no child inherits the relay's connections."""

    requires = {"celery.worker.components:Pool"}

    def __init__(self, worker: Any, stabilize_relay: bool = True, **kwargs: Any) -> None:
        self._wanted = stabilize_relay
        self._relay: Relay | None = None
        super().__init__(worker, **kwargs)

    def start(self, worker: Any) -> None:
        from stabilize_celery.delivery.install import engine_of

        try:
            engine = engine_of(worker.app)
            engine.store.check_schema()
            if engine.settings.tracing:
                # Told now, and not by the first task.
                Tracer(engine.settings)
        except StabilizeError as error:
            logger.critical("stabilize_celery cannot start: %s", error)
            raise SystemExit(1) from None
        if self._wanted:
            publisher = engine.publisher
            assert isinstance(publisher, CeleryPublisher)
            self._relay = worker.stabilize_relay = Relay(worker.app, engine.store, engine.settings, publisher)
            self._relay.start()

    def stop(self, worker: Any) -> None:
        if self._relay is not None:
            self._relay.stop()

    terminate = stop

    def info(self, worker: Any) -> dict[str, Any]:
        """For ``celery inspect stats``."""
        return {} if self._relay is None else {"stabilize-relay": self._relay.info()}
