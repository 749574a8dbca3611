"""Pure rules about graphs: order, readiness, outcome, regions.  No input or output happens here."""

from __future__ import annotations
