"""User work: what a task is, what it returns, how it is found, and the built-in ones."""

from __future__ import annotations
