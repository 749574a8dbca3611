"""The first tables."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models

from stabilize_celery.contrib.django.database import ApplyRevision


def _known(name: str, table: str, **options: Any) -> migrations.CreateModel:
    # Django looks after none of their columns: what others may refer to is the primary key.
    return migrations.CreateModel(
        name,
        fields=[("id", models.CharField("ID", max_length=26, primary_key=True, serialize=False))],
        options={"managed": False, "db_table": table, **options},
    )


class Migration(migrations.Migration):
    """The tables, and the models by which they are looked at."""

    initial = True
    dependencies: list[tuple[str, str]] = []
    operations = [
        ApplyRevision("0001"),
        _known("Workflow", "stabilize_workflows", ordering=("-id",)),
        _known("Stage", "stabilize_stages", ordering=("workflow", "position")),
        _known(
            "Transition", "stabilize_history", ordering=("at", "step", "id"), verbose_name_plural="history"
        ),
        _known("Message", "stabilize_messages", ordering=("due_at", "id")),
        _known("DeadLetter", "stabilize_dead_letters", ordering=("-died_at", "-id")),
    ]
