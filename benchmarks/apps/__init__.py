"""The Celery apps whose workers are measured; a worker is told by its environment what to connect to."""

from __future__ import annotations

from typing import Any

from celery.signals import worker_ready


@worker_ready.connect  # type: ignore[untyped-decorator]
def _say_so(sender: Any = None, **_: Any) -> None:
    # At the log level WARNING, where no task costs a line, Celery does not say it itself.
    print(f"{sender} is ready: celery@bench ready.", flush=True)
