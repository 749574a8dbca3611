from __future__ import annotations

import contextlib

import amqp
import pytest

from tests.services import RabbitService


def publish(service: RabbitService, url: str, queue: str, count: int = 1) -> None:
    with service.channel(url) as channel:
        channel.confirm_select()
        channel.queue_declare(queue, durable=True, auto_delete=False)
        for number in range(count):
            message = amqp.Message(str(number), delivery_mode=2)
            channel.basic_publish_confirm(message, routing_key=queue)


def test_a_virtual_host_isolates(rabbit_service: RabbitService, broker_url: str) -> None:
    other = rabbit_service.add_vhost("other")
    publish(rabbit_service, broker_url, "work")
    assert rabbit_service.queue_names(broker_url) == ["work"]
    assert rabbit_service.queue_length(broker_url, "work") == 1
    assert rabbit_service.queue_names(other) == []
    with pytest.raises(amqp.NotFound):
        rabbit_service.queue_length(other, "work")
    rabbit_service.delete_vhost("other")


def test_queues_can_be_purged_and_deleted(rabbit_service: RabbitService, broker_url: str) -> None:
    publish(rabbit_service, broker_url, "a", 3)
    publish(rabbit_service, broker_url, "b", 2)
    assert rabbit_service.purge_queue(broker_url, "a") == 3
    assert rabbit_service.purge_all(broker_url) == 2
    rabbit_service.delete_queue(broker_url, "a")
    assert rabbit_service.queue_names(broker_url) == ["b"]


def test_connections_can_be_dropped(rabbit_service: RabbitService, broker_url: str) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.suppress(amqp.ConnectionForced, OSError))
        channel = stack.enter_context(rabbit_service.channel(broker_url))
        assert rabbit_service.drop_connections(broker_url) == 1
        with pytest.raises((amqp.ConnectionForced, OSError)):
            channel.connection.drain_events(timeout=5)
    assert rabbit_service.drop_connections(broker_url) == 0


@pytest.mark.slow
def test_restart_keeps_durable_messages(rabbit_service: RabbitService, broker_url: str) -> None:
    publish(rabbit_service, broker_url, "work", 2)
    before = rabbit_service.pid
    rabbit_service.restart()
    assert rabbit_service.pid != before
    assert rabbit_service.queue_length(broker_url, "work") == 2


@pytest.mark.slow
def test_wiping_loses_everything_but_keeps_the_address(
    rabbit_service: RabbitService, broker_url: str
) -> None:
    publish(rabbit_service, broker_url, "work", 2)
    rabbit_service.wipe_data()
    assert rabbit_service.queue_names(broker_url) == []
    publish(rabbit_service, broker_url, "work")
    assert rabbit_service.queue_length(broker_url, "work") == 1
