"""The work of the order workflow; every worker finds this file by itself."""

from __future__ import annotations

from django.dispatch import receiver
from project.celery import app, stabilize

from shop.models import Order
from stabilize_celery import StageExecution, Workflow, WorkflowStatus, current_run
from stabilize_celery.contrib.django.signals import workflow_ended


@stabilize.task("charge")
def charge(order_id: int):
    # The key stays the same when a worker dies and the charge is tried again: payment providers want just that.
    charge_id = f"ch_{order_id}_{current_run().idempotency_key[-6:]}"
    Order.objects.filter(id=order_id).update(charge_id=charge_id)
    return {"charge_id": charge_id}


@app.task(name="shop.ship")
def ship(order_id: int, charge_id: str) -> str:
    """A Celery task as everybody has them."""
    order = Order.objects.get(id=order_id)
    order.parcel = f"parcel with {order}"
    order.save(update_fields=["parcel"])
    return order.parcel


def order_workflow(order: Order) -> Workflow:
    return Workflow.create(
        application="shop",
        name="order",
        stages=[
            StageExecution.single("charge", "charge", {"order_id": order.id}),
            StageExecution.celery("ship", ship.s(order.id, "{{ charge.charge_id }}"), requires={"charge"}),
        ],
        context={"order_id": order.id},
    )


@receiver(workflow_ended)
def note_the_end(workflow_id: str, status: WorkflowStatus, **_):
    if status is WorkflowStatus.SUCCEEDED:
        Order.objects.filter(workflow_id=workflow_id).update(done=True)
