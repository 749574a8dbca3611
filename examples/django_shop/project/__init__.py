"""The project."""

from __future__ import annotations

from project.celery import app, stabilize

__all__ = ["app", "stabilize"]
