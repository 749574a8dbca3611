"""What workers of these tests do: written into their folder, or container, beside the app that imports it."""

from __future__ import annotations

import time

from stabilize_celery import Stabilize, StageExecution, current_run

stabilize = Stabilize()


def say(text: str) -> None:
    """Into the worker's log, where the tests look."""
    print(text, flush=True)


@stabilize.task("charge")
def charge(order_id: int) -> dict[str, str]:
    say(f"charging order {order_id}")
    return {"charge_id": f"ch_{order_id}"}


@stabilize.task("ship")
def ship(charge_id: str) -> dict[str, str]:
    return {"parcel": f"parcel for {charge_id}"}


@stabilize.task("long")
def long(stage: StageExecution) -> dict[str, int]:
    """Takes for ever at its first attempt."""
    run = current_run()
    assert run is not None
    say(f"attempt {run.attempt} of {stage.ref_id} begins")
    if run.attempt == 1:
        time.sleep(600)
    return {"attempt": run.attempt}
