"""A fan-out over a list that is known only at run time: count the lines of every file in a folder, three at a time.

python examples/map_files.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stabilize_celery import Stabilize, StageExecution, Workflow
from stabilize_celery.cli.tree import LiveTree


def list_files(folder: str) -> dict[str, Any]:
    return {"files": sorted(str(path) for path in Path(folder).iterdir() if path.is_file())}


def count_lines(item: str) -> dict[str, Any]:
    with Path(item).open("rb") as file:
        return {"file": Path(item).name, "lines": sum(1 for _ in file)}


def add_up(results: list[dict[str, Any]]) -> dict[str, Any]:
    return {"total": sum(each["lines"] for each in results)}


tasks = {"list_files": list_files, "count_lines": count_lines, "add_up": add_up}


def workflow(folder: str = str(Path(__file__).parent)) -> Workflow:
    return Workflow.create(
        application="files",
        name="count lines",
        stages=[
            StageExecution.single("list", "list_files", {"folder": folder}),
            StageExecution.single(
                "count",
                "map",
                {"items": "files", "stage": {"type": "count_lines", "name": "count"}, "limit": 3},
                requires={"list"},
            ),
            StageExecution.single("total", "add_up", requires={"count"}),
        ],
    )


def main() -> None:
    with Stabilize.embedded() as stabilize:
        for name, function in tasks.items():
            stabilize.task(name)(function)
        run = stabilize.start(workflow(*sys.argv[1:2]))
        with LiveTree(run):
            stabilize.processor.drain(timeout=60)
        outputs = run.get(timeout=0)
        for each in outputs["results"]:
            print(f"{each['lines']:6} {each['file']}")
        print(f"{outputs['total']:6} lines in all")


if __name__ == "__main__":
    main()
