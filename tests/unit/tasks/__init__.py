"""The built-in tasks, with real processes, servers and sockets."""

from __future__ import annotations
