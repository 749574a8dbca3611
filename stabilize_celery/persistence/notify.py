"""Waking the relays of all workers: PostgreSQL's NOTIFY, or an event within one process."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress

import psycopg
from sqlalchemy import text

from stabilize_celery.persistence.database import Database

logger = logging.getLogger(__name__)
CHANNEL = "stabilize_due"


class Bell:
    """Waits for a notice that a message falls due soon.

    It only saves time: who misses it looks at the table a little later.  That is why a connection pooler that does not
    pass NOTIFY on does no harm.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._here = threading.Event()
        self._listener: psycopg.Connection[tuple[object, ...]] | None = None

    def ring_here(self) -> None:
        """Wake the threads that wait in this process."""
        self._here.set()

    def ring(self) -> None:
        """Wake every relay on this database."""
        self._here.set()
        if self._database.is_postgresql:
            with suppress(Exception), self._database.autocommit() as connection:
                connection.execute(text(f"NOTIFY {CHANNEL}"))

    def wait(self, timeout: float) -> None:
        """Wait for a notice, ``timeout`` seconds at most."""
        if self._here.is_set() or not self._database.is_postgresql:
            self._here.wait(timeout)
        else:
            self._listen(timeout)
        self._here.clear()

    def _listen(self, timeout: float) -> None:
        try:
            if self._listener is None:
                url = self._database.listen_url.set(drivername="postgresql").render_as_string(
                    hide_password=False
                )
                self._listener = psycopg.connect(url, autocommit=True, application_name="stabilize-relay")
                self._listener.execute(f"LISTEN {CHANNEL}")
            for _ in self._listener.notifies(timeout=timeout, stop_after=1):
                pass
        except (psycopg.Error, OSError) as error:
            logger.debug("the relay cannot listen: %s", error)
            self.close()
            self._here.wait(timeout)

    def close(self) -> None:
        """Close the listening connection."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(Exception):
                listener.close()
