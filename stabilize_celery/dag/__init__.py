"""Pure rules about graphs: order, readiness, outcome, regions.  No input or output happens here."""

from __future__ import annotations

from stabilize_celery.lazy import lazily

#: Where the names are that programs written for the `stabilize` package import from here.
_HOMES = {
    "CircularDependencyError": "errors",
    "InvalidStageGraphError": "errors",
    "StageGraphBuilder": "dag.graph",
}
__getattr__ = lazily(__name__, _HOMES)
