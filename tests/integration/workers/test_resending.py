"""A broker that loses a message again and again: it is sent again after the same delay each time (promise P4)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery

from stabilize_celery.clock import FakeClock
from stabilize_celery.delivery.relay import Relay
from stabilize_celery.messages import StartWorkflow
from stabilize_celery.models.ids import new_id
from stabilize_celery.persistence.rows import new_row
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.settings import Settings
from tests.services import RabbitService

SETTINGS = Settings.of(resend_delay=10, resend_delay_max=300, queue="lossy")


class Lossy:
    """One message, the relay that sends it, and a broker that may lose it."""

    def __init__(self, url: str, broker: str, rabbit: RabbitService | None) -> None:
        self.store = WorkflowStore(url, clock=FakeClock())
        self.app = Celery("lossy", broker=broker, set_as_current=False)
        self.app.conf.task_queues = []
        self.app.amqp.queues.add("lossy")
        self.relay = Relay(self.app, self.store, SETTINGS)
        self._rabbit, self._broker = rabbit, broker
        self.add()

    def add(self) -> None:
        self.store.insert_messages([new_row(StartWorkflow(workflow_id=new_id()), SETTINGS, self.store.now())])

    def waiting(self) -> int:
        if self._rabbit is not None:
            return self._rabbit.queue_length(self._broker, "lossy")
        return self.relay.depth("lossy")

    def lose(self) -> None:
        with self.app.connection_for_write() as connection:
            connection.default_channel.queue_purge("lossy")

    def after(self, seconds: float) -> int:
        """How many are in the queue once the relay has looked, so much later."""
        self.store.clock.advance(seconds)
        self.relay.sweep()
        return self.waiting()

    def close(self) -> None:
        self.relay.disconnect()
        self.app.close()
        self.store.close()


@pytest.fixture(params=["amqp", "memory"])
def lossy(request: pytest.FixtureRequest, postgres_url: str) -> Iterator[Lossy]:
    rabbit = request.getfixturevalue("rabbit_service") if request.param == "amqp" else None
    broker = request.getfixturevalue("broker_url") if rabbit is not None else "memory://"
    made = Lossy(postgres_url, broker, rabbit)
    yield made
    made.lose()
    made.close()


def test_what_is_lost_each_time_is_sent_after_the_same_delay(lossy: Lossy) -> None:
    assert lossy.after(SETTINGS.resend_delay) == 1
    for _ in range(7):
        lossy.lose()
        assert lossy.after(SETTINGS.resend_delay - 0.5) == 0
        assert lossy.after(0.5) == 1


def test_what_merely_waits_is_not_sent_again(lossy: Lossy) -> None:
    for _ in range(3):
        lossy.add()
    assert lossy.after(SETTINGS.resend_delay) == 4
    for _ in range(7):
        assert lossy.after(SETTINGS.resend_delay * 2) == 4


@pytest.mark.parametrize("lossy", ["memory"], indirect=True)
def test_where_all_there_are_are_taken_at_once_the_delay_grows(lossy: Lossy) -> None:
    """Workers without a limit for what they take at once keep every queue empty, however busy they are."""
    lossy.app.conf.worker_prefetch_multiplier = 0
    assert lossy.after(SETTINGS.resend_delay) == 1
    lossy.lose()
    assert lossy.after(SETTINGS.resend_delay) == 0
    assert lossy.after(SETTINGS.resend_delay) == 1
    lossy.lose()
    assert lossy.after(3 * SETTINGS.resend_delay) == 0
