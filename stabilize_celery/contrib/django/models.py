"""The engine's tables as models to be read: what is written there is the engine's business.

They have the columns that people look at, not all.  Statuses are the names of
:class:`~stabilize_celery.models.status.WorkflowStatus`.
"""

from __future__ import annotations

from django.db import models

from stabilize_celery.contrib.django.fields import Json
from stabilize_celery.models.status import WorkflowStatus

STATUSES = [(status.name, status.name.replace("_", " ").lower()) for status in WorkflowStatus]


def _id() -> models.CharField:
    return models.CharField("ID", max_length=26, primary_key=True)


def _status() -> models.CharField:
    return models.CharField(max_length=32, choices=STATUSES)


def _workflow(related_name: str) -> models.ForeignKey:
    # Messages and dead letters may outlive their workflow.
    return models.ForeignKey(
        "Workflow", models.DO_NOTHING, db_constraint=False, null=True, related_name=related_name
    )


class Workflow(models.Model):
    """One execution of a graph of stages."""

    id = _id()
    application = models.TextField()
    name = models.TextField()
    status = _status()
    context = Json()
    trigger = Json()
    created_at = models.DateTimeField()
    start_time = models.DateTimeField(null=True)
    end_time = models.DateTimeField(null=True)
    is_canceled = models.BooleanField()
    canceled_by = models.TextField(null=True)
    cancellation_reason = models.TextField(null=True)
    pipeline_config_id = models.TextField(null=True)
    dedup_key = models.TextField(null=True)
    parent_workflow = models.ForeignKey(
        "self", models.DO_NOTHING, db_constraint=False, null=True, related_name="sub_workflows"
    )

    class Meta:
        """Ids sort by time."""

        managed = False
        db_table = "stabilize_workflows"
        ordering = ("-id",)

    def __str__(self) -> str:
        return f"{self.name} {self.id}"


class Stage(models.Model):
    """A stage with its tasks."""

    id = _id()
    workflow = _workflow("stages")
    ref_id = models.TextField()
    type = models.TextField()
    name = models.TextField()
    status = _status()
    generation = models.IntegerField()
    position = models.IntegerField()
    context = Json()
    outputs = Json()
    tasks = Json()
    parent_stage = models.ForeignKey(
        "self", models.DO_NOTHING, db_constraint=False, null=True, related_name="synthetic_stages"
    )
    phase = models.CharField(max_length=32, null=True)
    start_time = models.DateTimeField(null=True)
    end_time = models.DateTimeField(null=True)

    class Meta:
        """In the order they were given or planned."""

        managed = False
        db_table = "stabilize_stages"
        ordering = ("workflow", "position")

    def __str__(self) -> str:
        return str(self.name or self.ref_id)


class Transition(models.Model):
    """A row of the history."""

    id = _id()
    workflow = _workflow("history")
    stage = models.ForeignKey(
        Stage, models.DO_NOTHING, db_constraint=False, null=True, related_name="history"
    )
    generation = models.IntegerField()
    step = models.IntegerField()
    event = models.CharField(max_length=32)
    from_status = models.CharField(max_length=32, null=True, choices=STATUSES)
    to_status = models.CharField(max_length=32, null=True, choices=STATUSES)
    reason = models.TextField(null=True)
    actor = models.TextField(null=True)
    worker = models.TextField(null=True)
    details = Json(null=True)
    at = models.DateTimeField()

    class Meta:
        """In the order things happened."""

        managed = False
        db_table = "stabilize_history"
        ordering = ("at", "step", "id")
        verbose_name_plural = "history"

    def __str__(self) -> str:
        return f"{self.event} {self.to_status or ''}".strip()


class Message(models.Model):
    """What is to be done next: a message that is not handled yet."""

    id = _id()
    type = models.CharField(max_length=64)
    workflow = _workflow("messages")
    stage = models.ForeignKey(
        Stage, models.DO_NOTHING, db_constraint=False, null=True, related_name="messages"
    )
    generation = models.IntegerField()
    payload = Json()
    queue = models.TextField()
    label = models.TextField()
    created_at = models.DateTimeField()
    due_at = models.DateTimeField()
    send_at = models.DateTimeField()
    lease_owner = models.TextField(null=True)
    attempts = models.IntegerField()
    last_error = Json(null=True)

    class Meta:
        """What is due first comes first."""

        managed = False
        db_table = "stabilize_messages"
        ordering = ("due_at", "id")

    def __str__(self) -> str:
        return f"{self.type} {self.label}".strip()


class DeadLetter(models.Model):
    """A message that failed for good."""

    id = _id()
    type = models.CharField(max_length=64)
    workflow = _workflow("dead_letters")
    stage = models.ForeignKey(
        Stage, models.DO_NOTHING, db_constraint=False, null=True, related_name="dead_letters"
    )
    label = models.TextField()
    row = Json()
    error = Json()
    attempts = models.IntegerField()
    died_at = models.DateTimeField()

    class Meta:
        """The newest first."""

        managed = False
        db_table = "stabilize_dead_letters"
        ordering = ("-died_at", "-id")

    def __str__(self) -> str:
        return f"{self.type} {self.label}".strip()
