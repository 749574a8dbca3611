"""Runs shapes on the public package `stabilize`; started by the benchmark in an environment that has it.

python reference.py DATABASE_URL.  It works synchronously, in this one process, which its documentation shows first and which
is its faster way for chains.
"""

from __future__ import annotations

import json
import logging
import sys
import time

from stabilize import (
    Orchestrator,
    QueueProcessor,
    StageExecution,
    Task,
    TaskExecution,
    TaskRegistry,
    TaskResult,
    Workflow,
)
from stabilize.persistence.postgres import PostgresWorkflowStore
from stabilize.queue import PostgresQueue


class Bench(Task):
    def execute(self, stage: StageExecution) -> TaskResult:
        return TaskResult.success(outputs={"value": "x" * stage.context["bytes"]})


def made(graph: list[list[int]], size: int) -> Workflow:
    stages = [
        StageExecution(
            ref_id=f"s{number}",
            type="bench",
            name=f"s{number}",
            context={"bytes": size},
            requisite_stage_ref_ids={f"s{each}" for each in before},
            tasks=[
                TaskExecution.create(
                    name="bench", implementing_class="bench", stage_start=True, stage_end=True
                )
            ],
        )
        for number, before in enumerate(graph)
    ]
    return Workflow.create(application="bench", name="bench", stages=stages)


def main() -> None:
    url = sys.argv[1]
    logging.disable(logging.WARNING)
    store, queue = PostgresWorkflowStore(url), PostgresQueue(url)
    registry = TaskRegistry()
    registry.register("bench", Bench)
    processor = QueueProcessor(queue, store=store, task_registry=registry)
    orchestrator = Orchestrator(queue, store=store)
    print("ready", flush=True)
    for line in sys.stdin:
        graph, count, size = json.loads(line)
        workflows = [made(graph, size) for _ in range(count)]
        begun = time.perf_counter()
        for workflow in workflows:
            store.store(workflow)
            orchestrator.start(workflow)
        processor.process_all(timeout=1800)
        took = time.perf_counter() - begun
        status = store.retrieve(workflows[-1].id).status
        print(json.dumps(took if status.name == "SUCCEEDED" else str(status)), flush=True)


if __name__ == "__main__":
    main()
