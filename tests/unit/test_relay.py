"""A broker that is away for long: what is overdue is sent as soon as it is back, not after a growing delay."""

from __future__ import annotations

from datetime import timedelta

import pytest
from celery import Celery

from stabilize_celery.clock import FakeClock
from stabilize_celery.delivery.relay import Relay
from stabilize_celery.messages import StartWorkflow
from stabilize_celery.models.ids import new_id
from stabilize_celery.persistence.rows import WAITS_IN, new_row
from stabilize_celery.persistence.schema import create_tables
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.settings import Settings

SETTINGS = Settings.of(relay_interval=0.01, resend_delay=10)


@pytest.fixture
def store(tmp_path):
    url = f"sqlite:///{tmp_path / 'relay.db'}"
    create_tables(url)
    made = WorkflowStore(url, clock=FakeClock())
    yield made
    made.database.dispose()


@pytest.fixture
def relay(store):
    # Nobody listens on port 1.
    app = Celery("tests", broker="amqp://127.0.0.1:1//", set_as_current=False)
    yield Relay(app, store, SETTINGS)
    app.close()


@pytest.mark.parametrize("owner", [None, WAITS_IN + "celery"], ids=["sent", "handed over"])
def test_what_cannot_be_sent_is_not_put_off(store, relay, owner):
    row = new_row(StartWorkflow(workflow_id=new_id()), SETTINGS, store.now()) | {"lease_owner": owner}
    store.insert_messages([row])
    for _ in range(3):
        store.clock.advance(600)
        relay.turn()

    left = store.message(row["id"])

    assert relay.failures == 3
    assert left["sends"] == row["sends"]
    assert left["send_at"] - store.now() <= timedelta(seconds=SETTINGS.relay_interval)
