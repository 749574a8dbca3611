"""User work: what a task is, what it returns, how it is found, and the built-in ones."""

from __future__ import annotations

from stabilize_celery.lazy import lazily

#: Where the names are that programs written for the `stabilize` package import from here.
_HOMES = {
    "RetryableTask": "tasks.interface",
    "SkippableTask": "tasks.interface",
    "Task": "tasks.interface",
    "TaskRegistry": "tasks.registry",
    "TaskResult": "tasks.result",
}
__getattr__ = lazily(__name__, _HOMES)
