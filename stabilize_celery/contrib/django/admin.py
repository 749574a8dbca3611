"""Workflows and stages in Django's admin, to be looked at; a workflow leads to its stages and shows its history.

Nothing can be changed here.  Values under secret-looking keys (``stabilize_redact_keys``) are hidden.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cache
from typing import Any

from celery import current_app
from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet, TextField
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

from stabilize_celery.contrib.django.models import Json, Stage, Workflow
from stabilize_celery.engine import engine_of
from stabilize_celery.errors import StabilizeError, described_text
from stabilize_celery.redaction import DEFAULT_KEYS, redact, redact_text

#: The number of entries of a list within a page.
_MOST = 500


def _keys() -> tuple[str, ...]:
    try:
        return engine_of(current_app._get_current_object()).settings.redact_keys
    except StabilizeError:
        return DEFAULT_KEYS


@cache
def _shown(name: str) -> Any:
    """A field of an admin that shows a column of text or JSON without secrets."""

    @admin.display(description=name.replace("_", " "))
    def show(obj: Any) -> str:
        value = redact(getattr(obj, name), _keys())
        if value is None or isinstance(value, str):
            return value or ""
        laid_out = json.dumps(value, indent=2, ensure_ascii=False)
        return str(format_html('<pre style="white-space: pre-wrap; margin: 0">{}</pre>', laid_out))

    return show


def _link(obj: Any) -> SafeString:
    url = reverse(f"admin:stabilize_{obj._meta.model_name}_change", args=[obj.pk])
    return format_html('<a href="{}">{}</a>', url, redact_text(str(obj), _keys()))


def _lines(found: QuerySet, parts: Callable[[Any], Iterable[Any]]) -> str:
    """A line for each object; texts among its parts are shown without secrets."""
    keys = _keys()
    lines = []
    for each in found[: _MOST + 1]:
        shown = [
            part if hasattr(part, "__html__") else redact_text(str(part), keys)
            for part in parts(each)
            if part
        ]
        lines.append((format_html_join(" ", "{}", [(part,) for part in shown]),))
    if len(lines) > _MOST:
        lines[_MOST:] = [(f"and more than these {_MOST}: Flower and the command line show them all",)]
    return str(format_html_join(mark_safe("<br>"), "{}", lines)) or "none"


def _transition(entry: Any) -> Iterable[Any]:
    before = entry.from_status and f"{entry.from_status} →"
    actor = entry.actor and f"by {entry.actor}"
    return (_moment(entry.at), entry.event, entry.stage_id, before, entry.to_status, entry.reason, actor)


def _moment(time: datetime) -> str:
    return time.isoformat(" ", "seconds")


class ReadOnlyAdmin(admin.ModelAdmin):
    """Looking is all there is."""

    show_full_result_count = False
    list_per_page = 50
    #: Shown first: what is not a column.
    first: tuple[str, ...] = ()

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        """Every column, and the history."""
        columns = [
            _shown(field.name) if isinstance(field, Json | TextField) else field.name
            for field in self.model._meta.fields
        ]
        return [*self.first, *columns, "shown_history"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        return self.get_fields(request, obj)

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        # Looking through many workflows must not read the data of each.
        return _WithoutData

    @admin.display(description="history")
    def shown_history(self, obj: Any) -> str:
        """The transitions, in order."""
        return _lines(obj.history.defer("details"), _transition)


class _WithoutData(ChangeList):
    def get_queryset(self, *args: Any, **kwargs: Any) -> QuerySet:
        data = [field.name for field in self.model._meta.fields if isinstance(field, Json)]
        return super().get_queryset(*args, **kwargs).defer(*data)


@admin.register(Workflow)
class WorkflowAdmin(ReadOnlyAdmin):
    """Workflows, newest first."""

    list_display = ("id", "application", "name", "status", "created_at", "took")
    list_filter = ("status", "application", "created_at")
    search_fields = ("=id", "name", "=dedup_key")
    first = ("stages", "sub_workflows", "dead_letters")

    @admin.display(description="duration")
    def took(self, workflow: Any) -> str:
        """How long it ran."""
        if workflow.start_time is None or workflow.end_time is None:
            return ""
        return f"{(workflow.end_time - workflow.start_time).total_seconds():.1f} s"

    @admin.display(description="stages")
    def stages(self, workflow: Any) -> str:
        """Each with its status."""
        found = workflow.stages.only("id", "ref_id", "name", "status", "position", "parent_stage")
        return _lines(found, lambda stage: (_link(stage), stage.get_status_display()))

    @admin.display(description="sub-workflows")
    def sub_workflows(self, workflow: Any) -> str:
        """Each with its status."""
        found = workflow.sub_workflows.only("id", "name", "status")
        return _lines(found, lambda child: (_link(child), child.get_status_display()))

    @admin.display(description="dead letters")
    def dead_letters(self, workflow: Any) -> str:
        """What was given up, and why."""
        found = workflow.dead_letters.defer("row")
        return _lines(found, lambda row: (_moment(row.died_at), row, described_text(row.error)))


@admin.register(Stage)
class StageAdmin(ReadOnlyAdmin):
    """Stages with their data."""

    list_display = ("__str__", "type", "status", "workflow_link", "start_time", "end_time")
    list_filter = ("status", "type")
    search_fields = ("=id", "=workflow__id", "ref_id", "name")
    ordering = ("-id",)
    first = ("workflow_link",)

    @admin.display(description="workflow", ordering="workflow_id")
    def workflow_link(self, stage: Any) -> str:
        """A link to its workflow, without reading that."""
        url = reverse("admin:stabilize_workflow_change", args=[stage.workflow_id])
        return str(format_html('<a href="{}">{}</a>', url, stage.workflow_id))
