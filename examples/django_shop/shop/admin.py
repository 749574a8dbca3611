"""Orders in the admin, each with a link to its workflow."""

from __future__ import annotations

from django.contrib import admin
from django.urls import reverse
from django.utils.html import format_html

from shop.models import Order, Stock

admin.site.register(Stock)


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ("id", "item", "amount", "workflow", "parcel", "done")

    @admin.display(description="workflow")
    def workflow(self, order: Order):
        if not order.workflow_id:
            return ""
        url = reverse("admin:stabilize_workflow_change", args=[order.workflow_id])
        return format_html('<a href="{}">{}</a>', url, order.workflow_id)
