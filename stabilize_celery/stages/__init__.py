"""Stage definition builders: what a stage type is made of."""

from __future__ import annotations
