"""Django in this process, on databases that change with each test."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import pytest
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from sqlalchemy.engine import make_url

from stabilize_celery import Stabilize, observe
from stabilize_celery import settings as engine_settings
from stabilize_celery.persistence import transactions
from tests.conformance import behaviours
from tests.conformance.deployment import SETTINGS
from tests.services import PostgresService

POSTGRESQL = {"ENGINE": "django.db.backends.postgresql", "NAME": "none"}


def _set_up() -> None:
    """Once per process, before any model is imported.

    DJANGO_SETTINGS_MODULE is taken away: it would make every Celery app one of Django.
    """
    os.environ.pop("DJANGO_SETTINGS_MODULE", None)
    settings.configure(
        SECRET_KEY="tests",
        USE_TZ=True,
        TIME_ZONE="Asia/Kathmandu",
        DATABASES={
            "default": dict(POSTGRESQL),
            "other": dict(POSTGRESQL),
            "lite": {"ENGINE": "django.db.backends.sqlite3", "NAME": "none"},
        },
        INSTALLED_APPS=[
            "django.contrib.admin",
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.messages",
            "django.contrib.sessions",
            "stabilize_celery.contrib.django",
            "tests.contrib.django.app",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
        ],
        TEMPLATES=[
            {
                "BACKEND": "django.template.backends.django.DjangoTemplates",
                "APP_DIRS": True,
                "OPTIONS": {
                    "context_processors": [
                        "django.template.context_processors.request",
                        "django.contrib.auth.context_processors.auth",
                        "django.contrib.messages.context_processors.messages",
                    ]
                },
            }
        ],
        ROOT_URLCONF="tests.contrib.django.app.urls",
        ALLOWED_HOSTS=["*"],
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        STATIC_URL="static/",
    )
    django.setup()
    _forget()


def _forget() -> None:
    """Let other tests of this process know nothing of Django."""
    engine_settings._sources.clear()
    transactions._adapters.clear()
    transactions._finders.clear()
    observe.everywhere.clear()


_set_up()


@pytest.fixture
def ready() -> Iterator[None]:
    """The Django app is installed in this process."""
    apps.get_app_config("stabilize").ready()
    yield
    _forget()


def point(alias: str, url: str) -> None:
    """Let an alias lead to another database."""
    place = make_url(url)
    connections[alias].close()
    connections[alias].settings_dict.update(
        NAME=place.database,
        USER=place.username or "",
        PASSWORD=place.password or "",
        HOST=place.host or "",
        PORT=str(place.port or ""),
    )


@pytest.fixture(scope="session")
def django_template(postgres_service: PostgresService) -> Iterator[str]:
    """The name of a database that ``manage.py migrate`` made."""
    name = f"django_template_{uuid.uuid4().hex[:8]}"
    point("default", postgres_service.create_database(name))
    call_command("migrate", run_syncdb=True, verbosity=0)
    connections["default"].close()
    yield name
    postgres_service.drop_database(name)


@pytest.fixture
def django_url(ready: None, postgres_service: PostgresService, django_template: str) -> Iterator[str]:
    """The database ``default``: a new one, with the tables of the engine, Django and the app."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    url = postgres_service.create_database(name, template=django_template)
    point("default", url)
    yield url
    connections.close_all()
    postgres_service.drop_database(name)


@pytest.fixture
def stabilize(django_url: str) -> Iterator[Stabilize]:
    """An engine on Django's database, embedded: what is sent stays visible until it is handled."""
    with Stabilize.embedded(django_url, create_tables=False, **SETTINGS) as engine:
        behaviours.register(engine)
        yield engine


@pytest.fixture
def lite(ready: None, tmp_path: Path) -> Iterator[Any]:
    """The database ``lite``: a SQLite file with all tables."""
    connections["lite"].settings_dict["NAME"] = tmp_path / "lite.db"
    call_command("migrate", run_syncdb=True, verbosity=0, database="lite")
    yield connections["lite"]
    connections["lite"].close()


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """Django warns of what it is about to change; that is for its next release."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PendingDeprecationWarning, module=r"django\.")
        yield


@pytest.fixture
def queries_of_django() -> Any:
    """What Django asks of the database within the block."""
    from django.test.utils import CaptureQueriesContext

    return CaptureQueriesContext(connections["default"])
