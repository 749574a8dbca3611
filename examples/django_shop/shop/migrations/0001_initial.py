"""The shop's tables."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.CreateModel(
            name="Order",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("item", models.CharField(max_length=100)),
                ("amount", models.PositiveIntegerField(default=1)),
                ("workflow_id", models.CharField(blank=True, max_length=26)),
                ("charge_id", models.CharField(blank=True, max_length=50)),
                ("parcel", models.CharField(blank=True, max_length=100)),
                ("done", models.BooleanField(default=False)),
                ("placed_at", models.DateTimeField(auto_now_add=True)),
            ],
        ),
        migrations.CreateModel(
            name="Stock",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("item", models.CharField(max_length=100, unique=True)),
                ("left", models.PositiveIntegerField()),
            ],
        ),
    ]
