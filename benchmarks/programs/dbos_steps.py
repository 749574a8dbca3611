"""Runs shapes on DBOS; started by the benchmark in an environment that has it: python dbos_steps.py DATABASE_URL.

A stage of a chain is a step.  Stages that run side by side are workflows of one step, started one after the other and
waited for, which is the way DBOS offers.  Everything happens in this one process; there is no broker.
"""

from __future__ import annotations

import json
import sys
import time

from dbos import DBOS


@DBOS.step()
def step(size: int) -> str:
    return "x" * size


@DBOS.workflow()
def chain(length: int, size: int) -> None:
    for _ in range(length):
        step(size)


@DBOS.workflow()
def fan(width: int, has_root: bool, has_join: bool) -> None:
    if has_root:
        step(0)
    arms = [DBOS.start_workflow(chain, 1, 0) for _ in range(width)]
    for arm in arms:
        arm.get_result(polling_interval_sec=0.02)
    if has_join:
        step(0)


def run(shape: str, size: int) -> None:
    if shape in ("chain", "payload"):
        chain(size, 1024 if shape == "payload" else 0)
    elif shape == "fan":
        fan(size - 2, True, True)
    elif shape == "fan-in":
        fan(size - 1, False, True)
    elif shape == "wide":
        fan(size, False, False)
    else:
        for handle in [DBOS.start_workflow(chain, 3, 0) for _ in range(size // 3)]:
            handle.get_result(polling_interval_sec=0.02)


def main() -> None:
    DBOS(config={"name": "bench", "system_database_url": sys.argv[1], "log_level": "ERROR"})
    DBOS.launch()
    print("ready", flush=True)
    for line in sys.stdin:
        shape, size = json.loads(line)
        begun = time.perf_counter()
        run(shape, size)
        print(json.dumps(time.perf_counter() - begun), flush=True)
    DBOS.destroy()


if __name__ == "__main__":
    main()
