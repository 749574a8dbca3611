"""What tests of two releases need: a deployment with real workers, as the tests of workers have it."""

from __future__ import annotations

from tests.integration.workers.conftest import deploy

__all__ = ["deploy"]
