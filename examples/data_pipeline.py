"""Three stages that hand data to each other, run in this process without a broker or a database server.

python examples/data_pipeline.py
stabilize-celery run examples/data_pipeline.py
"""

from __future__ import annotations

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.cli.tree import LiveTree

GENERATE = """
import random
random.seed(42)
data = [random.randint(1, 100) for _ in range(10)]
RESULT = {"numbers": data, "count": len(data)}
print(f"Generated {len(data)} numbers")
"""

PROCESS = """
numbers = INPUT["result"]["numbers"]
total = sum(numbers)
average = total / len(numbers)
RESULT = {"total": total, "average": average, "min": min(numbers), "max": max(numbers)}
print(f"Processed: sum={total}, avg={average:.2f}")
"""

REPORT = """
stats = INPUT["result"]
report = f'''
=== Data Report ===
Total: {stats["total"]}
Average: {stats["average"]:.2f}
Min: {stats["min"]}
Max: {stats["max"]}
'''
RESULT = {"report": report}
"""


def workflow() -> Workflow:
    return Workflow.create(
        application="data-pipeline",
        name="Three-Stage Pipeline",
        stages=[
            StageExecution.single("generate", "python", {"script": GENERATE}),
            StageExecution.single("process", "python", {"script": PROCESS}, requires={"generate"}),
            StageExecution.single("report", "python", {"script": REPORT}, requires={"process"}),
        ],
    )


def main() -> None:
    with Stabilize.embedded() as stabilize:
        run = stabilize.start(workflow())
        with LiveTree(run):
            stabilize.processor.drain(timeout=60)
        print(run.get(timeout=0)["result"]["report"])


if __name__ == "__main__":
    main()
