"""Stage definition builders: what a stage type is made of."""

from __future__ import annotations

from stabilize_celery.lazy import lazily

#: Where the names are that programs written for the `stabilize` package import from here.
_HOMES = {
    "StageDefinitionBuilder": "stages.builder",
    "StageDefinitionBuilderFactory": "stages.builder",
}
__getattr__ = lazily(__name__, _HOMES)
