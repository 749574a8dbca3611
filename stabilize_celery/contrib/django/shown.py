"""Stored data as people see it: laid out, and without secrets."""

from __future__ import annotations

import json
from typing import Any

from celery import current_app
from django.contrib import admin
from django.utils.html import format_html

from stabilize_celery.delivery.install import engine_of
from stabilize_celery.errors import StabilizeError
from stabilize_celery.redaction import DEFAULT_KEYS, redact, redact_text


def _keys() -> tuple[str, ...]:
    try:
        return engine_of(current_app._get_current_object()).settings.redact_keys
    except StabilizeError:
        return DEFAULT_KEYS


def hidden_text(text: str) -> str:
    """Text without the secrets in it."""
    return redact_text(text, _keys())


def json_field(name: str) -> Any:
    """A method for an admin that shows a JSON column."""

    @admin.display(description=name.replace("_", " "))
    def show(_admin: Any, obj: Any) -> str:
        value = redact(getattr(obj, name), _keys())
        if value is None:
            return ""
        laid_out = json.dumps(value, indent=2, ensure_ascii=False)
        return str(format_html('<pre style="white-space: pre-wrap; margin: 0">{}</pre>', laid_out))

    return show
