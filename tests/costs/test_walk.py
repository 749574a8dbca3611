"""How far a message walks: calls, files and changes of file from the entrypoint to the publish of one chained task.

The numbers of `config/house.json` may only fall, as all numbers there; the targets are 450 calls, 40 files and 220
changes of file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import stabilize_celery
from stabilize_celery import Stabilize, StageExecution, Workflow
from tests.services import ROOT

PACKAGE = str(Path(stabilize_celery.__file__).parent)


class Walk:
    """Counts calls of the package's own functions in this thread."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.names: set[str] = set()

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        file = frame.f_code.co_filename
        if event == "call" and file.startswith(PACKAGE):
            self.calls.append(file)
            self.names.add(f"{file.removeprefix(PACKAGE)}:{frame.f_code.co_qualname}")

    @property
    def numbers(self) -> dict[str, int]:
        switches = sum(one != other for one, other in zip(self.calls, self.calls[1:], strict=False))
        return {
            "calls of a task": len(self.calls),
            "files a task enters": len(set(self.calls)),
            "changes of file of a task": switches,
        }


def test_one_chained_task_walks_no_further_than_before(postgres_url: str) -> None:
    with Stabilize.embedded(postgres_url, concurrency=1) as engine:
        engine.task("work")(lambda: {"value": 1})
        refs = [f"s{number}" for number in range(8)]
        stages = [
            StageExecution.single(ref, "work", requires=refs[number - 1 : number] if number else ())
            for number, ref in enumerate(refs)
        ]
        engine.start(Workflow.create("walk", "chain", stages))
        assert engine.processor.step()
        # Statements are built, and prepared by the driver, when they are first used.
        for _ in range(5):
            assert engine.processor.step()
        walk = Walk()
        sys.setprofile(walk)
        try:
            assert engine.processor.step()
        finally:
            sys.setprofile(None)
    known = json.loads((ROOT / "config/house.json").read_text())
    numbers = walk.numbers
    worse = {name: value for name, value in numbers.items() if value > known[name]}
    assert not worse, (worse, sorted(walk.names))
