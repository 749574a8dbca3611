"""A transition may name its release."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tests.migration.releases import EXPAND, RELEASED

revision = EXPAND
down_revision = RELEASED
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    op.add_column("stabilize_history", sa.Column("release", sa.Text()))
