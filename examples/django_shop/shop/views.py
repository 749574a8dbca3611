"""Placing an order: the order, the stock and the workflow change in one transaction, or not at all."""

from __future__ import annotations

from django.db import transaction
from django.db.models import F
from django.http import Http404, HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from project.celery import stabilize

from shop.models import Order, Stock
from shop.stages import order_workflow


class OutOfStockError(Exception):
    """There is not enough left."""


@csrf_exempt
@require_POST
def place_order(request: HttpRequest) -> JsonResponse:
    try:
        order = sell(request.POST["item"], int(request.POST.get("amount", "1")))
    except OutOfStockError as error:
        return JsonResponse({"error": str(error)}, status=409)
    return JsonResponse({"order": order.id, "workflow": order.workflow_id}, status=201)


@transaction.atomic
def sell(item: str, amount: int) -> Order:
    order = Order.objects.create(item=item, amount=amount)
    # A part of this transaction, as every other statement here.
    order.workflow_id = stabilize.start(order_workflow(order)).id
    order.save(update_fields=["workflow_id"])
    if not Stock.objects.filter(item=item, left__gte=amount).update(left=F("left") - amount):
        raise OutOfStockError(f"there are no {amount} {item} left")
    return order


def show_order(_request: HttpRequest, order_id: int) -> JsonResponse:
    order = Order.objects.filter(id=order_id).first()
    if order is None:
        raise Http404
    return JsonResponse(
        {
            "order": str(order),
            "status": stabilize.get(order.workflow_id).status.name,
            "charge_id": order.charge_id,
            "parcel": order.parcel,
        }
    )
