"""A release that waits for a person: nothing runs, polls or is held in memory until somebody answers.

python examples/approval.py yes
python examples/approval.py no
"""

from __future__ import annotations

import sys
from typing import Any

from stabilize_celery import Stabilize, StageExecution, Workflow, WorkflowFailedError


def build(version: str) -> dict[str, Any]:
    return {"artifact": f"shop-{version}.whl"}


def publish(artifact: str, approved_by: str) -> dict[str, Any]:
    return {"published": f"{artifact}, approved by {approved_by}"}


tasks = {"build": build, "publish": publish}


def workflow() -> Workflow:
    return Workflow.create(
        application="shop",
        name="release",
        context={"channel": "stable"},
        stages=[
            StageExecution.single("build", "build", {"version": "1.4"}),
            # Two days to answer, then it fails.
            StageExecution.single("approve", "approval", {"timeout": 2 * 24 * 3600}, requires={"build"}),
            StageExecution.single("publish", "publish", requires={"approve"}),
        ],
    )


def main(answer: str) -> None:
    with Stabilize.embedded() as stabilize:
        for name, function in tasks.items():
            stabilize.task(name)(function)
        run = stabilize.start(workflow())
        waits = lambda: run.workflow().stages[1].status.name == "SUSPENDED"  # noqa: E731
        stabilize.processor.drain(timeout=60, until=waits)
        print("waiting for an answer")
        # Anybody who knows the id may answer, from any process: stabilize.get(run.id).approve(...)
        if answer == "yes":
            run.approve("approve", user="kim", data={"ticket": 7})
        else:
            run.reject("approve", user="kim", data={"because": "it is Friday"})
        stabilize.processor.drain(timeout=60, until=run.ready)
        try:
            print(run.get(timeout=0)["published"])
        except WorkflowFailedError as error:
            print(error.errors["approve"])


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "yes")
