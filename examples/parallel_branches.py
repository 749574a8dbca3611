"""Three branches that run at once, and a join that waits for all of them and reads what each has found.

    python examples/parallel_branches.py

Python tasks all put their result under the key `result`, so of three upstream stages a join would see only the
last one; `output_reducers` collects them.
"""

from __future__ import annotations

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.cli.tree import LiveTree

NUMBERS = "INPUT['result']['numbers']"
BRANCHES = {
    "stats": f"RESULT = {{'sum': sum({NUMBERS}), 'avg': sum({NUMBERS}) / len({NUMBERS})}}",
    "sort": f"RESULT = {{'sorted': sorted({NUMBERS})}}",
    "filter": f"RESULT = {{'evens': [n for n in {NUMBERS} if n % 2 == 0]}}",
}
COMBINE = "RESULT = {key: value for found in INPUT['result'] for key, value in found.items()}"


def workflow() -> Workflow:
    generate = StageExecution.single(
        "generate", "python", {"script": "RESULT = {'numbers': [5, 3, 1, 4, 2]}"}
    )
    branches = [
        StageExecution.single(ref_id, "python", {"script": script}, requires={"generate"})
        for ref_id, script in BRANCHES.items()
    ]
    combine = StageExecution.single(
        "combine",
        "python",
        {"script": COMBINE},
        requires=set(BRANCHES),
        output_reducers={"result": "collect"},
    )
    return Workflow.create("data-pipeline", "Parallel branches", [generate, *branches, combine])


def main() -> None:
    with Stabilize.embedded() as stabilize:
        run = stabilize.start(workflow())
        with LiveTree(run):
            stabilize.processor.drain(timeout=60)
        print()
        for key, value in sorted(run.get(timeout=0)["result"].items()):
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()
