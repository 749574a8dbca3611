"""How to test code that starts workflows: no broker is needed to see whether it does.

python manage.py test
"""

from __future__ import annotations

from django.test import TestCase, TransactionTestCase, override_settings

from shop.models import Order, Stock
from shop.stages import order_workflow
from shop.views import OutOfStockError, sell
from stabilize_celery import Stabilize
from stabilize_celery.contrib.django.models import Workflow


class SellTest(TestCase):
    """Each test is a transaction that is rolled back: a workflow that starts in it is seen by this test alone."""

    def test_an_order_starts_its_workflow(self):
        Stock.objects.create(item="lamp", left=1)
        with self.captureOnCommitCallbacks() as callbacks:
            order = sell("lamp", 1)
        workflow = Workflow.objects.get(id=order.workflow_id)
        assert (workflow.name, workflow.status) == ("order", "NOT_STARTED")
        assert workflow.context == {"order_id": order.id}
        assert len(callbacks) == 1  # what a commit would send to the workers

    def test_an_order_that_is_refused_starts_none(self):
        with self.assertRaises(OutOfStockError):  # noqa: PT027
            sell("lamp", 1)
        assert Workflow.objects.count() == 0


@override_settings(CELERY_TASK_ALWAYS_EAGER=True)
class RunTest(TransactionTestCase):
    """The commit runs the workflow, its tasks included, before the test goes on."""

    def test_an_order_is_done(self):
        Stock.objects.create(item="lamp", left=1)
        order = sell("lamp", 1)
        order.refresh_from_db()
        assert Workflow.objects.get(id=order.workflow_id).status == "SUCCEEDED"
        assert order.parcel == f"parcel with {order}"


class OrderWorkflowTest(TestCase):
    """The stages themselves run in an engine that lives in this process and knows stand-ins for the real work."""

    def test_what_is_charged_is_shipped(self):
        order = Order.objects.create(item="lamp")
        with Stabilize.embedded() as engine:
            engine.registry.register("charge", lambda stage: {"charge_id": "ch_1"})
            engine.registry.register(
                "celery", lambda stage: {"result": f"shipped after {stage.context['charge_id']}"}
            )
            run = engine.run(order_workflow(order), timeout=60)
            assert run.get()["result"] == "shipped after ch_1"
