"""Speed, measured side by side: the engine and its peers on the same broker, database and machine, in one run."""

from __future__ import annotations
