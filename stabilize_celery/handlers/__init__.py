"""One file per message: ``handle(message, unit)`` reads like the description of its message."""

from __future__ import annotations
