"""An app whose own task class does something around every task, as Flask's and Django's do."""

from __future__ import annotations

import json
import os
from contextvars import ContextVar
from typing import Any

from celery import Celery, Task

from stabilize_celery import StageExecution, TaskResult
from stabilize_celery import Task as StageTask
from tests.conformance.deployment import BROKER, DATABASE, INLINE, MORE, make_app

inside: ContextVar[str] = ContextVar("inside", default="nothing")


class ContextTask(Task):
    """Tells what runs inside it which task that is."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = inside.set(self.name)
        try:
            return self.run(*args, **kwargs)
        finally:
            inside.reset(token)


app: Celery
app, stabilize = make_app(
    os.environ[BROKER],
    os.environ[DATABASE],
    inline=os.environ[INLINE] == "1",
    task_cls=ContextTask,
    **json.loads(os.environ.get(MORE, "{}")),
)


@stabilize.task("whoami")
def whoami(stage: StageExecution) -> dict[str, str]:
    return {"inside": inside.get()}


@stabilize.task("hooked-whoami")
class WhoAmI(StageTask):
    def execute(self, stage: StageExecution) -> TaskResult:
        return TaskResult.success(outputs={"inside": inside.get()})
