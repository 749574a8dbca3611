"""The queue, the processor and the orchestrator of the seed documents, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from contextlib import closing
from datetime import timedelta
from unittest.mock import Mock

import pytest
from sqlalchemy import select

from stabilize_celery import (
    FakeClock,
    Orchestrator,
    PostgresQueue,
    PostgresWorkflowStore,
    QueueProcessor,
    RunTaskHandler,
    SqliteQueue,
    SqliteWorkflowStore,
    StageExecution,
    StartStageHandler,
    StartWorkflowHandler,
    TaskRegistry,
    TaskResult,
    Workflow,
)
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.errors import ConfigurationError, QueueError
from stabilize_celery.handlers.start_task import StartTaskHandler
from stabilize_celery.messages import CancelWorkflow, SignalStage, StartWorkflow
from stabilize_celery.persistence.rows import message_of
from stabilize_celery.persistence.tables import messages

BACKENDS = ["memory", "one file", "two files", "postgres"]


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture(params=BACKENDS)
def backend(request, tmp_path, clock):
    """A store and a queue."""
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
        store = PostgresWorkflowStore(url, clock=clock)
        queue = PostgresQueue(url, clock=clock)
    else:
        urls = {
            "memory": ["sqlite:///:memory:"] * 2,
            "one file": [f"sqlite:///{tmp_path}/one.db"] * 2,
            "two files": [f"sqlite:///{tmp_path}/store.db", f"sqlite:///{tmp_path}/queue.db"],
        }[request.param]
        store = SqliteWorkflowStore(urls[0], create_tables=True, clock=clock)
        queue = SqliteQueue(urls[1], clock=clock)
    queue._create_table()
    yield store, queue
    queue.close()
    store.close()


@pytest.fixture
def store(backend):
    return backend[0]


@pytest.fixture
def queue(backend):
    return backend[1]


@pytest.fixture
def registry():
    return TaskRegistry()


@pytest.fixture
def processor(store, queue, registry):
    return QueueProcessor(queue, store=store, task_registry=registry)


def workflow_of(*stages: StageExecution, name: str = "w") -> Workflow:
    return Workflow.create(
        application="tests", name=name, stages=stages or [StageExecution.single("a", "noop")]
    )


# ---------------------------------------------------------------------- the queue


@pytest.mark.parametrize("backend", ["memory", "one file", "postgres"], indirect=True)
def test_what_is_pushed_is_in_the_store_under_its_id_with_what_is_left_of_its_delay(queue, store, clock):
    now = queue.push(StartWorkflow(workflow_id="now"))
    later = queue.push(StartWorkflow(workflow_id="later"), delay=timedelta(seconds=60))
    assert queue.size() == 2
    clock.advance(20)
    QueueProcessor(queue, store=store)
    assert (queue.size(), store.count_messages()) == (2, 2)
    assert store.message(now)["due_at"] <= clock.now()
    assert store.message(later)["due_at"] == clock.now() + timedelta(seconds=40)


def test_a_producer_needs_no_processor_and_no_store(tmp_path, clock):
    url = f"sqlite:///{tmp_path}/one.db"
    with closing(SqliteWorkflowStore(url, create_tables=True, clock=clock)) as store:
        workflow = workflow_of()
        store.store(workflow)
        with closing(SqliteQueue(url, clock=clock)) as producer:
            Orchestrator(producer).start(workflow)
            assert producer.size() == 1
        QueueProcessor(SqliteQueue(url, clock=clock), store=store).process_all()
        assert store.retrieve(workflow.id).status is S.SUCCEEDED


def test_a_queue_whose_database_has_no_tables_says_so(tmp_path):
    with (
        closing(SqliteQueue(f"sqlite:///{tmp_path}/empty.db")) as queue,
        pytest.raises(
            QueueError,
            match=r"tables of stabilize_celery are missing in .*empty\.db.*same database as the store",
        ),
    ):
        queue.push(StartWorkflow(workflow_id="w"))


def test_what_a_store_does_not_take_is_kept(monkeypatch):
    queue = SqliteQueue("sqlite:///:memory:")
    queue.push(StartWorkflow(workflow_id="w"))
    with closing(SqliteWorkflowStore("sqlite://", create_tables=True)) as store:
        with monkeypatch.context() as broken:
            broken.setattr(store, "insert_messages", Mock(side_effect=RuntimeError("the store is full")))
            with pytest.raises(RuntimeError, match="full"):
                queue.use(store)
        assert queue.size() == 1
        queue.use(store)
        assert (queue.size(), store.count_messages()) == (1, 1)


# ---------------------------------------------------------------------- handlers


def test_a_second_handler_of_a_type_is_refused_but_can_replace_the_first(store, queue, processor, registry):
    ran = []

    class Own(StartStageHandler):
        def handle(self, message, unit):
            ran.append(self)
            super().handle(message, unit)

    first, second = Own(queue, store), Own(queue, store)
    processor.register_handler(first)
    with pytest.raises(ValueError, match=r"StartStage is handled by Own already; use replace_handler\(\)"):
        processor.register_handler(second)
    processor.replace_handler(second)
    Orchestrator(queue, store).start(workflow_of())
    processor.process_all()
    assert ran == [second]


def test_a_processor_learns_store_and_task_types_from_its_handlers(store, queue, registry):
    processor = QueueProcessor(queue)
    with pytest.raises(ConfigurationError, match="knows no store"):
        processor.process_all()
    other = TaskRegistry()
    registry.register("mine", lambda _: {"by": "run task"})
    processor.register_handler(StartTaskHandler(queue, store, other))
    processor.register_handler(RunTaskHandler(queue, store, registry))
    workflow = workflow_of(StageExecution.single("a", "mine"))
    Orchestrator(queue, store).start(workflow)
    processor.process_all()
    assert store.retrieve(workflow.id).stages[0].outputs == {"by": "run task"}
    assert registry.knows("shell")


def test_handlers_of_two_stores_are_refused(store, queue):
    processor = QueueProcessor(queue, store=store)
    another = SqliteWorkflowStore("sqlite://", create_tables=True)
    with pytest.raises(ConfigurationError, match="same store"):
        processor.register_handler(StartWorkflowHandler(queue, another))


def test_a_users_version_of_a_built_in_type_is_kept(store, queue, processor, registry):
    registry.register("shell", lambda _: {"stdout": "mine"})
    workflow = workflow_of(StageExecution.single("a", "shell", {"command": "echo theirs"}))
    Orchestrator(queue, store).start(workflow)
    processor.process_all()
    assert store.retrieve(workflow.id).stages[0].outputs == {"stdout": "mine"}


def test_options_reach_the_engine(store, queue, registry):
    calls = []

    def flaky(_stage):
        calls.append(1)
        raise ConnectionError("never there")

    registry.register("flaky", flaky)
    processor = QueueProcessor(
        queue, {"max_attempts": 9, "inline": False}, store, {"max_attempts": 3}, task_registry=registry
    )
    workflow = workflow_of(StageExecution.single("a", "flaky"))
    Orchestrator(queue, store).start(workflow)
    handled = processor.process_all()
    assert len(calls) == 3
    assert handled > 5  # every message on its own
    assert store.retrieve(workflow.id).status is S.TERMINAL


# ---------------------------------------------------------------------- processing


def test_process_one_handles_one_message(store, queue, processor):
    assert not processor.process_one()
    for name in ("x", "y"):
        Orchestrator(queue, store).start(workflow_of(name=name))
    assert processor.process_one()
    statuses = sorted(str(w.status) for w in store.list_workflows("tests"))
    assert statuses == ["NOT_STARTED", "RUNNING"]


def test_a_failing_task_fails_the_workflow_and_raises_nothing(store, queue, processor, registry):
    def broken(_stage):
        raise ZeroDivisionError("by design")

    registry.register("broken", broken)
    workflow = workflow_of(StageExecution.single("a", "broken"))
    Orchestrator(queue, store).start(workflow)
    processor.process_all()
    assert store.retrieve(workflow.id).status is S.TERMINAL


def test_a_handler_that_fails_for_a_while_is_tried_again(store, queue, processor, caplog):
    failures = iter([RuntimeError("one"), RuntimeError("two")])

    class Shaky(StartWorkflowHandler):
        def handle(self, message, unit):
            error = next(failures, None)
            if error is not None:
                raise error
            super().handle(message, unit)

    processor.register_handler(Shaky(queue, store))
    workflow = workflow_of()
    Orchestrator(queue, store).start(workflow)
    processor.process_all()
    assert store.retrieve(workflow.id).status is S.SUCCEEDED
    assert "tried again" in caplog.text


def test_what_a_task_pushes_is_processed_in_the_same_call(store, queue, processor, registry):
    orchestrator = Orchestrator(queue, store)
    child = workflow_of(name="child")
    registry.register("spawn", lambda _: orchestrator.start(child))
    orchestrator.start(workflow_of(StageExecution.single("a", "spawn")))
    processor.process_all()
    assert store.retrieve(child.id).status is S.SUCCEEDED


def test_process_all_waits_for_delayed_messages(store, queue, processor, clock):
    workflow = workflow_of()
    store.store(workflow)
    before = clock.now()
    queue.push(StartWorkflow(workflow_id=workflow.id), delay=3600)
    assert processor.process_all() > 0
    assert store.retrieve(workflow.id).status is S.SUCCEEDED
    assert clock.now() - before >= timedelta(hours=1)


def test_process_all_gives_up_after_its_timeout(store, queue, processor):
    workflow = workflow_of()
    Orchestrator(queue, store).start(workflow)
    assert processor.process_all(timeout=0) == 0
    assert store.retrieve(workflow.id).status is S.NOT_STARTED
    processor.process_all()
    assert store.retrieve(workflow.id).status is S.SUCCEEDED


def test_the_thread_of_start_processes_until_it_is_stopped(store, queue, processor, registry):
    ran = threading.Event()
    registry.register("tell", lambda _: ran.set())
    processor.start()
    processor.start()
    assert processor.is_running
    Orchestrator(queue, store).start(workflow_of(StageExecution.single("a", "tell")))
    assert ran.wait(30)
    assert processor.stop(timeout=30) is False
    assert not processor.is_running
    workflow = workflow_of()
    Orchestrator(queue, store).start(workflow)
    processor.process_all()
    assert store.retrieve(workflow.id).status is S.SUCCEEDED


def test_stop_says_that_a_task_is_still_running(store, queue, processor, registry):
    running, go_on = threading.Event(), threading.Event()

    def slow(_stage):
        running.set()
        go_on.wait(30)

    registry.register("slow", slow)
    processor.start()
    Orchestrator(queue, store).start(workflow_of(StageExecution.single("a", "slow")))
    assert running.wait(30)
    assert processor.stop(wait=False) is True
    go_on.set()
    assert processor.stop() is False


def test_request_stop_ends_a_running_process_all(store, queue, processor, registry):
    registry.register("stop", lambda _: processor.request_stop())
    workflow = workflow_of(
        StageExecution.single("a", "stop"), StageExecution.single("b", "noop", requires={"a"})
    )
    Orchestrator(queue, store).start(workflow)
    processor.process_all()
    assert store.retrieve(workflow.id).status is S.RUNNING
    processor.process_all()
    assert store.retrieve(workflow.id).status is S.SUCCEEDED


# ---------------------------------------------------------------------- the orchestrator


def hold(stage: StageExecution) -> TaskResult:
    return TaskResult.success() if "_signal_name" in stage.context else TaskResult.suspend()


@pytest.fixture
def held(store, queue, processor, registry):
    """A workflow whose first stage waits for a signal."""
    registry.register("hold", hold)
    workflow = workflow_of(
        StageExecution.single("a", "hold"), StageExecution.single("b", "noop", requires={"a"})
    )
    Orchestrator(queue, store).start(workflow)
    processor.process_all()
    return store.retrieve(workflow.id)


def signal(queue, workflow):
    stage = workflow.stage_by_ref_id("a")
    queue.push(
        SignalStage(
            workflow_id=workflow.id,
            stage_id=stage.id,
            generation=stage.generation,
            signal_name="go",
            persistent=True,
        )
    )


def test_a_workflow_is_canceled(store, queue, processor, held):
    Orchestrator(queue).cancel(held, "kim", "not wanted")
    processor.process_all()
    result = store.retrieve(held.id)
    assert (result.status, result.canceled_by, result.cancellation_reason) == (
        S.CANCELED,
        "kim",
        "not wanted",
    )


def test_a_workflow_is_paused_and_unpaused(store, queue, processor, held):
    orchestrator = Orchestrator(queue)
    orchestrator.pause(held, "kim")
    processor.process_all()
    assert orchestrator.get_execution(held.id).status is S.PAUSED
    signal(queue, held)
    processor.process_all()
    assert orchestrator.get_execution(held.id).stage_by_ref_id("b").status is S.NOT_STARTED
    orchestrator.unpause(held, "kim")
    processor.process_all()
    assert store.retrieve(held.id).status is S.SUCCEEDED


def test_an_ended_stage_is_restarted_again_and_again_from_an_old_copy(store, queue, processor):
    orchestrator = Orchestrator(queue)
    workflow = workflow_of()
    store.store(workflow)
    orchestrator.start(workflow)
    for generation in range(3):
        processor.process_all()
        stage = store.retrieve(workflow.id).stages[0]
        assert (stage.status, stage.generation) == (S.SUCCEEDED, generation)
        orchestrator.restart(workflow, workflow.stages[0].id)
    with pytest.raises(ValueError, match="no stage"):
        orchestrator.restart(workflow, "nowhere")


def test_an_orchestrator_without_any_store_says_so():
    queue = SqliteQueue("sqlite://")
    with pytest.raises(ConfigurationError, match="knows no store"):
        Orchestrator(queue).get_execution("w")


@pytest.mark.parametrize("backend", ["memory", "one file", "postgres"], indirect=True)
def test_the_orchestrator_puts_one_message_into_the_queue(queue, store):
    workflow = workflow_of()
    Orchestrator(queue).cancel(workflow, "kim", "why")
    QueueProcessor(queue, store=store)
    with store.database.begin() as connection:
        (row,) = connection.execute(select(messages))
    assert message_of(dict(row._mapping)) == CancelWorkflow(workflow_id=workflow.id, user="kim", reason="why")
