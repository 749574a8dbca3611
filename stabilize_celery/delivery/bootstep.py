"""The worker bootstep: the schema is checked, then the relay runs in a thread of the worker's main process."""

from __future__ import annotations

import itertools
import logging
import time
from typing import Any

from celery import bootsteps
from celery.concurrency.prefork import TaskPool as PreforkPool
from celery.worker.state import maybe_shutdown

from stabilize_celery.delivery.relay import Relay
from stabilize_celery.delivery.stopping import BodyStop, pool_leases
from stabilize_celery.errors import StabilizeError
from stabilize_celery.persistence.database import is_unavailable
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.worker.pool_leases import PoolLeases

logger = logging.getLogger(__name__)
#: In seconds, as Celery's for its broker: 2, 4, 6 ...
_LONGEST_PAUSE = 32.0


def _wait_for(store: WorkflowStore) -> None:
    """Check the tables, once the database answers: as Celery waits for its broker, and to be stopped as well.

    Raises:
        SchemaVersionError: they are missing, or of another version.
        WorkerShutdown, WorkerTerminate: the worker was told to stop.
    """
    for failures in itertools.count(1):
        try:
            store.check_schema()
            return
        except StabilizeError as error:
            if not is_unavailable(error):
                raise
            pause = min(2.0 * failures, _LONGEST_PAUSE)
            logger.error("stabilize_celery waits for its database, and asks again in %g s: %s", pause, error)
        end = time.monotonic() + pause
        while time.monotonic() < end:
            maybe_shutdown()
            time.sleep(0.1)


class RelayStep(bootsteps.StartStopStep):
    """Starts after the pool, so that no child inherits the relay's connections."""

    requires = {"celery.worker.components:Pool"}

    def __init__(self, worker: Any, stabilize_relay: bool = True, **kwargs: Any) -> None:
        self._wanted = stabilize_relay
        self._relay: Relay | None = None
        self._bodies: BodyStop | None = None
        self._leases: PoolLeases | None = None
        super().__init__(worker, **kwargs)

    def start(self, worker: Any) -> None:
        from stabilize_celery.delivery.install import engine_of

        try:
            engine = engine_of(worker.app)
            _wait_for(engine.store)
            # What they cannot do is an error of the worker, and not of its first task.
            engine.attempt_hooks()
        except StabilizeError as error:
            logger.critical("stabilize_celery cannot start: %s", error)
            raise SystemExit(1) from None
        if isinstance(worker.pool, PreforkPool):
            self._leases = pool_leases(engine)
            self._leases.start()
        else:
            self._bodies = BodyStop(engine, worker)
        if self._wanted:
            self._relay = worker.stabilize_relay = Relay(worker.app, engine.store, engine.settings)
            self._relay.start()

    def stop(self, worker: Any) -> None:
        if self._bodies is not None:
            self._bodies.stop_if_cold()
        if self._relay is not None:
            self._relay.stop()

    terminate = stop

    def info(self, worker: Any) -> dict[str, Any]:
        """For ``celery inspect stats``."""
        return {} if self._relay is None else {"stabilize-relay": self._relay.info()}
