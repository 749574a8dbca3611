"""Other libraries in the process: what reports, traces and measures must neither break the engine nor be broken."""

from __future__ import annotations
