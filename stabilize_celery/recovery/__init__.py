"""After something went wrong: finding and mending what nothing drives, refilling a broker, dead letters, retention."""

from __future__ import annotations
