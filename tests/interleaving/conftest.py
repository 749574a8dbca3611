"""One database for the histories of a file: what a history leaves is put back by the next."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.interleaving.world import World
from tests.services import PostgresService


@pytest.fixture(scope="module")
def world(postgres_service: PostgresService, postgres_template: str) -> Iterator[World]:
    """An empty database, and engines on it."""
    name = f"t_{uuid.uuid4().hex[:12]}"
    made = World(postgres_service.create_database(name, template=postgres_template))
    yield made
    made.close()
    postgres_service.drop_database(name)
