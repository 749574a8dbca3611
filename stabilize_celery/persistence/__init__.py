"""The only SQL: tables, named queries, the store and the unit of work."""

from __future__ import annotations
