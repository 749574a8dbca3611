"""The examples over Celery tasks run on a real worker, as their docstrings say, and print what they promise."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.processes import run_successfully

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture
def deployed(broker_url, empty_postgres_url, start_worker):
    """Migrate, start the worker of an example, and give what runs the example itself."""

    def deploy(name):
        env = {
            **os.environ,
            "CELERY_BROKER_URL": broker_url,
            "STABILIZE_DATABASE_URL": empty_postgres_url,
            "PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(ROOT)]),
        }

        def run(*command):
            return run_successfully(command, cwd=EXAMPLES, env=env).stdout

        run(sys.executable, "-m", "celery", "-A", name, "stabilize", "migrate")
        start_worker(f"{name}:app", env=env, concurrency=2)
        return run(sys.executable, f"{name}.py")

    return deploy


def test_the_saga_ships_one_order_and_undoes_the_other(deployed):
    assert deployed("order_saga").splitlines() == [
        "parcel for the reservation of lamp, to Norway",
        "ValueError: nobody delivers to Atlantis (order_saga.py:52)",
        "refunded: ch_2",
        "released: reservation of lamp",
    ]


def test_the_canvas_gives_its_result_and_shows_its_stages(deployed):
    told = deployed("durable_canvas").splitlines()
    assert told[0] == "Ulysses: 6"
    assert [line.split()[0] for line in told[1:]] == ["1-pages", "2-words", "3-words", "4-add", "5-report"]
    assert all("SUCCEEDED" in line for line in told[1:])
