"""The metrics page that Flower has anyway tells what the database tells."""

from __future__ import annotations

from stabilize_celery import StageExecution
from tests.contrib.flower.deployment import Shop


def test_flower_serves_the_metrics_of_workflows(shop: Shop) -> None:
    def told() -> str:
        return shop.flower.ask("/metrics").text

    assert "flower_events_total" in told()
    # What is there when it is asked for the first time is not counted.
    shop.until(lambda: "stabilize_up 1.0" in told(), "the first answer of the database")
    shop.start(StageExecution.single("a", "noop"), name="measured").get(timeout=90)
    line = 'stabilize_workflows_total{application="shop",name="measured",status="SUCCEEDED"} 1.0'
    shop.until(lambda: line in told(), "the workflow to be counted")
