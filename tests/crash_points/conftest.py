"""The deployments of the tests of single workers."""

from __future__ import annotations

from tests.integration.workers.conftest import deploy

__all__ = ["deploy"]
