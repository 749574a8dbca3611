"""Every Python block of the seed documents runs, with nothing but the package's name replaced.

A fragment (one that leaves something out with ``...``, or names something it does not define) is completed by
the smallest program that uses it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from stabilize_celery import (
    FakeClock,
    Orchestrator,
    QueueProcessor,
    RunTaskHandler,
    SqliteQueue,
    SqliteWorkflowStore,
    StageDefinitionBuilder,
    StageExecution,
    StartStageHandler,
    StartWorkflowHandler,
    Task,
    TaskExecution,
    TaskRegistry,
    TaskResult,
    Workflow,
)
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.messages import SignalStage
from stabilize_celery.models.stage import SyntheticStageOwner
from stabilize_celery.stages.builder import StageDefinitionBuilderFactory, global_factory
from tests.acceptance.documents import Block, blocks_of, execute
from tests.unit.tasks.http_server import Answer, Server

DOCUMENTS = Path(__file__).parent / "seeds"
BLOCKS = {
    (path.name, block.heading): block
    for path in sorted(DOCUMENTS.iterdir())
    for block in blocks_of(path)
    if block.language == "python"
}
_RUN_BY: dict[tuple[str, str], str] = {}
Test = Callable[..., None]


def runs(document: str, heading: str) -> Callable[[Test], Test]:
    """The test runs the block below that heading."""

    def mark(test: Test) -> Test:
        assert (document, heading) not in _RUN_BY
        _RUN_BY[document, heading] = test.__name__
        return test

    return mark


def code(document: str, heading: str, replaced: Mapping[str, str] | None = None) -> str:
    """A block's code for this package; what is ``replaced`` must be there."""
    text = BLOCKS[document, heading].text
    for old, new in (replaced or {}).items():
        assert old in text
        text = text.replace(old, new)
    return text.replace("from stabilize import", "from stabilize_celery import").replace(
        "from stabilize.", "from stabilize_celery."
    )


def run_block(
    document: str, heading: str, replaced: Mapping[str, str] | None = None, **names: Any
) -> tuple[list[Any], dict[str, Any]]:
    """The values of a block's expressions, and the names it defined; ``names`` is what it takes for granted."""
    namespace = {
        "StageExecution": StageExecution,
        "TaskExecution": TaskExecution,
        "Workflow": Workflow,
        **names,
    }
    values = execute(code(document, heading, replaced), namespace, document)
    return values, namespace


class Setup:
    """Store, queue, processor and orchestrator as the seed documents make them."""

    def __init__(self, **tasks: Any) -> None:
        self.clock = FakeClock()
        self.store = SqliteWorkflowStore("sqlite:///:memory:", create_tables=True, clock=self.clock)
        self.queue = SqliteQueue("sqlite:///:memory:", table_name="queue_messages")
        self.queue._create_table()
        self.registry = TaskRegistry()
        for name, task in tasks.items():
            self.registry.register(name, task)
        self.orchestrator = Orchestrator(self.queue)
        self.use(None)

    def use(self, builders: StageDefinitionBuilderFactory | None, **config: Any) -> Setup:
        self.processor = QueueProcessor(self.queue, config, builders=builders)
        self.processor.register_handler(StartWorkflowHandler(self.queue, self.store))
        self.processor.register_handler(RunTaskHandler(self.queue, self.store, self.registry))
        return self

    def start(self, stages: list[StageExecution], **options: Any) -> Workflow:
        workflow = Workflow.create(application="seeds", name="block", stages=stages, **options)
        self.store.store(workflow)
        self.orchestrator.start(workflow)
        return workflow

    def run(self, stages: list[StageExecution], **options: Any) -> Workflow:
        workflow = self.start(stages, **options)
        self.processor.process_all(timeout=60.0)
        return self.store.retrieve(workflow.id)


def stage_of(workflow: Workflow, name: str) -> StageExecution:
    """A stage by ref_id; a synthetic one by name."""
    (found,) = [stage for stage in workflow.stages if name in (stage.ref_id, stage.name)]
    return found


def outputs_of(workflow: Workflow, ref_id: str) -> dict[str, Any]:
    return stage_of(workflow, ref_id).outputs


@pytest.fixture
def setup() -> Setup:
    return Setup()


# ---------------------------------------------------------------------- the documents themselves


def test_no_block_is_forgotten():
    assert set(_RUN_BY) == set(BLOCKS)


@pytest.mark.parametrize("document", ["data_flow.md", "flow_control.rst"])
def test_every_block_has_a_heading_of_its_own(document):
    python = [block for block in blocks_of(DOCUMENTS / document) if block.language == "python"]
    assert len(python) == len([key for key in BLOCKS if key[0] == document])
    assert python


def test_extraction_knows_both_formats(tmp_path):
    (tmp_path / "a.md").write_text("# One\n\n```python\n# not a heading\nx = 1\n```\n")
    (tmp_path / "a.rst").write_text("One\n===\n\n.. code-block:: python\n\n    x = 1\n\n    y = 2\n\nText\n")
    assert blocks_of(tmp_path / "a.md") == [Block("One", "python", "# not a heading\nx = 1\n", 4)]
    (block,) = blocks_of(tmp_path / "a.rst")
    assert (block.heading, block.text.rstrip()) == ("One", "x = 1\n\ny = 2")


# ---------------------------------------------------------------------- data_flow.md


@runs("data_flow.md", "Declaring Dependencies")
def test_declared_dependencies_are_waited_for():
    order: list[str] = []
    setup = Setup(note=lambda stage: order.append(stage.ref_id))
    gaps = {"context={...}": "context={}", "tasks=[...]": "tasks=tasks()"}
    stages, _ = run_block(
        "data_flow.md", "Declaring Dependencies", gaps, tasks=lambda: [TaskExecution.create("Note", "note")]
    )
    result = setup.run([*reversed(stages), StageExecution.single("a", "note")])
    assert result.status is S.SUCCEEDED
    assert order == ["a", "b", "c"]
    assert stages[1].requisite_stage_ref_ids == {"a", "b"}


@runs("data_flow.md", "Using TaskResult")
def test_task_result_outputs_reach_downstream_stages():
    _, names = run_block("data_flow.md", "Using TaskResult", calculate_something=lambda: "calculated")
    seen: dict[str, Any] = {}
    setup = Setup(mine=names["MyTask"], look=lambda stage: seen.update(stage.context))
    result = setup.run(
        [StageExecution.single("a", "mine"), StageExecution.single("b", "look", requires={"a"})]
    )
    expected = {"result": "calculated", "count": 42, "items": ["a", "b", "c"]}
    assert outputs_of(result, "a") == expected
    assert seen == expected


def calculate() -> StageExecution:
    (stage,), _ = run_block("data_flow.md", "Using PythonTask")
    return stage


@runs("data_flow.md", "Using PythonTask")
def test_python_task_takes_its_result_from_RESULT(setup):
    result = setup.run([calculate()])
    outputs = outputs_of(result, "calculate")
    assert outputs["result"] == {"factorial": 3628800, "input": 10}
    assert {"stdout", "stderr", "exit_code", "result"} <= outputs.keys()
    assert outputs["exit_code"] == 0


def list_files() -> StageExecution:
    (stage,), _ = run_block("data_flow.md", "Using ShellTask")
    return stage


@runs("data_flow.md", "Using ShellTask")
def test_shell_task_captures_its_output(setup):
    outputs = outputs_of(setup.run([list_files()]), "list_files")
    assert outputs["stdout"].startswith("total ")
    assert (outputs["stderr"], outputs["exit_code"]) == ("", 0)


@runs("data_flow.md", "Basic Access")
def test_INPUT_holds_the_result_of_the_stage_before(setup):
    (process,), _ = run_block("data_flow.md", "Basic Access")
    result = setup.run([calculate(), process])
    assert outputs_of(result, "process")["result"] == {"doubled": 2 * 3628800}


@runs("data_flow.md", "Accessing Shell Output")
def test_INPUT_holds_the_stdout_of_a_shell_stage(setup):
    (parse,), _ = run_block("data_flow.md", "Accessing Shell Output")
    result = setup.run([list_files(), parse])
    lines = outputs_of(result, "list_files")["stdout"].splitlines()
    assert outputs_of(result, "parse")["result"] == {"file_count": len(lines)}


@runs("data_flow.md", "Multiple Upstream Stages")
def test_outputs_of_several_upstreams_are_merged():
    (combine,), _ = run_block("data_flow.md", "Multiple Upstream Stages")
    setup = Setup(ten=lambda _: {"a_result": 10}, twenty=lambda _: {"b_result": 20})
    result = setup.run([StageExecution.single("a", "ten"), StageExecution.single("b", "twenty"), combine])
    assert outputs_of(result, "combine")["result"] == {"sum": 30}


@runs("data_flow.md", "Complete Example: Data Pipeline")
def test_the_complete_example_prints_its_report(capsys):
    _, names = run_block("data_flow.md", "Complete Example: Data Pipeline")
    out = capsys.readouterr().out
    numbers = [82, 15, 4, 95, 36, 32, 29, 18, 95, 14]
    report = "\n=== Data Report ===\nTotal: 420\nAverage: 42.00\nMin: 4\nMax: 95\n"
    assert out == (
        "Workflow Status: SUCCEEDED\n"
        "\nGenerate Data:\n"
        f"  Result: {{'numbers': {numbers}, 'count': 10}}\n"
        "\nProcess Data:\n"
        "  Result: {'total': 420, 'average': 42.0, 'min': 4, 'max': 95}\n"
        "\nGenerate Report:\n"
        f"  Result: {{'report': {report!r}}}\n"
    )
    assert outputs_of(names["result"], "report")["stdout"] == report.strip()


@runs("data_flow.md", "Parallel Branches with Join")
def test_the_join_waits_for_all_parallel_branches(setup):
    _, names = run_block("data_flow.md", "Parallel Branches with Join")
    result = setup.run(names["stages"])
    assert result.status is S.SUCCEEDED
    assert {ref: outputs_of(result, ref)["result"] for ref in ("stats", "sort", "filter", "combine")} == {
        "stats": {"sum": 15, "avg": 3.0},
        "sort": {"sorted": [1, 2, 3, 4, 5]},
        "filter": {"evens": [2, 4]},
        "combine": {"status": "all branches complete"},
    }
    branches = [stage_of(result, ref).end_time for ref in ("stats", "sort", "filter")]
    assert stage_of(result, "combine").start_time >= max(branches)


@runs("data_flow.md", "Key Collision Warning")
def test_of_two_outputs_of_the_same_key_the_last_survives(setup):
    values, _ = run_block("data_flow.md", "Key Collision Warning")
    assert values == []  # only comments, which say:
    result = setup.run(
        [
            StageExecution.single("a", "python", {"script": "RESULT = {'a_value': 10}"}),
            StageExecution.single("b", "python", {"script": "RESULT = {'b_value': 20}"}),
            StageExecution.single(
                "join", "python", {"script": "RESULT = INPUT['result']"}, requires={"a", "b"}
            ),
        ]
    )
    assert outputs_of(result, "join")["result"] == {"b_value": 20}


# ---------------------------------------------------------------------- flow_control.rst


@runs("flow_control.rst", "Parallel Execution")
def test_stages_with_the_same_upstream_run_in_parallel():
    order: list[str] = []
    setup = Setup(note=lambda stage: order.append(stage.ref_id))
    rest = {", ...)": ", **rest())"}
    _, names = run_block(
        "flow_control.rst",
        "Parallel Execution",
        rest,
        rest=lambda: {"tasks": [TaskExecution.create("Note", "note")]},
    )
    workflow = setup.start(names["stages"])
    while order != ["A"]:
        assert setup.processor.process_one()
    stages = setup.store.retrieve(workflow.id).stages
    assert [stage.ref_id for stage in stages if stage.status is S.RUNNING] == ["B", "C"]
    setup.processor.process_all()
    assert (order[0], set(order[1:3]), order[3]) == ("A", {"B", "C"}, "D")
    assert len(order) == 4


@runs("flow_control.rst", "SyntheticStageOwner Enum")
def test_the_owners_of_synthetic_stages():
    values, names = run_block("flow_control.rst", "SyntheticStageOwner Enum")
    assert values == [SyntheticStageOwner.STAGE_BEFORE, SyntheticStageOwner.STAGE_AFTER]
    assert names["SyntheticStageOwner"] is SyntheticStageOwner


@pytest.fixture
def scripts(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Put shell scripts onto PATH that note that they ran, and end with the given exit code."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "ran.log"
    log.touch()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(**codes: int) -> Path:
        for name, exit_code in codes.items():
            script = folder / f"{name.replace('_', '-')}.sh"
            script.write_text(f"#!/bin/sh\necho {script.name} >> {log}\nexit {exit_code}\n")
            script.chmod(0o755)
        return log

    return write


@runs("flow_control.rst", "Creating Synthetic Stages")
def test_a_synthetic_stage_made_by_hand_runs_before_its_parent(setup, scripts):
    class Validated(StageDefinitionBuilder):
        def before_stages(self, stage, graph):
            _, names = run_block("flow_control.rst", "Creating Synthetic Stages", parent_stage=stage)
            graph.add(names["validation"])

    log = scripts(validate_config=0, deploy=0)
    factory = StageDefinitionBuilderFactory()
    factory.register(Validated())
    stage = StageExecution.create("validated", "Deploy", "d", context={"command": "deploy.sh"})
    stage.tasks = [TaskExecution.create("Deploy", "shell")]
    result = setup.use(factory).run([stage])
    assert result.status is S.SUCCEEDED
    validation = stage_of(result, "Validate Configuration")
    assert validation.status is S.SUCCEEDED
    assert validation.synthetic_stage_owner is SyntheticStageOwner.STAGE_BEFORE
    assert log.read_text().split() == ["validate-config.sh", "deploy.sh"]


@pytest.fixture
def hook(scripts) -> Iterator[str]:
    """The URL of the service that is notified; it notes the method it was called with beside the scripts."""
    log = scripts()

    def note(request: BaseHTTPRequestHandler) -> Answer:
        with log.open("a") as file:
            file.write(f"{request.command}\n")
        return Answer()

    with Server() as server:
        server.routes["/hook"] = note
        yield f"{server.url}/hook"


def deploy(setup: Setup, builders: StageDefinitionBuilderFactory | None) -> Workflow:
    stage = StageExecution(ref_id="d", type="deploy", name="Deploy", context={"command": "deploy.sh"})
    after = StageExecution.single("after", "noop", requires={"d"})
    return setup.use(builders).run([stage, after])


def deploy_builder_block(hook: str) -> dict[str, Any]:
    # Nothing in a test leaves this machine, and nothing on it is called without saying so.
    local = f'"url": "{hook}", "allow_private_urls": True'
    changed = {'"url": "https://hooks.slack.com/..."': local}
    return run_block("flow_control.rst", "StageDefinitionBuilder", changed)[1]


@runs("flow_control.rst", "StageDefinitionBuilder")
@pytest.mark.parametrize(
    ("codes", "ran", "statuses"),
    [
        pytest.param(
            {"validate_config": 0, "deploy": 0},
            ["validate-config.sh", "deploy.sh", "POST"],
            {"Deploy": S.SUCCEEDED, "Send Notification": S.SUCCEEDED, "after": S.SUCCEEDED},
            id="success",
        ),
        pytest.param(
            {"validate_config": 0, "deploy": 1},
            ["validate-config.sh", "deploy.sh", "rollback.sh"],
            {"Deploy": S.TERMINAL, "Rollback Deployment": S.SUCCEEDED, "after": S.NOT_STARTED},
            id="deploy fails",
        ),
        pytest.param(
            {"validate_config": 1, "deploy": 0},
            ["validate-config.sh", "rollback.sh"],
            {"Deploy": S.TERMINAL, "Validate Configuration": S.TERMINAL, "after": S.NOT_STARTED},
            id="validation fails",
        ),
    ],
)
def test_the_deploy_builder_plans_its_synthetic_stages(setup, scripts, hook, codes, ran, statuses):
    log = scripts(rollback=0, **codes)
    factory = StageDefinitionBuilderFactory()
    factory.register(deploy_builder_block(hook)["DeployStageBuilder"]())
    result = deploy(setup, factory)
    assert log.read_text().split() == ran
    assert {name: stage_of(result, name).status for name in statuses} == statuses
    assert result.status is (S.TERMINAL if 1 in codes.values() else S.SUCCEEDED)


@pytest.fixture
def clean_global_factory(monkeypatch):
    monkeypatch.setattr(global_factory(), "_builders", {})


@runs("flow_control.rst", "Registering Builders")
@pytest.mark.parametrize("option", ["global", "custom"])
@pytest.mark.usefixtures("clean_global_factory")
def test_builders_of_the_global_and_of_a_custom_factory_are_used(setup, scripts, hook, option):
    names = deploy_builder_block(hook)
    _, registered = run_block("flow_control.rst", "Registering Builders", **names)
    if option == "custom":
        global_factory()._builders.clear()
    log = scripts(validate_config=0, deploy=0)
    result = deploy(setup, registered["factory"] if option == "custom" else None)
    assert result.status is S.SUCCEEDED
    assert log.read_text().split() == ["validate-config.sh", "deploy.sh", "POST"]


@runs("flow_control.rst", "Concurrency Limits")
def test_executions_over_the_limit_wait_and_start_when_slots_free_up():
    def hold(stage: StageExecution) -> TaskResult:
        return TaskResult.success() if "_signal_name" in stage.context else TaskResult.suspend()

    setup = Setup(hold=hold)
    _, names = run_block("flow_control.rst", "Concurrency Limits")
    started = [setup.start([StageExecution.single("a", "hold")], config=names["config"]) for _ in range(7)]
    setup.processor.process_all()
    statuses = [setup.store.retrieve(workflow.id).status for workflow in started]
    assert statuses == [S.RUNNING] * 5 + [S.BUFFERED] * 2

    stage = setup.store.retrieve(started[2].id).stages[0]
    setup.queue.push(SignalStage(workflow_id=started[2].id, stage_id=stage.id, signal_name="go"))
    setup.processor.process_all()
    statuses = [setup.store.retrieve(workflow.id).status for workflow in started]
    assert statuses == [S.RUNNING] * 2 + [S.SUCCEEDED] + [S.RUNNING] * 3 + [S.BUFFERED]


class Implement(Task):
    """What the router sends the workflow back to; the tests pass after ``tries`` tries."""

    def __init__(self, tries: int) -> None:
        self.tries = tries
        self.reasons: list[str | None] = []

    def execute(self, stage: StageExecution) -> TaskResult:
        self.reasons.append(stage.context.get("retry_reason"))
        return TaskResult.success(outputs={"tests_passed": len(self.reasons) >= self.tries})


def route(tries: int, context: Mapping[str, Any] | None = None) -> tuple[Workflow, list[str | None]]:
    _, names = run_block("flow_control.rst", "TaskResult.jump_to()")
    implement = Implement(tries)
    setup = Setup(implement=implement, router=names["RouterTask"])
    stages = [
        StageExecution.single("implement_stage", "implement"),
        StageExecution.single("route", "router", requires={"implement_stage"}),
        StageExecution.single("release", "noop", requires={"route"}),
    ]
    return setup.run(stages, context=context), implement.reasons


@runs("flow_control.rst", "TaskResult.jump_to()")
@pytest.mark.parametrize(
    ("tries", "reasons"),
    [(1, [None]), (3, [None, "tests failed", "tests failed"])],
    ids=["passed", "failed twice"],
)
def test_the_router_jumps_back_until_the_tests_pass(tries, reasons):
    result, seen = route(tries)
    assert seen == reasons
    assert result.status is S.SUCCEEDED
    assert len(result.context.get("_jump_history", [])) == tries - 1


def test_ten_jumps_are_the_default_limit():
    result, seen = route(tries=99)
    assert len(seen) == 11
    assert stage_of(result, "route").status is S.TERMINAL


@runs("flow_control.rst", "Jump Count Limiting")
def test_the_number_of_jumps_can_be_limited():
    given = {"application": "seeds", "name": "jumps", "stages": [StageExecution.single("a", "noop")]}
    _, names = run_block("flow_control.rst", "Jump Count Limiting", {"    ...,": "    **given,"}, given=given)
    assert names["execution"].context == {"_max_jumps": 5}
    result, seen = route(tries=99, context=names["execution"].context)
    assert len(seen) == 6
    assert (result.status, stage_of(result, "release").status) == (S.TERMINAL, S.NOT_STARTED)
    assert stage_of(result, "route").context["jump_error"] == "Max jump count exceeded: 5/5"
    jumps = [(jump["from_stage"], jump["to_stage"]) for jump in result.context["_jump_history"]]
    assert jumps == [("route", "implement_stage")] * 5


class RateLimitError(Exception):
    pass


@runs("flow_control.rst", "Stateful Retries")
def test_a_retry_starts_from_the_preserved_progress_after_its_delay():
    calls: list[tuple[int, Any]] = []

    def process_batch(processed: int) -> int:
        calls.append((processed, setup.clock.now()))
        if processed < 20:
            raise RateLimitError
        return processed + 5

    _, names = run_block(
        "flow_control.rst", "Stateful Retries", process_batch=process_batch, RateLimitError=RateLimitError
    )
    setup = Setup(progress=names["ProgressTask"])
    result = setup.run([StageExecution.single("a", "progress")])
    assert [processed for processed, _ in calls] == [0, 10, 20]
    waits = [(later - before).total_seconds() for (_, before), (_, later) in pairwise(calls)]
    assert all(wait >= 30 for wait in waits)
    assert outputs_of(result, "a") == {"total": 25}
    assert stage_of(result, "a").context["processed_items"] == 20


# ---------------------------------------------------------------------- the processor's own promises


def test_only_some_handlers_are_enough_and_a_users_own_one_is_used():
    seen: list[str] = []

    class Told(StartStageHandler):
        def handle(self, message, unit):
            seen.append(unit.stage(message.stage_id).ref_id)
            super().handle(message, unit)

    setup = Setup()
    setup.processor.register_handler(Told(setup.queue, setup.store))
    result = setup.run(
        [StageExecution.single("a", "noop"), StageExecution.single("b", "noop", requires={"a"})]
    )
    assert result.status is S.SUCCEEDED
    assert seen == ["a", "b"]
