"""What user code says when it fails is stored and shown without the secrets that its stage knows."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import select

from stabilize_celery import (
    RetryableTask,
    Stabilize,
    StageExecution,
    Task,
    TaskExecution,
    TaskResult,
    TransientError,
    Workflow,
)
from stabilize_celery.cli import main
from stabilize_celery.models.json import StageHead, to_json
from stabilize_celery.persistence import tables
from stabilize_celery.redaction import redact
from stabilize_celery.stages.builder import StageDefinitionBuilder

SECRET = "hunter2-tr0ub4dor"


@pytest.fixture
def engine(tmp_path: Any) -> Iterator[Stabilize]:
    with Stabilize.embedded(f"sqlite:///{tmp_path}/flows.db", retry_delay=0.01, max_attempts=2) as made:
        yield made


def run_one(engine: Stabilize, *stages: StageExecution, **context: Any) -> Any:
    return engine.run(Workflow.create("shop", "login", list(stages), context=context), timeout=30)


#: Under these keys the author of a workflow, or a task for itself, keeps what is secret.
KEPT = {"password", "token", "api_key", "url", "command", "script", "env"}


def seen_of(engine: Stabilize, run: Any, caplog: pytest.LogCaptureFixture) -> str:
    """Everything people see of a run, and every row of it but what is under the keys for secrets."""
    seen = [caplog.text]
    for options in (["--history", "--outputs"], ["--json", "--history"]):
        shown = CliRunner().invoke(main, ["--database-url", engine.store.url, "show", run.id, *options])
        assert shown.exit_code == 0, shown.output
        seen.append(shown.output)
    with engine.store.database.begin() as connection:
        for table in tables.metadata.sorted_tables:
            rows = connection.execute(select(table)).mappings().all()
            seen.append(json.dumps([_without_kept(dict(row)) for row in rows], default=str))
    stored = run.workflow()
    seen.append(json.dumps(to_json(list[StageHead], stored.stages, hide=redact)))
    return "\n".join(seen)


def _without_kept(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_kept(item) for key, item in value.items() if key not in KEPT}
    return [_without_kept(item) for item in value] if isinstance(value, list | tuple) else value


def terminal(stage: StageExecution) -> TaskResult:
    return TaskResult.terminal(f"login with {stage.context['password']} refused")


def with_details(stage: StageExecution) -> TaskResult:
    said = f"login with {stage.context['password']} refused"
    return TaskResult.terminal(said, context={"exception": {"why": said}, "steps": [{"log": said}]})


def going_on(stage: StageExecution) -> TaskResult:
    return TaskResult.failed_continue(f"login with {stage.context['password']} refused", outputs={"n": 1})


def long(stage: StageExecution) -> TaskResult:
    return TaskResult.terminal("x" * (500 - len(SECRET) // 2) + stage.context["password"])


def named(stage: StageExecution) -> TaskResult:
    return TaskResult.terminal(f"refused: api_key={SECRET}, postgres://shop:{SECRET}@db/shop")


def of_the_url(stage: StageExecution) -> TaskResult:
    return TaskResult.terminal(f"the password {SECRET} is wrong")


def own_result(stage: StageExecution) -> TaskResult:
    return TaskResult.terminal(f"the token {SECRET} is over", context={"token": SECRET})


def of_the_workflow(stage: StageExecution) -> TaskResult:
    return TaskResult.terminal(f"refused {stage.execution.context['api_key']}")


def raising(stage: StageExecution) -> TaskResult:
    raise ValueError("y" * (500 - len(SECRET) // 2) + stage.context["password"])


@pytest.mark.parametrize(
    "body", [terminal, with_details, going_on, long, named, of_the_url, own_result, of_the_workflow, raising]
)
def test_a_returned_or_raised_error(
    engine: Stabilize, caplog: pytest.LogCaptureFixture, body: Callable[[StageExecution], TaskResult]
) -> None:
    engine.registry.register("login", body)
    own = {"url": f"postgres://shop:{SECRET}@db/shop"} if body is of_the_url else {"password": SECRET}
    if body in (own_result, of_the_workflow, named):
        own = {}
    with caplog.at_level("DEBUG"):
        run = run_one(
            engine,
            StageExecution.single("s", "login", own),
            **({"api_key": SECRET} if body is of_the_workflow else {}),
        )
    stage = run.workflow().stages[0]
    assert stage.context["error"]
    assert "***" in stage.context["error"]
    beginning = SECRET[: len(SECRET) // 2] if body in (long, raising) else SECRET
    assert beginning not in seen_of(engine, run, caplog)
    if body is own_result:
        assert stage.own_context["token"] == SECRET, "what a task keeps for itself stays"


@pytest.mark.parametrize(
    "more", [{}, {"continue_on_failure": True}, {"restart_on_failure": True}, {"binary": True}]
)
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("shell", {"command": "echo out {password}; echo err {password} >&2; exit 3"}),
        ("shell", {"command": "echo $P; echo $P >&2; exit 3", "env": {"P": SECRET}, "secrets": ["P"]}),
        ("python", {"script": "import sys; print(INPUT['password']); raise ValueError(INPUT['password'])"}),
        ("python", {"script": "import sys; sys.exit('no ' + INPUT['password'])"}),
    ],
)
def test_what_a_failing_command_prints(
    engine: Stabilize,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    options: dict[str, Any],
    more: dict[str, Any],
) -> None:
    own = {**options, **more} | ({"password": SECRET} if "env" not in options else {})
    with caplog.at_level("DEBUG"):
        run = run_one(engine, StageExecution.single("s", kind, own))
    stage = run.workflow().stages[0]
    assert "***" in json.dumps(stage.context["error"])
    assert SECRET not in seen_of(engine, run, caplog)
    for encoded in (stage.context.get("stdout_b64"), stage.outputs.get("stdout_b64")):
        assert SECRET.encode() not in base64.b64decode(encoded or "")


def test_what_a_successful_command_prints_is_data(engine: Stabilize) -> None:
    run = run_one(
        engine, StageExecution.single("s", "shell", {"command": "echo {password}", "password": SECRET})
    )
    assert run.get()["stdout"] == SECRET


def test_progress_of_a_retry_is_data(engine: Stabilize) -> None:
    seen = []

    def body(stage: StageExecution) -> TaskResult:
        seen.append(stage.context.get("next"))
        if len(seen) == 1:
            raise TransientError("again", context_update={"next": f"/page?token={stage.context['token']}"})
        return TaskResult.success()

    engine.registry.register("pages", body)
    run_one(engine, StageExecution.single("s", "pages", {"token": SECRET}))
    assert seen == [None, f"/page?token={SECRET}"]


class Clearing(Task):
    def execute(self, stage: StageExecution) -> TaskResult:
        return TaskResult.terminal("no")

    def on_cleanup(self, stage: StageExecution) -> TaskResult:
        return TaskResult.terminal(f"not cleared with {stage.context['password']}")


class Slow(RetryableTask):
    def get_timeout(self) -> timedelta:
        return timedelta()

    def get_backoff_period(self, stage: StageExecution, duration: timedelta) -> timedelta:
        return timedelta()

    def execute(self, stage: StageExecution) -> TaskResult:
        return TaskResult.success()

    def on_timeout(self, stage: StageExecution) -> TaskResult:
        raise RuntimeError(f"timed out with {stage.context['password']}")


def test_hooks(engine: Stabilize, caplog: pytest.LogCaptureFixture) -> None:
    engine.registry.register("clearing", Clearing)
    engine.registry.register("slow", Slow)
    with caplog.at_level("DEBUG"):
        run = run_one(
            engine,
            StageExecution.single("c", "clearing", {"password": SECRET, "continuePipelineOnFailure": True}),
            StageExecution.single("s", "slow", {"password": SECRET}, requires={"c"}),
        )
    assert run.workflow().stages[1].status.name == "TERMINAL"
    assert "timed out with ***" in caplog.text
    assert SECRET not in seen_of(engine, run, caplog)


def test_builders(engine: Stabilize, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(StageDefinitionBuilder):
        type = "broken"

        def before_stages(self, stage: StageExecution, graph: Any) -> None:
            raise ValueError(f"no plan with {stage.context['password']}")

    engine.register_builder(Broken())
    stage = StageExecution(ref_id="s", type="broken", name="s", context={"password": SECRET})
    stage.tasks = [TaskExecution.create("t", "noop")]
    with caplog.at_level("DEBUG"):
        run = run_one(engine, stage)
    assert run.workflow().stages[0].context["error"] == "no plan with ***"
    assert SECRET not in seen_of(engine, run, caplog)
