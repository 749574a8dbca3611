"""Every example runs, as its docstring says, and prints what it promises."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.processes import run_successfully

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
REPORT = "\n=== Data Report ===\nTotal: 420\nAverage: 42.00\nMin: 4\nMax: 95\n"


def run(*command: str, cwd: Path = ROOT, **env: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8", **env}
    done = run_successfully(command, cwd=cwd, env=environment)
    assert done.stderr == ""
    return done.stdout


def run_example(name: str, **env: str) -> str:
    return run(sys.executable, str(EXAMPLES / name), **env)


def test_no_example_is_forgotten():
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == [
        "approval.py",
        "celery_app.py",
        "data_pipeline.py",
        "durable_canvas.py",
        "fastapi_shop.py",
        "flask_shop.py",
        "map_files.py",
        "order_saga.py",
        "parallel_branches.py",
    ]


def test_the_map_counts_every_file_in_order(tmp_path):
    for name, lines in (("b", 2), ("a", 1), ("c", 0)):
        (tmp_path / name).write_text("x\n" * lines)
    out = run(sys.executable, str(EXAMPLES / "map_files.py"), str(tmp_path))
    assert out.endswith("     1 a\n     2 b\n     0 c\n     3 lines in all\n")


@pytest.mark.parametrize(
    ("answer", "told"), [("yes", "shop-1.4.whl, approved by kim"), ("no", "Approval rejected")]
)
def test_the_approval_waits_for_its_answer(answer, told):
    command = [sys.executable, str(EXAMPLES / "approval.py"), answer]
    done = run_successfully(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout == f"waiting for an answer\n{told}\n"
    # A failed stage is logged; who configures no logging finds it on stderr.
    assert ("stage approve of workflow release" in done.stderr) is (answer == "no")


def test_the_data_pipeline_shows_its_stages_and_its_report():
    out = run_example("data_pipeline.py")
    assert re.findall(r"(generate|process|report) +SUCCEEDED", out) == ["generate", "process", "report"]
    assert REPORT in out


def test_the_join_of_the_parallel_branches_combines_what_they_found():
    out = run_example("parallel_branches.py")
    assert out.endswith("\navg: 3.0\nevens: [4, 2]\nsorted: [1, 2, 3, 4, 5]\nsum: 15\n")
    assert re.search(r"combine +SUCCEEDED .*after filter, sort, stats", out)


@pytest.mark.parametrize("name", ["data_pipeline.py", "parallel_branches.py"])
def test_an_embedded_example_is_a_workflow_file(name):
    command = Path(sys.executable).with_name("stabilize-celery")
    assert "SUCCEEDED" in run(str(command), "run", str(EXAMPLES / name))


@pytest.fixture
def shop(broker_url, empty_postgres_url):
    return {"CELERY_BROKER_URL": broker_url, "STABILIZE_DATABASE_URL": empty_postgres_url}


def test_the_celery_app_charges_and_ships(shop, start_worker):
    path = os.pathsep.join([str(EXAMPLES), str(ROOT)])
    celery = [sys.executable, "-m", "celery", "-A", "celery_app"]
    run(*celery, "stabilize", "migrate", cwd=EXAMPLES, **shop)
    start_worker("celery_app:app", env={**os.environ, **shop, "PYTHONPATH": path})
    first = run_example("celery_app.py", **shop)
    assert first.endswith(" parcel for ch_42\n")
    # The same order is not charged twice.
    assert run_example("celery_app.py", **shop) == first
