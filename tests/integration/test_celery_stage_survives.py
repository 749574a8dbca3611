"""Celery tasks as stages: what workers, brokers and databases do to them on bad days."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from sqlalchemy import select

from stabilize_celery.errors import WorkflowFailedError
from stabilize_celery.models.status import WorkflowStatus as S
from stabilize_celery.persistence.tables import messages
from tests.integration.celery_shop import DIE_AFTER, LEASE
from tests.integration.shop_deployment import Shop, task_of
from tests.services import PostgresService

ENGINE = ("stabilize", "stabilize.tasks")
ALL = ("celery", *ENGINE)


def row_of(shop: Shop) -> dict:
    """The only message there is."""
    with shop.stabilize.store.database.autocommit() as connection:
        return dict(connection.execute(select(messages)).one()._mapping)


def launches(shop: Shop, run) -> int:
    return len(shop.history(run, "launch"))


@pytest.mark.parametrize("pool", ["prefork", "threads"])
@pytest.mark.parametrize("name", ["slow", "slow_late"])
def test_a_worker_is_killed_and_another_does_it(shop: Shop, pool: str, name: str) -> None:
    first = shop.worker(pool=pool, queues=ALL)
    run = shop.start_one(name, str(shop.gate()), "x")
    shop.wait_event("slow")
    first.kill()
    shop.gate().touch()
    shop.worker(pool=pool, queues=ALL)
    assert run.get(timeout=60) == {"result": "slow x"}
    assert task_of(run, name).attempts == 2
    assert len({event["id"] for event in shop.events("slow")}) == 1
    assert len(shop.history(run, "task")) == 2
    shop.until(lambda: shop.messages() == 0, "the end of all messages")


@pytest.mark.parametrize("name", ["die", "die_late"])
def test_a_task_that_takes_its_process_along_is_repeated(shop: Shop, name: str) -> None:
    shop.worker(queues=ALL, concurrency=2)
    run = shop.start_one(name, str(shop.gate()))
    assert run.get(timeout=60) == {"result": "survived"}
    assert task_of(run, name).attempts == 2
    assert len(shop.events("die")) == 2


def test_the_process_dies_between_the_end_of_the_task_and_the_report(shop: Shop) -> None:
    shop.worker(queues=ALL, concurrency=2, env={DIE_AFTER: str(shop.gate())})
    run = shop.start_one("add", 1, 2)
    assert run.get(timeout=60) == {"result": 3}
    assert len(shop.events("add")) == 2
    assert task_of(run, "add").attempts == 2


def test_a_worker_that_was_frozen_reports_too_late(shop: Shop) -> None:
    """Two runs of one task: the second one's result counts, that of the first is refused."""
    frozen = shop.worker(queues=["frozen"])
    shop.worker(queues=ENGINE)
    run = shop.start(shop.stage("slow", shop.sig("slow", str(shop.gate()), "x").set(queue="frozen")))
    shop.wait_event("slow")
    os.killpg(frozen.pid, signal.SIGSTOP)
    shop.until(lambda: launches(shop, run) == 2, "another launch")
    other = shop.worker(queues=["frozen"])
    shop.wait_event("slow", 2)
    os.killpg(frozen.pid, signal.SIGCONT)
    frozen.wait_log("is told to stop")
    shop.gate(f"{shop.gate().name}.{shop.events('slow')[0]['pid']}").touch()
    frozen.wait_log("its lease was lost")
    assert run.status is S.RUNNING
    shop.gate().touch()
    assert run.get(timeout=60) == {"result": "slow x"}
    assert "lease was lost" not in other.output
    assert task_of(run, "slow").attempts == 2
    assert len(shop.history(run, "task")) == 2


def test_a_task_that_waits_its_turn_is_not_sent_again(shop: Shop) -> None:
    shop.worker(queues=ENGINE)
    run = shop.start_one("add", 1, 2)
    shop.until(lambda: launches(shop, run), "the launch")
    # The relay looks after it three times, and finds it in its queue.
    shop.until(lambda: row_of(shop)["sends"] >= 4, "the relay's looks")
    assert launches(shop, run) == 1
    assert shop.rabbit.queue_length(shop.broker, "celery") == 1
    shop.worker(queues=["celery"])
    assert run.get(timeout=60) == {"result": 3}


def test_a_wiped_broker_is_filled_again(shop: Shop) -> None:
    shop.worker(queues=ENGINE)
    run = shop.start_one("add", 1, 2)
    shop.wait_queued("celery")
    shop.rabbit.delete_queue(shop.broker, "celery")
    shop.until(lambda: launches(shop, run) == 2, "another launch")
    shop.worker(queues=["celery"])
    assert run.get(timeout=60) == {"result": 3}
    # What was never begun was no attempt.
    assert task_of(run, "add").attempts == 1


def test_of_two_messages_for_one_stage_one_runs(shop: Shop) -> None:
    """A worker holds a message that its queue does not show any more, so it is sent again."""
    shop.worker(queues=ENGINE)
    shop.worker(queues=["celery"], arguments=["--prefetch-multiplier", "4"])
    busy = shop.start_one("slow", str(shop.gate()), "x")
    shop.wait_event("slow")
    run = shop.start_one("add", 1, 2)
    shop.until(lambda: launches(shop, run) == 2, "another launch")
    shop.gate().touch()
    assert run.get(timeout=60) == {"result": 3}
    assert busy.get(timeout=60)
    shop.workers[1].wait_log("shop.add.*ignored")
    assert len(shop.events("add")) == 1


def test_a_second_delivery_while_the_task_runs_is_refused(shop: Shop) -> None:
    shop.worker(queues=ENGINE)
    worker = shop.worker(queues=["celery"], concurrency=2)
    run = shop.start_one("slow_late", str(shop.gate()), "x")
    shop.wait_event("slow")
    shop.rabbit.drop_connections(shop.broker)
    worker.wait_log("slow_late.*ignored")
    shop.gate().touch()
    assert run.get(timeout=60) == {"result": "slow x"}
    assert len(shop.events("slow")) == 1


def test_a_cold_shutdown_is_no_failure(shop: Shop) -> None:
    first = shop.worker(queues=ALL)
    run = shop.start_one("slow_late", str(shop.gate()), "x")
    shop.wait_event("slow")
    first.kill(signal.SIGQUIT)
    first.wait(60)
    shop.gate().touch()
    shop.worker(queues=ALL)
    assert run.get(timeout=60) == {"result": "slow x"}
    assert task_of(run, "slow_late").attempts == 1


def test_the_database_is_away_when_the_task_ends(shop: Shop, postgres_service: PostgresService) -> None:
    worker = shop.worker(queues=ALL, concurrency=2)
    run = shop.start_one("slow", str(shop.gate()), "x")
    shop.wait_event("slow")
    # Taking over is committed without waiting for the disk; the first heartbeat waits for it.
    begun = row_of(shop)["send_at"]
    shop.until(lambda: row_of(shop)["send_at"] != begun, "a heartbeat")
    postgres_service.kill()
    shop.gate().touch()
    shop.wait_event("slow_end")
    worker.wait_log("cannot be recorded yet")
    postgres_service.start()
    shop.stabilize.store.database.dispose()
    assert run.get(timeout=60) == {"result": "slow x"}
    assert len(shop.events("slow")) == 1


def test_a_paused_workflow_begins_nothing(shop: Shop) -> None:
    shop.worker(queues=ENGINE)
    run = shop.start_one("add", 1, 2)
    shop.wait_queued("celery")
    run.pause(user="kim")
    shop.until(lambda: run.status is S.PAUSED, "the pause")
    shop.worker(queues=["celery"])
    shop.until(lambda: task_of(run, "add").status is S.PAUSED, "the paused task")
    assert not shop.events("add")
    run.resume(user="kim")
    assert run.get(timeout=60) == {"result": 3}
    assert len(shop.events("add")) == 1


def test_a_failed_stage_is_restarted_under_another_id(shop: Shop) -> None:
    shop.worker(queues=ALL)
    file = shop.gate("number")
    run = shop.start(
        shop.stage("read", shop.sig("read", str(file))),
        shop.stage("add", shop.sig("add", "{{ read.result }}", 1), ("read",)),
    )
    with pytest.raises(WorkflowFailedError, match="No such file"):
        run.get(timeout=60)
    file.write_text("4")
    run.restart_stage("read", user="kim")
    shop.until(lambda: run.status is S.SUCCEEDED, "the end")
    assert run.get()["result"] == 5
    ids = [entry["details"]["celery_task_id"] for entry in shop.history(run, "launch")]
    assert [i.rsplit("-", 1)[1] for i in ids] == ["0", "1", "0"]


def test_a_running_task_of_a_workflow_canceled_by_force_is_ended(shop: Shop) -> None:
    worker = shop.worker(queues=ALL, concurrency=2)
    run = shop.start_one("slow", str(shop.gate()), "x")
    pid = shop.wait_event("slow")["pid"]
    run.cancel(user="kim", force=True)
    assert run.wait(timeout=60) is S.CANCELED
    shop.until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the process")
    assert pid not in worker.pool_pids()
    shop.until(lambda: shop.messages() == 0, "the end of all messages")
    assert not shop.events("slow_end")


def test_time_limits_hold(shop: Shop) -> None:
    shop.worker(queues=ALL, concurrency=2, env={LEASE: "60"})
    for name, error in (("soft", "SoftTimeLimitExceeded"), ("hard", "TimeLimitExceeded")):
        run = shop.start_one(name)
        with pytest.raises(WorkflowFailedError, match=error):
            run.get(timeout=60)
        assert task_of(run, name).attempts == 1


def test_a_stage_has_a_time_limit_of_its_own(shop: Shop) -> None:
    shop.worker(queues=ALL, concurrency=2)
    run = shop.start(shop.stage("slow", shop.sig("slow", str(shop.gate())), stageTimeoutMs=500))
    with pytest.raises(WorkflowFailedError, match="stageTimeoutMs"):
        run.get(timeout=60)
    pid = shop.wait_event("slow")["pid"]
    shop.until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the process")


def test_a_task_revoked_by_a_person_fails_its_stage(shop: Shop) -> None:
    worker = shop.worker(queues=ALL, concurrency=2)
    run = shop.start_one("slow", str(shop.gate()), "x")
    celery_id = shop.wait_event("slow")["id"]
    shop.app.control.revoke(celery_id, terminate=True)
    # Celery reports the one or the other, depending on whether the process or the message is found first.
    with pytest.raises(WorkflowFailedError, match=r"was (terminated|revoked)"):
        run.get(timeout=60)
    worker.wait_log("Terminating|terminated")
    assert not shop.events("slow_end")


def test_with_every_message_through_the_broker(shop: Shop) -> None:
    shop.worker(queues=ALL, concurrency=2, env={"STABILIZE_INLINE": "0"})
    run = shop.start(
        shop.stage("charge", shop.sig("charge", 1, amount=2)),
        shop.stage("flaky", shop.sig("flaky", 2), ("charge",)),
        shop.stage("add", shop.sig("add", "{{ charge.amount }}", "{{ flaky.result }}"), ("flaky",)),
    )
    assert run.get(timeout=60)["result"] == 4
    shop.until(lambda: shop.messages() == 0, "the end of all messages")
