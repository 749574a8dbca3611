"""The same against a real engine, where one answers and has, or can get, a small image."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest

from stabilize_celery.contrib.docker import DockerMissingError, DockerTask, connect
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.tasks.result import TaskResult
from tests.unit.tasks.helpers import stage_of

# The SDK leaves its socket open when nobody answers.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

IMAGE = os.environ.get("STABILIZE_TEST_IMAGE", "busybox:latest")


@pytest.fixture(scope="module", autouse=True)
def engine() -> Any:
    try:
        client = connect(timeout=120)
    except DockerMissingError:
        gc.collect()
        pytest.skip("no Docker engine answers")
    try:
        client.images.get(IMAGE)
    except Exception:
        pytest.skip(f"the engine does not have {IMAGE}")
    return client


def run(command: list[str], **options: Any) -> TaskResult:
    return DockerTask().execute(stage_of({"action": "run", "image": IMAGE, "command": command, **options}))


def test_run():
    result = run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert result.status is WorkflowStatus.TERMINAL
    assert (result.context["stdout"], result.context["stderr"], result.context["exit_code"]) == (
        "out",
        "err",
        3,
    )


def test_timeout(engine: Any):
    result = run(["sh", "-c", "echo before; sleep 1000"], timeout=5, name="stabilize-test-timeout")
    assert result.context["error"] == "Docker run timed out after 5s"
    assert result.context["stdout"] == "before"
    assert not engine.containers.list(all=True, filters={"name": "stabilize-test-timeout"})
