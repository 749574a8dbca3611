"""``task_always_eager``, as test suites set it: a start runs the workflow in this process, and no broker is asked."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from sqlalchemy import create_engine, text

from stabilize_celery import Stabilize, StageExecution, TransientError, Workflow, current_run
from stabilize_celery import WorkflowStatus as S
from stabilize_celery.errors import WorkflowFailedError, WorkflowTimeoutError

single = StageExecution.single


class Shop:
    """An app whose test suite calls everything in place."""

    def __init__(self, url: str, **conf: Any) -> None:
        # Nobody listens on port 1: a message that is sent is a failure.
        self.app = Celery("shop", broker="amqp://127.0.0.1:1//", set_as_current=False)
        self.app.conf.update(task_always_eager=True, stabilize_database_url=url)
        self.app.conf.update(stabilize_retry_delay=0.05, **conf)
        self.stabilize = Stabilize(self.app)
        self.stabilize.create_tables()
        self.ran: list[str] = []
        self.stabilize.task("note")(self.note)
        self.app.task(self.add, name="shop.add", shared=False)

    def note(self, word: str = "") -> dict[str, str]:
        self.ran.append(word)
        return {"word": word}

    def add(self, first: int, second: int) -> int:
        return first + second

    def close(self) -> None:
        self.stabilize.close()
        self.app.close()


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'shop.db'}"
    found: str = request.getfixturevalue("empty_postgres_url")
    return found


@pytest.fixture
def shop(url: str) -> Iterator[Shop]:
    made = Shop(url)
    yield made
    made.close()


def flow(*stages: StageExecution) -> Workflow:
    return Workflow.create("shop", "order", list(stages))


def test_a_start_runs_the_workflow_celery_tasks_included(shop: Shop) -> None:
    run = shop.stabilize.start(
        flow(
            single("a", "note", {"word": "a"}),
            StageExecution.celery("b", shop.app.tasks["shop.add"].s(1, 2), requires={"a"}),
            single("c", "note", {"word": "c"}, requires={"a"}),
            single("d", "note", {"word": "d"}, requires={"b", "c"}),
        )
    )

    assert run.status is S.SUCCEEDED
    assert shop.ran == ["a", "c", "d"]
    assert run.get(timeout=1)["result"] == 3


def test_nothing_is_handled_within_another(shop: Shop) -> None:
    """However long a chain is, and however much a task body starts: the stack stays as it is."""
    depths: list[int] = []
    inner: list[Any] = []

    @shop.stabilize.task("deep")
    def deep() -> None:
        import inspect

        depths.append(len(inspect.stack(0)))
        if current_run() and len(inner) < 20:
            inner.append(shop.stabilize.start(flow(single("a", "deep"))))

    stages = [single(f"s{i}", "deep", requires={f"s{i - 1}"} if i else set()) for i in range(30)]
    run = shop.stabilize.start(flow(*stages))

    assert run.status is S.SUCCEEDED
    assert {each.status for each in inner} == {S.SUCCEEDED}
    assert len(depths) == 50
    assert len(set(depths)) == 1


def test_a_start_in_the_callers_transaction_runs_after_its_commit(shop: Shop, url: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE orders (id INTEGER)"))
    with engine.connect() as connection:
        connection.execute(text("INSERT INTO orders VALUES (1)"))
        kept = shop.stabilize.start(flow(single("a", "note", {"word": "kept"})), connection=connection)
        assert shop.ran == []
        connection.commit()
        assert kept.status is S.SUCCEEDED

        connection.execute(text("INSERT INTO orders VALUES (2)"))
        shop.stabilize.start(flow(single("a", "note", {"word": "dropped"})), connection=connection)
        connection.rollback()
    assert shop.ran == ["kept"]
    engine.dispose()


def test_what_is_due_later_is_left_to_get(shop: Shop) -> None:
    tries: list[int] = []

    @shop.stabilize.task("flaky")
    def flaky() -> None:
        tries.append(1)
        if len(tries) < 3:
            raise TransientError("busy")

    stages = [single("a", "flaky"), single("b", "wait", {"seconds": 0.2}, requires={"a"})]
    run = shop.stabilize.start(flow(*stages))
    late = shop.stabilize.start(flow(single("a", "wait", {"seconds": 3600})))

    assert (len(tries), run.status) == (1, S.RUNNING)
    run.get(timeout=30)
    assert (len(tries), run.status) == (3, S.SUCCEEDED)
    with pytest.raises(WorkflowTimeoutError):
        late.get(timeout=0.2)


def test_a_control_is_handled_at_once(shop: Shop) -> None:
    run = shop.stabilize.start(flow(single("a", "approval"), single("b", "note", requires={"a"})))
    assert run.workflow().stages[0].status is S.SUSPENDED
    run.approve("a", user="kim")
    assert run.status is S.SUCCEEDED

    other = shop.stabilize.start(flow(single("a", "approval")))
    other.cancel()
    assert other.status is S.CANCELED


@pytest.mark.parametrize("propagates", [False, True])
def test_a_failure_is_raised_by_the_start_if_the_app_says_so(url: str, propagates: bool) -> None:
    shop = Shop(url, task_eager_propagates=propagates)

    @shop.stabilize.task("fails")
    def fails() -> None:
        raise ValueError("no funds")

    workflow = flow(single("a", "fails"))
    if propagates:
        with pytest.raises(WorkflowFailedError, match="no funds"):
            shop.stabilize.start(workflow)
    else:
        shop.stabilize.start(workflow)
    assert shop.stabilize.get(workflow.id).status is S.TERMINAL
    shop.close()


def test_an_unknown_type_fails_at_once(url: str) -> None:
    shop = Shop(url, stabilize_check_types=False)
    run = shop.stabilize.start(flow(single("a", "nope")))
    assert run.status is S.TERMINAL
    shop.close()


def test_it_may_be_switched_while_the_process_runs(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    shop.app.conf.task_always_eager = False
    with caplog.at_level(logging.WARNING):
        run = shop.stabilize.start(flow(single("a", "note")))
    assert run.status is S.NOT_STARTED
    assert "could not be published" in caplog.text

    shop.app.conf.task_always_eager = True
    assert shop.stabilize.start(flow(single("a", "note"))).status is S.SUCCEEDED


def test_a_worker_sends_whatever_the_setting_says(shop: Shop) -> None:
    """Its configuration is often that of the tests."""
    assert shop.stabilize.eager is not None
    shop.stabilize.enter_worker()
    assert shop.stabilize.eager is None


def test_threads_do_their_own_work(shop: Shop) -> None:
    results: list[S] = []

    def start() -> None:
        results.append(shop.stabilize.start(flow(single("a", "note"), single("b", "note"))).status)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [S.SUCCEEDED] * 6
