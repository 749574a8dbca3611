"""An app as people have it, whose tasks know nothing of workflows: what workers of these tests are started with."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

from celery import Celery, signals
from celery.exceptions import Ignore, Reject

from stabilize_celery import Stabilize

BROKER, DATABASE, LOG = "SHOP_BROKER_URL", "SHOP_DATABASE_URL", "SHOP_LOG"
#: A file whose absence makes the process die right after task ``shop.add`` has ended.
DIE_AFTER = "SHOP_DIE_AFTER"
#: Where results are kept, for comparisons with what Celery itself does.
RESULTS = "SHOP_RESULTS"
LEASE = "SHOP_LEASE"
SETTINGS = {
    "unknown_type_grace": 0.3,
    "retry_delay": 0.05,
    "retry_delay_max": 0.1,
    "heartbeat": 0.2,
    # Tests that kill workers want it short, those that count attempts long.
    "lease": float(os.environ.get(LEASE, "2")),
    "task_kill_grace": 0.3,
    "relay_interval": 0.2,
    "resend_delay": 1.0,
    "control_retry_delay": 0.05,
}


def make_app(broker: str, database: str, **conf: Any) -> tuple[Celery, Stabilize]:
    """The app with the engine on it; its tasks are registered on every app."""
    made = Celery("shop", broker=broker, set_as_current=False)
    made.conf.update({f"stabilize_{name}": value for name, value in SETTINGS.items()})
    made.conf.update(
        stabilize_database_url=database,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=True,
        task_routes={"shop.routed": {"queue": "special"}},
    )
    made.conf.update(conf)
    stabilize = Stabilize(made)
    register(made)
    return made, stabilize


def results_in(url: str | None) -> dict[str, Any]:
    """The configuration of an app that keeps results, to compare with Celery's own canvases."""
    if url is None:
        return {}
    return {"result_backend": f"db+{url}", "result_chord_retry_interval": 0.05}


def note(event: str, **details: Any) -> None:
    """Leave a line for the test to see."""
    with Path(os.environ[LOG]).open("a") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        log.write(json.dumps({"event": event, "pid": os.getpid(), **details}) + "\n")


def wait_for(gate: str, timeout: float = 60.0) -> None:
    """Go on when the test has made that file, or the one of this process."""
    end = time.monotonic() + timeout
    doors = [Path(gate), Path(f"{gate}.{os.getpid()}")]
    while not any(door.exists() for door in doors) and time.monotonic() < end:
        time.sleep(0.01)


class OwnBase:
    """What people put around their tasks."""

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        note("before_start", task_id=task_id)


def register(app: Celery) -> None:  # noqa: C901
    task = functools.partial(app.task, shared=False)

    @task(name="shop.add")
    def add(x: Any, y: Any = 0) -> Any:
        note("add", x=x, y=y)
        return x + y

    @task(name="shop.join")
    def join(*args: Any, **kwargs: Any) -> Any:
        """Shows what it was given: what the tests of canvases compare."""
        return [list(args), kwargs] if kwargs else list(args)

    @task(name="shop.errback")
    def errback(failed: str) -> None:
        note("errback", failed=failed)

    @task(name="shop.errback_told")
    def errback_told(request: Any, error: Any, traceback: Any) -> None:
        note("errback_told", task=request["task"], error=str(error), traceback=traceback)

    @task(name="shop.call")
    def call(*args: Any) -> None:
        note("call", args=args)

    @task(name="shop.charge", bind=True)
    def charge(self: Any, order_id: int, amount: int = 0) -> dict[str, Any]:
        note("charge", id=self.request.id, name=self.name, info=dict(self.request.delivery_info))
        return {"charge_id": f"ch_{order_id}", "amount": amount, "lines": [order_id]}

    @task(name="shop.routed", bind=True)
    def routed(self: Any) -> str:
        return str(self.request.delivery_info["routing_key"])

    @task(name="shop.read")
    def read(file: str) -> int:
        return int(Path(file).read_text())

    @task(name="shop.fail")
    def fail(what: str = "no money") -> None:
        raise ConnectionError(what)

    @task(name="shop.flaky", bind=True, autoretry_for=(OSError,), retry_backoff=False, max_retries=5,
              default_retry_delay=0)  # fmt: skip
    def flaky(self: Any, times: int) -> int:
        note("flaky", retries=self.request.retries)
        if self.request.retries < times:
            raise OSError(f"try {self.request.retries}")
        return int(self.request.retries)

    @task(name="shop.retry_by_hand", bind=True, acks_late=True, max_retries=2)
    def retry_by_hand(self: Any) -> None:
        note("retry_by_hand", retries=self.request.retries)
        try:
            raise KeyError("gone")
        except KeyError as error:
            raise self.retry(exc=error, countdown=0.01) from error

    class Legacy(app.Task):  # type: ignore[name-defined,misc]
        """As tasks were written before there were decorators."""

        name = "shop.legacy"

        def run(self, x: int, y: int = 1) -> dict[str, Any]:
            note("legacy", y=y)
            return {"sum": x + y}

    app.register_task(Legacy())

    @task(name="shop.object", ignore_result=True)
    def thing() -> Any:
        note("object")
        return object()

    @task(name="shop.ignored", ignore_result=True)
    def ignored() -> int:
        return 5

    @task(name="shop.object_wanted")
    def wanted() -> Any:
        return object()

    @task(name="shop.dates")
    def dates(day: Any) -> Any:
        return [day, type(day).__name__] if isinstance(day, date) else day

    @task(name="shop.today")
    def today() -> date:
        return date(2024, 2, 29)

    @task(name="shop.ignore")
    def ignore() -> None:
        raise Ignore("nothing to do")

    @task(name="shop.reject", acks_late=True)
    def reject() -> None:
        raise Reject("not for me", requeue=False)

    @task(name="shop.requeue", acks_late=True)
    def requeue(gate: str) -> str:
        note("requeue")
        if Path(gate).exists():
            return "second time"
        Path(gate).touch()
        raise Reject("later", requeue=True)

    @task(name="shop.replace", bind=True)
    def replace(self: Any) -> Any:
        return self.replace(add.s(1, 2))

    @task(name="shop.exit")
    def leave(code: int) -> None:
        sys.exit(code)

    for name, options in (("die", {}), ("die_late", {"acks_late": True, "reject_on_worker_lost": True})):

        @task(name=f"shop.{name}", **options)
        def die(gate: str) -> str:
            note("die")
            if not Path(gate).exists():
                Path(gate).touch()
                os.kill(os.getpid(), 9)
            return "survived"

    for name, options in (("slow", {}), ("slow_late", {"acks_late": True, "reject_on_worker_lost": True})):

        @task(name=f"shop.{name}", bind=True, **options)
        def slow(self: Any, gate: str, mark: str = "") -> str:
            note("slow", mark=mark, id=self.request.id)
            wait_for(gate)
            note("slow_end", mark=mark)
            return f"slow {mark}"

    @task(name="shop.soft", soft_time_limit=0.3)
    def soft() -> None:
        time.sleep(30)

    @task(name="shop.hard", time_limit=0.5)
    def hard() -> None:
        time.sleep(30)

    @task(name="shop.own_base", base=type("Own", (OwnBase, app.Task), {"abstract": True}))
    def own_base(gate: str) -> str:
        note("own_base")
        wait_for(gate)
        return "done"


@signals.task_success.connect
def _die_after_it(sender: Any = None, **_: Any) -> None:
    """Between the end of a task and the report of it."""
    gate = os.environ.get(DIE_AFTER)
    if gate and sender.name == "shop.add" and not Path(gate).exists():
        Path(gate).touch()
        os.kill(os.getpid(), 9)


if BROKER in os.environ:
    app, stabilize = make_app(os.environ[BROKER], os.environ[DATABASE], **results_in(os.environ.get(RESULTS)))
