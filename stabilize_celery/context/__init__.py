"""Data flow: what a stage sees of the stages before it, and where each value comes from."""

from __future__ import annotations
