"""Workflow files in Python, YAML and JSON."""

from __future__ import annotations

from stabilize_celery.files.forms import workflow_schema, workflow_to_dict
from stabilize_celery.files.reading import WorkflowFile, load_workflow, read_workflow_file, workflow_from_dict

__all__ = [
    "WorkflowFile",
    "load_workflow",
    "read_workflow_file",
    "workflow_from_dict",
    "workflow_schema",
    "workflow_to_dict",
]
