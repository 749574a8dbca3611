"""Pages for tests of requests that are transactions."""

from __future__ import annotations

from collections.abc import Callable

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.urls import path

from tests.contrib.django.app.models import Order

#: What the view does besides making an order; set by the test.
within_request: list[Callable[[], object]] = []


def order(_request: HttpRequest) -> HttpResponse:
    Order.objects.create(item="lamp")
    for call in within_request:
        call()
    return HttpResponse("ordered")


urlpatterns = [path("order/", order), path("admin/", admin.site.urls)]
