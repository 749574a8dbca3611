"""The example project with a real worker: what is committed runs, what is rolled back never was."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from tests.processes import run_successfully
from tests.worker import WorkerProcess

ROOT = Path(__file__).resolve().parents[3]
PROJECT = ROOT / "examples" / "django_shop"


@pytest.fixture
def environment(empty_postgres_url: str, broker_url: str) -> dict[str, str]:
    place = make_url(empty_postgres_url)
    return {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "project.settings",
        "POSTGRES_DB": place.database or "",
        "POSTGRES_USER": place.username or "",
        "POSTGRES_PASSWORD": place.password or "",
        "POSTGRES_HOST": place.host or "",
        "POSTGRES_PORT": str(place.port),
        "CELERY_BROKER_URL": broker_url,
        "PYTHONPATH": os.pathsep.join([str(PROJECT), str(ROOT)]),
        # What a project does is not measured by the strictness of these tests.
        "PYTHONWARNINGS": "default",
    }


def run(environment: dict[str, str], *command: str) -> str:
    done = run_successfully([sys.executable, *command], cwd=PROJECT, env=environment)
    return done.stdout + done.stderr


def test_orders_and_their_workflows_exist_together_or_not_at_all(
    environment: dict[str, str], start_worker: Callable[..., WorkerProcess]
) -> None:
    run(environment, "manage.py", "migrate", "--verbosity", "0")
    worker = start_worker("project", env=environment, cwd=PROJECT, concurrency=2)

    told = json.loads(run(environment, str(Path(__file__).with_name("story.py"))).splitlines()[0])

    charge_id = told["order"].pop("charge_id")
    assert charge_id.startswith("ch_")
    assert told == {
        "sold": 201,
        "refused": [409, "there are no 2 lamp left"],
        "order": {"order": "2 x lamp", "status": "SUCCEEDED", "parcel": "parcel with 2 x lamp"},
        "orders": 1,
        "workflows": [True],
        "left": 1,
        "done": True,
        "linked": True,
        "lease": 10.0,
        "messages": 0,
    }
    assert "Traceback" not in worker.output
    run(environment, "manage.py", "makemigrations", "--check", "--verbosity", "0")


def test_the_examples_own_tests_pass(environment: dict[str, str]) -> None:
    """They show how to test such a project, and need no broker."""
    environment = {**environment, "CELERY_BROKER_URL": "amqp://nobody@127.0.0.1:1//"}
    assert "OK" in run(environment, "manage.py", "test", "--verbosity", "0")
