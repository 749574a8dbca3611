"""Plain data: what a workflow, a stage and a task are.  No input or output happens here."""

from __future__ import annotations
