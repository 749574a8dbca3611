"""What the shop stores."""

from __future__ import annotations

from django.db import models


class Order(models.Model):
    """Something somebody wants."""

    item = models.CharField(max_length=100)
    amount = models.PositiveIntegerField(default=1)
    workflow_id = models.CharField(max_length=26, blank=True)
    charge_id = models.CharField(max_length=50, blank=True)
    parcel = models.CharField(max_length=100, blank=True)
    done = models.BooleanField(default=False)
    placed_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.amount} x {self.item}"


class Stock(models.Model):
    """How much is left of an item."""

    item = models.CharField(max_length=100, unique=True)
    left = models.PositiveIntegerField()

    def __str__(self) -> str:
        return f"{self.left} x {self.item}"
