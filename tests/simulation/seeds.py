"""The seeds that are played with every change."""

from __future__ import annotations

CI_SEEDS = 2000
