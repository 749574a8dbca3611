"""Running user code: under a lease, outside any transaction, within time limits."""

from __future__ import annotations
