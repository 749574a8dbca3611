"""Data flow: what a stage sees of the stages before it, and where each value comes from."""

from __future__ import annotations

from stabilize_celery.lazy import lazily

#: Where the names are that programs written for the `stabilize` package import from here.
_HOMES = {
    "StageContext": "context.stage_context",
}
__getattr__ = lazily(__name__, _HOMES)
