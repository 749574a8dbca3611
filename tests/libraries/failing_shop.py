"""The app of workers whose stages fail in every way; what Celery's signal and Sentry hear is written to a file."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import sentry_sdk
from celery import Celery, Task, signals
from celery.exceptions import Ignore, Reject
from sentry_sdk.integrations.celery import CeleryIntegration
from sentry_sdk.transport import Transport

from stabilize_celery import Stabilize, TaskResult, TransientError
from stabilize_celery.tasks.run import current_run

_lock = threading.Lock()


def note(kind: str, **told: Any) -> None:
    """Append what was heard."""
    with _lock, Path(os.environ["HEARD"]).open("a") as file:
        file.write(json.dumps({"kind": kind, **told}, default=repr) + "\n")


def called(stage: str) -> None:
    """Append that a body runs."""
    run = current_run()
    note("call", stage=stage, workflow=None if run is None else run.workflow_id)


class ToFile(Transport):
    """Events of Sentry's, as they would be sent."""

    def capture_envelope(self, envelope: Any) -> None:
        event = envelope.get_event()
        if event is not None:
            note("sentry", event=event)


if "HEARD" in os.environ:
    sentry_sdk.init(dsn="http://key@127.0.0.1:1/1", transport=ToFile(), integrations=[CeleryIntegration()])


class Base(Task):
    """A task class of the app's own that repeats whatever fails."""

    autoretry_for = (Exception,)
    retry_kwargs = {"max_retries": 5, "countdown": 0}


class Shop(Celery):
    """An app as many have it."""

    task_cls = Base


app = Shop("shop", broker=os.environ.get("BROKER", "memory://"), set_as_current="BROKER" in os.environ)
app.conf.update(json.loads(os.environ.get("CONF", "{}")), stabilize_database_url=os.environ.get("DATABASE"))
stabilize = Stabilize(app)


@signals.task_failure.connect
def _failed(sender: Any = None, exception: Any = None, traceback: Any = None, **_: Any) -> None:
    scope = exception.stabilize_scope
    where = {"workflow_id": scope.workflow_id, "stage": scope.stage, "attempt": scope.attempt}
    note("signal", sender=sender.name, type=type(exception).__name__, text=str(exception), **where)


class DeclinedError(Exception):
    """Cannot be pickled, as many exceptions."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")


@stabilize.task("lookup")
def lookup() -> None:
    called("lookup")
    {"a": 1}["b"]


@stabilize.task("flaky")
def flaky() -> None:
    run = current_run()
    if run is not None and run.attempt == 1:
        raise TransientError("later", retry_after=0.05)


@stabilize.task("returned")
def returned() -> TaskResult:
    return TaskResult.terminal("nothing in stock")


@stabilize.task("leaking")
def leaking(password: str) -> None:
    raise RuntimeError(f"the server said {password}")


@stabilize.task("unpicklable")
def unpicklable() -> None:
    raise DeclinedError(402, "no money")


@stabilize.task("ignoring")
def ignoring() -> None:
    raise Ignore("not mine")


@stabilize.task("rejecting")
def rejecting() -> None:
    raise Reject("not mine", requeue=True)


@stabilize.task("slow")
def slow() -> None:
    time.sleep(4)


@stabilize.task("huge")
def huge() -> None:
    raise ValueError("x" * 200_000)


@stabilize.task("fine")
def fine() -> None:
    called("fine")
