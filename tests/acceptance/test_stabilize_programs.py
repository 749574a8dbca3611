"""Programs written for the documentation of the `stabilize` package run with another import."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = ("", ".models", ".handlers", ".tasks", ".dag", ".stages", ".context")

OWN_PARTS = """
from stabilize_celery import HTTPTask, Orchestrator, Queue, QueueProcessor, SqliteQueue, SqliteWorkflowStore, WorkflowStore
from stabilize_celery.context import StageContext
from stabilize_celery.dag import StageGraphBuilder
from stabilize_celery.errors import ConcurrencyError, TransientError, VerificationError, is_transient
from stabilize_celery.handlers import RunTaskHandler, StartWorkflowHandler
from stabilize_celery.models import StageExecution, SyntheticStageOwner, TaskExecution, Workflow, WorkflowStatus
from stabilize_celery.stages import StageDefinitionBuilder
from stabilize_celery.tasks import RetryableTask, SkippableTask, Task, TaskRegistry, TaskResult

class Check(Task):
    def execute(self, stage: StageExecution) -> TaskResult:
        seen = StageContext(stage)
        if seen["rows"] < 3:
            raise VerificationError("too few rows", details={"rows": seen["rows"]})
        return TaskResult.builder(WorkflowStatus.SUCCEEDED).outputs({"checked": seen["rows"]}).build()

class Load(Task):
    def execute(self, stage: StageExecution) -> TaskResult:
        return TaskResult.success(outputs={"rows": 3})

store: WorkflowStore = SqliteWorkflowStore("sqlite:///:memory:", create_tables=True)
queue: Queue = SqliteQueue("sqlite:///:memory:", table_name="queue_messages")
queue._create_table()
registry = TaskRegistry()
registry.register("load", Load)
registry.register("check", Check)
registry.register("http", HTTPTask)
processor = QueueProcessor(queue, store=store, task_registry=registry)
stages = [
    StageExecution(ref_id=ref, type=kind, name=ref, requisite_stage_ref_ids=before,
                   tasks=[TaskExecution.create(ref, kind, stage_start=True, stage_end=True)])
    for ref, kind, before in (("1", "load", set()), ("2", "check", {"1"}))
]
workflow = Workflow.create("docs", "names", stages)
store.store(workflow)
Orchestrator(queue).start(workflow)
processor.process_all(timeout=30)
done = store.retrieve(workflow.id)
assert done.status is WorkflowStatus.SUCCEEDED, done.status
assert done.stages[1].outputs == {"checked": 3}
assert is_transient(ConcurrencyError("again")) and not is_transient(VerificationError("no"))
assert VerificationError("no", details={"rows": 1}).details == {"rows": 1}
assert str(VerificationError("no", code=7)) == "no (code=7)"
"""


def test_a_program_with_its_own_store_queue_and_processor() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OWN_PARTS], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_has_its_home(package: str) -> None:
    module = import_module(f"stabilize_celery{package}")
    for name in module._HOMES:
        assert getattr(module, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        module.Nothing  # noqa: B018
