"""``python -m tests.acceptance.without MODULE ...``: what is left of the package when each file is deleted in turn.

For each module one line of JSON: its name, and what went wrong.  Other packages are imported once; then a process is
forked for each module, in which that module cannot be imported and all others of the package are.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

PREFIX = "stabilize_celery."
#: Alembic runs it, with a migration under way.
_NOT_IMPORTED = (PREFIX + "persistence.migrations.env",)


def _import_all(but: str) -> None:
    import django
    from django.conf import settings

    apps = ["contenttypes", "auth", "messages", "sessions", "admin"]
    settings.configure(
        INSTALLED_APPS=[*(f"django.contrib.{app}" for app in apps), PREFIX + "contrib.django"],
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    )
    django.setup()
    package = importlib.import_module(PREFIX[:-1])
    for found in pkgutil.walk_packages(package.__path__, PREFIX):
        if found.name not in (but, *_NOT_IMPORTED) and not found.name.endswith("__main__"):
            importlib.import_module(found.name)


def _run_workflows() -> None:
    from celery import Celery

    from stabilize_celery import Stabilize, StageExecution, Workflow

    stages = [
        StageExecution.single("a", "python", {"script": "RESULT = 6 * 7"}),
        StageExecution.single("b", "noop", requires={"a"}),
    ]
    with Stabilize.embedded() as engine:
        run = engine.run(Workflow.create("shop", "order", stages), timeout=60)
        assert run.status.name == "SUCCEEDED", run.status
    app = Celery("shop", broker="memory://", set_as_current=False)
    app.conf.update(stabilize_database_url="sqlite://", task_always_eager=True)
    stabilize = Stabilize(app)
    stabilize.create_tables()
    eager = stabilize.start(Workflow.create("shop", "order", [StageExecution.single("a", "noop")]))
    assert eager.status.name == "SUCCEEDED", eager.status
    stabilize.close()


def _use(**settings: Any) -> None:
    from stabilize_celery import Stabilize, StageExecution, Workflow

    with Stabilize.embedded(**settings) as engine:
        kind = "noop" if settings else "docker"
        engine.start(Workflow.create("shop", "order", [StageExecution.single("a", kind)]))


def _schedule() -> None:
    from celery import Celery

    from stabilize_celery import Stabilize

    Stabilize(Celery("shop", set_as_current=False)).schedule("nightly", 3600, "nightly.yaml")


def _examine() -> None:
    from stabilize_celery.plugins import command

    command("doctor")


#: How each feature is asked for, and what is said of it when it is gone.
ASKED: dict[str, tuple[Callable[[], None], str]] = {
    PREFIX + "contrib.docker": (_use, "no task type 'docker' is registered"),
    PREFIX + "contrib.doctor": (_examine, "the command doctor cannot be loaded"),
    PREFIX + "contrib.opentelemetry": (lambda: _use(tracing=True), "stabilize_tracing needs the plugin"),
    PREFIX + "contrib.prometheus": (lambda: _use(metrics_port=1), "stabilize_metrics_port needs the plugin"),
    PREFIX + "contrib.schedules": (_schedule, "schedule nightly needs the plugin"),
    PREFIX + "delivery.events": (lambda: _use(send_events=True), "stabilize_send_events needs the plugin"),
}


def _problem_without(module: str) -> str:
    """What goes wrong without a module; nothing, it is hoped."""
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        _import_all(but=module)
        _run_workflows()
    except BaseException:
        return traceback.format_exc()
    ask, expected = ASKED[module]
    try:
        ask()
    except Exception as error:
        return "" if expected in str(error) else f"{type(error).__name__}: {error}"
    return "it was asked for, and nothing was said"


def main(modules: list[str]) -> None:
    # pytest comes in with stabilize_celery.testing.
    for name in (
        "alembic",
        "celery.worker.worker",
        "django.db.models",
        "flower.app",
        "psycopg",
        "pydantic",
        "pytest",
    ):
        importlib.import_module(name)
    assert not any(name.startswith(PREFIX) for name in sys.modules)
    for module in modules:
        sys.stdout.flush()
        if child := os.fork():
            os.waitpid(child, 0)
            continue
        print(json.dumps([module, _problem_without(module)]), flush=True)
        os._exit(0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    main(sys.argv[1:])
