"""Workflows in Django's admin, to be looked at: a workflow leads to its stages, history, messages and dead letters.

Nothing can be changed here.  Values under secret-looking keys (``stabilize_redact_keys``) are hidden.
"""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import mark_safe

from stabilize_celery.contrib.django.models import DeadLetter, Message, Stage, Transition, Workflow
from stabilize_celery.contrib.django.shown import hidden_text, json_field

_SHORT = 120


class ReadOnlyAdmin(admin.ModelAdmin):
    """Looking is all there is."""

    show_full_result_count = False
    list_per_page = 50

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        # Looking through many workflows must not read the data of each.
        return _WithoutData


class _WithoutData(ChangeList):
    def get_queryset(self, *args: Any, **kwargs: Any) -> QuerySet:
        found = super().get_queryset(*args, **kwargs)
        data = [field.name for field in self.model._meta.fields if field.__class__.__name__ == "Json"]
        return found.defer(*data)


def _link(obj: Any, text: str | None = None) -> str:
    url = reverse(f"admin:stabilize_{obj._meta.model_name}_change", args=[obj.pk])
    return str(format_html('<a href="{}">{}</a>', url, text or str(obj)))


def _link_by_id(model: str, key: str | None) -> str:
    """A link without its object: the workflow of a message may be gone."""
    if key is None:
        return ""
    url = reverse(f"admin:stabilize_{model}_change", args=[key])
    return str(format_html('<a href="{}">{}</a>', url, key))


@admin.display(description="workflow", ordering="workflow_id")
def _workflow_link(obj: Any) -> str:
    return _link_by_id("workflow", obj.workflow_id)


@admin.display(description="stage")
def _stage_link(obj: Any) -> str:
    return _link_by_id("stage", obj.stage_id)


@admin.display(description="reason")
def _reason(obj: Any) -> str:
    return hidden_text(obj.reason or "")[:_SHORT]


@admin.display(description="error")
def _error(obj: Any) -> str:
    details = (obj.error or {}).get("details") or {}
    return hidden_text(str(details.get("error", "")))[:_SHORT]


@admin.register(Workflow)
class WorkflowAdmin(ReadOnlyAdmin):
    """Workflows, newest first."""

    list_display = ("id", "application", "name", "status", "created_at", "took")
    list_filter = ("status", "application", "created_at")
    search_fields = ("=id", "name", "=dedup_key")
    fields = (
        "id",
        "application",
        "name",
        "status",
        ("created_at", "start_time", "end_time"),
        "stages",
        "more",
        "dedup_key",
        "pipeline_config_id",
        "canceled",
        "parent_workflow",
        "shown_context",
        "shown_trigger",
    )
    shown_context = json_field("context")
    shown_trigger = json_field("trigger")

    @admin.display(description="duration")
    def took(self, workflow: Workflow) -> str:
        """How long it ran."""
        if workflow.start_time is None or workflow.end_time is None:
            return ""
        return f"{(workflow.end_time - workflow.start_time).total_seconds():.1f} s"

    @admin.display(description="canceled")
    def canceled(self, workflow: Workflow) -> str:
        """By whom and why."""
        if not workflow.is_canceled:
            return "no"
        return hidden_text(
            f"by {workflow.canceled_by or 'nobody known'}: {workflow.cancellation_reason or ''}"
        )

    @admin.display(description="stages")
    def stages(self, workflow: Workflow) -> str:
        """Each with its status."""
        found = workflow.stages.only("id", "ref_id", "name", "status", "position", "parent_stage")
        lines = ((_link(stage), stage.get_status_display()) for stage in found)
        return str(format_html_join(mark_safe("<br>"), "{}: {}", lines)) or "none"

    @admin.display(description="more")
    def more(self, workflow: Workflow) -> str:
        """Lists of what belongs to it."""
        lists = (
            (Transition, "history", workflow.history),
            (Message, "messages", workflow.messages),
            (DeadLetter, "dead letters", workflow.dead_letters),
            (Workflow, "sub-workflows", workflow.sub_workflows),
        )
        links = []
        for model, title, related in lists:
            key = "parent_workflow__id__exact" if model is Workflow else "workflow__id__exact"
            url = reverse(f"admin:stabilize_{model._meta.model_name}_changelist")
            links.append((f"{url}?{key}={workflow.id}", title, related.count()))
        return str(format_html_join(" · ", '<a href="{}">{} ({})</a>', links))

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        return lookup == "parent_workflow__id__exact" or super().lookup_allowed(lookup, value, request)


class _OfWorkflow(ReadOnlyAdmin):
    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest | None = None) -> bool:
        return lookup in ("workflow__id__exact", "stage__id__exact") or super().lookup_allowed(
            lookup, value, request
        )


@admin.register(Stage)
class StageAdmin(_OfWorkflow):
    """Stages with their data."""

    list_display = ("__str__", "type", "status", _workflow_link, "start_time", "end_time")
    list_filter = ("status", "type")
    search_fields = ("=id", "=workflow__id", "ref_id", "name")
    ordering = ("-id",)
    fields = (
        _workflow_link,
        "ref_id",
        "name",
        "type",
        "status",
        "generation",
        ("start_time", "end_time"),
        "phase",
        "parent_stage",
        "more",
        "shown_context",
        "shown_outputs",
        "shown_tasks",
    )
    readonly_fields = (_workflow_link, "more", "shown_context", "shown_outputs", "shown_tasks")
    shown_context = json_field("context")
    shown_outputs = json_field("outputs")
    shown_tasks = json_field("tasks")

    @admin.display(description="more")
    def more(self, stage: Stage) -> str:
        """Its part of the history."""
        url = reverse("admin:stabilize_transition_changelist")
        return str(format_html('<a href="{}?stage__id__exact={}">history</a>', url, stage.id))


@admin.register(Transition)
class TransitionAdmin(_OfWorkflow):
    """The history."""

    list_display = ("at", "event", "from_status", "to_status", _workflow_link, _stage_link, _reason, "actor")
    list_filter = ("event", "to_status", "at")
    search_fields = ("=workflow__id", "=stage__id", "reason", "actor")
    fields = (
        "at",
        "event",
        "from_status",
        "to_status",
        _workflow_link,
        _stage_link,
        "generation",
        _reason,
        "actor",
        "worker",
        "shown_details",
    )
    readonly_fields = (_workflow_link, _stage_link, _reason, "shown_details")
    shown_details = json_field("details")


@admin.register(Message)
class MessageAdmin(_OfWorkflow):
    """What is to be done next."""

    list_display = (
        "type",
        "label",
        _workflow_link,
        _stage_link,
        "due_at",
        "attempts",
        "lease_owner",
        "queue",
    )
    list_filter = ("type", "queue")
    search_fields = ("=id", "=workflow__id", "label")
    fields = (
        "id",
        "type",
        "label",
        _workflow_link,
        _stage_link,
        "generation",
        "queue",
        ("created_at", "due_at", "send_at"),
        "attempts",
        "lease_owner",
        "shown_payload",
        "shown_last_error",
    )
    readonly_fields = (_workflow_link, _stage_link, "shown_payload", "shown_last_error")
    shown_payload = json_field("payload")
    shown_last_error = json_field("last_error")


@admin.register(DeadLetter)
class DeadLetterAdmin(_OfWorkflow):
    """Messages that failed for good."""

    list_display = ("type", "label", _workflow_link, _stage_link, "died_at", "attempts")
    list_filter = ("type", "died_at")
    search_fields = ("=id", "=workflow__id", "label")
    fields = (
        "id",
        "type",
        "label",
        _workflow_link,
        _stage_link,
        "died_at",
        "attempts",
        _error,
        "shown_error",
        "shown_row",
    )
    readonly_fields = (_workflow_link, _stage_link, _error, "shown_error", "shown_row")
    shown_error = json_field("error")
    shown_row = json_field("row")
