"""Pages: placing an order, and the admin with the workflows in it."""

from __future__ import annotations

from django.contrib import admin
from django.urls import path
from shop.views import place_order, show_order

urlpatterns = [
    path("admin/", admin.site.urls),
    path("orders/", place_order),
    path("orders/<int:order_id>/", show_order, name="order"),
]
