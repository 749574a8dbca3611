"""Log records say for which workflow, stage and task they were written."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest
import structlog

from stabilize_celery import Stabilize, StageExecution, TaskResult, Workflow
from stabilize_celery.observe.logs import FIELDS, ContextFilter, add_context, add_filter, seldom

user_logger = logging.getLogger("shop")


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Iterator[list[logging.LogRecord]]:
    handler = Kept()
    root = logging.getLogger()
    root.addHandler(handler)
    before = root.level
    root.setLevel(logging.INFO)
    add_filter(root)
    yield handler.records
    root.setLevel(before)
    root.removeHandler(handler)


def run_one(body: object) -> Workflow:
    with Stabilize.embedded(concurrency=1) as stabilize:
        stabilize.registry.register("charge", body)
        return stabilize.run(
            Workflow.create("shop", "order", [StageExecution.single("pay", "charge")]), timeout=30
        ).workflow()


def test_user_code(kept: list[logging.LogRecord]) -> None:
    workflow = run_one(lambda stage: user_logger.info("charging"))
    (record,) = [record for record in kept if record.name == "shop"]
    stage = workflow.stages[0]
    said = {name: getattr(record, name) for name in FIELDS}
    assert len(said.pop("message_id")) == 26
    assert said == {
        "message_type": "RunTask",
        "workflow_id": workflow.id,
        "workflow": "order",
        "stage_id": stage.id,
        "stage": "pay",
        "task_id": stage.tasks[0].id,
        "task": "charge",
        "attempt": 1,
    }


def test_the_engine_itself(kept: list[logging.LogRecord]) -> None:
    def fail(stage: StageExecution) -> TaskResult:
        raise ValueError("no luck")

    workflow = run_one(fail)
    (record,) = [record for record in kept if "failed" in record.getMessage()]
    assert record.name == "stabilize_celery.worker.attempt"
    assert (record.workflow_id, record.stage) == (workflow.id, "pay")  # type: ignore[attr-defined]


def test_a_handler_that_fails(kept: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch) -> None:
    from stabilize_celery.handlers.complete_stage import CompleteStageHandler

    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(CompleteStageHandler, "handle", fail)
    with Stabilize.embedded(concurrency=1, control_max_attempts=1) as stabilize:
        run = stabilize.run(
            Workflow.create("shop", "order", [StageExecution.single("a", "noop")]), timeout=30
        )
        stage = run.workflow().stages[0]
    (record,) = [record for record in kept if record.getMessage().endswith("is a dead letter")]
    assert record.message_type == "CompleteStage"  # type: ignore[attr-defined]
    assert (record.workflow_id, record.stage_id) == (run.id, stage.id)  # type: ignore[attr-defined]


def test_elsewhere_they_are_empty_and_extra_is_kept(kept: list[logging.LogRecord]) -> None:
    user_logger.info("nothing", extra={"stage": "mine"})
    assert {name: getattr(kept[-1], name) for name in FIELDS} == dict.fromkeys(FIELDS, "") | {"stage": "mine"}


def test_the_filter_is_added_once() -> None:
    logger = logging.getLogger("stabilize.test.once")
    handler = Kept()
    logger.addHandler(handler)
    add_filter(logger)
    add_filter(logger)
    assert [type(each) for each in handler.filters] == [ContextFilter]


def test_structlog() -> None:
    with structlog.testing.capture_logs(processors=[add_context]) as events:
        workflow = run_one(lambda stage: structlog.get_logger().info("charging", amount=3))
        structlog.get_logger().info("outside")
    inside, outside = events
    assert (inside["workflow_id"], inside["stage"], inside["amount"]) == (workflow.id, "pay", 3)
    assert set(outside) == {"event", "log_level"}


def test_of_several_processes_one_says_it() -> None:
    """The children of a pool come to the same warning at the same moment."""
    answers = []
    for turn in range(20):
        pids: list[int] = []
        read, write = os.pipe()
        gate_read, gate_write = os.pipe()
        for _ in range(4):
            pid = os.fork()
            if pid == 0:
                os.read(gate_read, 1)
                os.write(write, b"1" if seldom(f"turn {turn} of {os.getppid()}") else b"0")
                os._exit(0)
            pids.append(pid)
        os.write(gate_write, b"goon")
        for pid in pids:
            os.waitpid(pid, 0)
        answers.append(sorted(os.read(read, 4).decode()))
        for each in (read, write, gate_read, gate_write):
            os.close(each)
    assert answers == [["0", "0", "0", "1"]] * 20
