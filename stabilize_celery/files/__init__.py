"""Workflow files in YAML and JSON: text with places, the form of the document, and the way back."""

from __future__ import annotations
