"""The doctor: is this deployment fit to run workflows, and what is to be changed if not.

``examine`` asks the broker, the database, the workers and the configuration; it changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stabilize_celery.persistence.finding import Finding, Level

if TYPE_CHECKING:
    from stabilize_celery.engine import Stabilize

__all__ = ["Finding", "Level", "examine"]


def examine(engine: Stabilize, timeout: float = 2.0) -> list[Finding]:
    """Every check, in the order in which a person would look.

    Args:
        engine: on its Celery app, or embedded; of the latter only the database is looked at.
        timeout: seconds that the broker has to accept a connection, and workers have to answer.

    Raises:
        ConfigurationError: no database is configured, or a setting cannot be read.
    """
    from stabilize_celery.persistence.checkup import examine_database

    found = examine_database(engine.store, engine.settings)
    if engine.app is None:
        return found
    from stabilize_celery.delivery.doctor.broker import examine_broker
    from stabilize_celery.delivery.doctor.configuration import examine_configuration
    from stabilize_celery.delivery.doctor.workers import examine_workers

    if not engine.store.database.is_postgresql:
        found.append(
            Finding(
                "database",
                Level.ERROR,
                "SQLite with Celery workers",
                "set stabilize_database_url to a PostgreSQL database",
                "SQLite is for one process: workers of several would wait for each other, and the relay of one "
                "does not hear of the others.",
            )
        )
    is_reachable = examine_broker(engine.app, engine.settings, timeout, found)
    examine_configuration(engine.app, engine.settings, found)
    if is_reachable:
        examine_workers(engine.app, engine.settings, engine.store.database, timeout, found)
    return found
