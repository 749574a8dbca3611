"""Celery tasks as stages, on real workers that are left in peace."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from stabilize_celery import Stabilize, StageExecution, TaskExecution, Workflow
from stabilize_celery.errors import WorkflowFailedError
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.persistence.tables import messages
from tests.integration import celery_shop
from tests.integration.conftest import make_shop
from tests.integration.shop_deployment import Shop, task_of
from tests.services import PostgresService, RabbitService

POOLS = ("prefork", "threads")


@pytest.fixture(scope="module", params=POOLS)
def busy(
    request: pytest.FixtureRequest,
    rabbit_service: RabbitService,
    postgres_service: PostgresService,
    postgres_template: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Shop]:
    """A shop with one worker, for all tests of a pool."""
    name = f"shop_{request.param}_{uuid.uuid4().hex[:8]}"
    broker = rabbit_service.add_vhost(name)
    database = postgres_service.create_database(name, template=postgres_template)
    folder = tmp_path_factory.mktemp(name)
    with make_shop(rabbit_service, broker, database, folder) as shop:
        queues = ("celery", "special", "stabilize", "stabilize.tasks")
        shop.worker(pool=request.param, concurrency=3, queues=queues)
        yield shop
    rabbit_service.delete_vhost(name)
    postgres_service.drop_database(name)


def every_message(stabilize: Stabilize) -> list[dict[str, Any]]:
    with stabilize.store.database.autocommit() as connection:
        return [dict(row._mapping) for row in connection.execute(select(messages))]


def failure(shop: Shop, name: str, *args: object) -> tuple[str, object]:
    run = shop.start_one(name, *args)
    with pytest.raises(WorkflowFailedError) as caught:
        run.get(timeout=40)
    return caught.value.errors[name], task_of(run, name)


def test_values_go_from_stage_to_stage(busy: Shop) -> None:
    run = busy.start(
        busy.stage("charge", busy.sig("charge", 42, amount=7)),
        busy.stage("more", busy.sig("add", "{{ charge.amount }}", y="{{ amount }}"), ("charge",)),
        busy.stage("text", busy.sig("add", "for {{ charge.charge_id }}", ": {{lines}}"), ("more",)),
    )
    outputs = run.get(timeout=40)
    assert outputs["charge_id"] == "ch_42"
    assert run.workflow().stage_by_ref_id("more").outputs == {"result": 14}
    assert outputs["result"] == "for ch_42: [42]"
    assert task_of(run, "charge").attempts == 1
    busy.until(lambda: busy.messages() == 0, "the end of all messages")


def test_it_runs_as_itself_with_an_id_that_stays(busy: Shop) -> None:
    run = busy.start_one("charge", 1)
    run.get(timeout=40)
    task = task_of(run, "charge")
    event = busy.wait_event("charge", id=f"{task.id}-0")
    assert event["name"] == "shop.charge"
    (launch,) = busy.history(run, "launch")
    assert launch["details"]["celery_task_id"] == f"{task.id}-0"
    assert launch["details"]["queue"] == "celery"


def test_its_own_route_and_the_options_of_the_signature_hold(busy: Shop) -> None:
    assert busy.start_one("routed").get(timeout=40) == {"result": "special"}
    run = busy.start(busy.stage("r", busy.sig("routed").set(queue="celery", priority=3)))
    assert run.get(timeout=40) == {"result": "celery"}


def test_a_failure_has_the_traceback_and_follows_the_stages_policy(busy: Shop) -> None:
    error, task = failure(busy, "fail")
    assert re.fullmatch(r"ConnectionError: no money \(celery_shop.py:\d+\)", error)
    assert "in fail\n" in task.task_exception_details["details"]["traceback"]
    assert task.attempts == 1
    run = busy.start(
        busy.stage("fail", busy.sig("fail"), continuePipelineOnFailure=True),
        busy.stage("after", busy.sig("add", 1, 1), ("fail",)),
    )
    assert run.get(timeout=40) == {"result": 2}
    assert run.workflow().stage_by_ref_id("fail").status is S.FAILED_CONTINUE


def test_celerys_own_retries_are_seen(busy: Shop) -> None:
    run = busy.start_one("flaky", 3)
    assert run.get(timeout=40) == {"result": 3}
    task = task_of(run, "flaky")
    assert task.attempts == 4
    assert task.last_error["details"]["error"] == "try 2"
    retries = busy.history(run, "retry")
    assert [entry["details"]["attempt"] for entry in retries] == [1, 2, 3]
    assert "try 0" in retries[0]["reason"]
    # Nothing was launched twice for them.
    assert len(busy.history(run, "launch")) == 1


def test_retries_that_are_used_up_are_a_failure(busy: Shop) -> None:
    before = len(busy.events("retry_by_hand"))
    error, task = failure(busy, "retry_by_hand")
    assert re.fullmatch(r"KeyError: 'gone' \(celery_shop.py:\d+\)", error)
    assert len(busy.events("retry_by_hand")) - before == 3
    assert task.attempts == 3


def test_results_nobody_was_to_see(busy: Shop) -> None:
    assert busy.start_one("object").get(timeout=40) == {}
    assert busy.start_one("ignored").get(timeout=40) == {"result": 5}
    error, _ = failure(busy, "object_wanted")
    assert "not JSON" in error


def test_times_come_back_as_times(busy: Shop) -> None:
    run = busy.start(
        busy.stage("today", busy.sig("today"), result_key="day"),
        busy.stage("dates", busy.sig("dates", "{{ today.day }}"), ("today",)),
    )
    run.get(timeout=40)
    day, kind = run.workflow().stage_by_ref_id("dates").outputs["result"]
    assert kind in ("date", "datetime")
    assert day["__value__"].startswith("2024-02-29")


def test_a_task_made_of_a_class(busy: Shop) -> None:
    assert busy.start_one("legacy", 2, 3).get(timeout=40) == {"sum": 5}


def test_ignore_skips_and_reject_fails(busy: Shop) -> None:
    run = busy.start(
        busy.stage("ignore", busy.sig("ignore")), busy.stage("add", busy.sig("add", 1), ("ignore",))
    )
    assert run.get(timeout=40) == {"result": 1}
    assert task_of(run, "ignore").status is S.SKIPPED
    error, _ = failure(busy, "reject")
    assert "rejected its message: not for me" in error


def test_a_rejected_message_that_is_put_back_is_another_attempt(busy: Shop) -> None:
    run = busy.start_one("requeue", str(busy.gate(uuid.uuid4().hex)))
    assert run.get(timeout=40) == {"result": "second time"}
    assert task_of(run, "requeue").attempts == 2


def test_replace_and_exit_are_clear_failures(busy: Shop) -> None:
    assert "replaced itself" in failure(busy, "replace")[0]
    assert "exit code 3" in failure(busy, "exit", 3)[0]


def test_an_unknown_name_fails_the_stage(busy: Shop) -> None:
    run = busy.start(busy.stage("add", busy.sig("add", "{{ chrage.id }}")))
    with pytest.raises(WorkflowFailedError) as caught:
        run.get(timeout=40)
    assert all(part in caught.value.errors["add"] for part in ("stage add", "args[0]", "'chrage'"))


def test_wrong_arguments_and_unknown_tasks_fail(busy: Shop) -> None:
    error, _ = failure(busy, "charge")
    assert "missing 1 required positional argument: 'order_id'" in error
    run = busy.start(StageExecution.single("no", "celery", {"task": "shop.unknown"}))
    with pytest.raises(
        WorkflowFailedError, match=r"no Celery task shop\.unknown\. Worker \S+ does not know it"
    ):
        run.get(timeout=60)
    details = task_of(run, "no").task_exception_details["details"]
    assert "has no Celery task shop.unknown" in details["error"]


def test_a_waiting_task_of_a_canceled_workflow_never_runs(busy: Shop) -> None:
    mark = uuid.uuid4().hex
    run = busy.start(busy.stage("slow", busy.sig("slow", "/", mark).set(queue="nobody")))
    busy.until(lambda: busy.history(run, "launch"), "the launch")
    busy.wait_queued("nobody")
    run.cancel(user="kim")
    assert run.wait(timeout=40) is S.CANCELED
    busy.until(lambda: busy.messages() == 0, "the end of all messages")
    with busy.worker(queues=["nobody"], pool="solo") as worker:
        worker.wait_log("Discarding revoked task|ignored")
    assert not [event for event in busy.events("slow") if event["mark"] == mark]


def test_a_task_that_is_revoked_or_expires_fails(busy: Shop) -> None:
    run = busy.start(busy.stage("add", busy.sig("add", 1).set(expires=-1)))
    with pytest.raises(WorkflowFailedError, match="expired before a worker began it"):
        run.get(timeout=40)


def test_its_own_before_start_is_called(busy: Shop) -> None:
    gate = busy.gate(uuid.uuid4().hex)
    gate.touch()
    run = busy.start_one("own_base", str(gate))
    assert run.get(timeout=40) == {"result": "done"}
    busy.wait_event("before_start", task_id=f"{task_of(run, 'own_base').id}-0")


def test_an_embedded_engine_calls_the_task_in_place(busy: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_LOG", str(busy.log))
    busy.app.set_current()
    with Stabilize.embedded() as engine:
        stages = [
            busy.stage("flaky", busy.sig("flaky", 2)),
            busy.stage("add", busy.sig("add", "{{ flaky.result }}", 1), ("flaky",)),
        ]
        assert engine.run(Workflow.create("a", "b", stages), timeout=20).get() == {"result": 3}


def test_a_task_among_others_of_a_stage(busy: Shop) -> None:
    context = {
        "task": "shop.add",
        "args": [1],
        "kwargs": {"y": "{{ given }}"},
        "given": 4,
        "queue": "special",
    }
    stage = StageExecution.create("any", "send", "send", context)
    stage.tasks = [TaskExecution.create("before", "noop"), TaskExecution.create("send", "celery")]
    run = busy.start(stage)
    assert run.get(timeout=40) == {"result": 5}
    assert [task.attempts for task in run.workflow().stages[0].tasks] == [1, 1]


def test_an_eager_app_calls_its_tasks_in_place(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(celery_shop.LOG, str(tmp_path / "log"))
    app, stabilize = celery_shop.make_app("memory://", postgres_url, task_always_eager=True)
    stage = StageExecution.celery("add", app.tasks["shop.add"].s(1, 2))
    run = stabilize.start(Workflow.create("shop", "eager", [stage]))
    # An eager app has no workers: the test is the worker.
    while waiting := every_message(stabilize):
        for row in waiting:
            stabilize.dispatcher.process(row["id"], row["type"])
    assert run.get(timeout=20) == {"result": 3}
    stabilize.close()
