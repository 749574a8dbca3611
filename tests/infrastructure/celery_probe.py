"""The smallest Celery app, to test the workers that other tests start."""

from __future__ import annotations

import os
import time

from celery import Celery

app = Celery("probe", broker=os.environ.get("PROBE_BROKER_URL", "memory://"), backend="rpc://")


@app.task
def add(a: int, b: int) -> int:
    return a + b


@app.task(acks_late=True, reject_on_worker_lost=True)
def sleep_once(seconds: float, mark: str) -> int:
    print(f"sleeping {mark}", flush=True)
    time.sleep(seconds)
    return os.getpid()
