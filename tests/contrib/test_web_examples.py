"""The Flask and FastAPI examples with real workers: what is committed runs, what is rolled back never was."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_successfully
from tests.worker import WorkerProcess

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
Play = Callable[..., dict[str, Any]]


@pytest.fixture
def play(empty_postgres_url: str, broker_url: str, start_worker: Callable[..., WorkerProcess]) -> Play:
    """Migrate, start a worker of an example, and run its story."""

    def perform(name: str, story: str, **worker: Any) -> dict[str, Any]:
        environment = {
            **os.environ,
            "CELERY_BROKER_URL": broker_url,
            "STABILIZE_DATABASE_URL": empty_postgres_url,
            "PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(ROOT)]),
        }

        def run(*command: str) -> str:
            return run_successfully([sys.executable, *command], cwd=EXAMPLES, env=environment).stdout

        run("-m", "celery", "-A", name, "stabilize", "migrate")
        started = start_worker(name, env=environment, cwd=EXAMPLES, **worker)
        told: dict[str, Any] = json.loads(run(str(Path(__file__).with_name(story))))
        assert "Traceback" not in started.output
        return told

    return perform


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_flask(play: Play, pool: str) -> None:
    """The task reads the configuration of the Flask app and its session: it runs within the app's context."""
    assert play("flask_shop", "flask_story.py", pool=pool, concurrency=2) == {
        "sold": 201,
        "refused": 409,
        "order": {"item": "lamp", "charge_id": "ch_1 in NOK", "status": "SUCCEEDED"},
        "orders": 1,
        "workflows": 1,
        "messages": 0,
    }


EAGER = """
import json
from flask_shop import app, flask_app, stabilize
app.conf.task_always_eager = True
stabilize.create_tables()
client = flask_app.test_client()
sold = client.post("/orders", data={"item": "lamp"})
print(json.dumps([sold.status_code, client.get("/orders/1").json, len(stabilize.find())]))
"""


def test_flask_in_a_test_suite_that_runs_everything_in_place(tmp_path: Path) -> None:
    """The commit of the session runs the workflow, its tasks in the app's context: no worker, no broker."""
    environment = {
        **os.environ,
        # Nobody listens there.
        "CELERY_BROKER_URL": "amqp://127.0.0.1:1//",
        "STABILIZE_DATABASE_URL": f"sqlite:///{tmp_path / 'shop.db'}",
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(ROOT)]),
    }
    told = run_successfully([sys.executable, "-c", EAGER], cwd=EXAMPLES, env=environment).stdout
    assert json.loads(told) == [201, {"item": "lamp", "charge_id": "ch_1 in NOK", "status": "SUCCEEDED"}, 1]


def test_fastapi(play: Play) -> None:
    assert play("fastapi_shop", "fastapi_story.py", pool="threads", concurrency=2) == {
        "/orders": [201, 409],
        "/async-orders": [201, 409],
        "orders": 2,
        "workflows": 3,
        "missing": 404,
        "messages": 0,
    }
