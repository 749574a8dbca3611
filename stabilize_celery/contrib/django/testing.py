"""Django's test databases."""

from __future__ import annotations

from functools import wraps
from typing import Any

from django.core import mail
from django.db.backends.base.creation import BaseDatabaseCreation

from stabilize_celery.persistence.database import disconnect

_MARK = "stabilize_disconnects"


def is_test_run() -> bool:
    """Whether Django's test environment is set up, by its own runner or by pytest-django."""
    return hasattr(mail, "outbox")


def release_test_databases() -> None:
    """Let engines close their connections before Django drops a test database: nobody may use it then."""
    original: Any = BaseDatabaseCreation.destroy_test_db
    if getattr(original, _MARK, False):
        return

    @wraps(original)
    def destroy_test_db(creation: Any, *args: Any, **kwargs: Any) -> Any:
        disconnect()
        return original(creation, *args, **kwargs)

    setattr(destroy_test_db, _MARK, True)
    BaseDatabaseCreation.destroy_test_db = destroy_test_db
