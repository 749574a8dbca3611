"""Who is measured: each runs a shape of a size and says how long it took."""

from __future__ import annotations
