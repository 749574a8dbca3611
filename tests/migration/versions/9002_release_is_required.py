"""Every transition names its release."""

from __future__ import annotations

from alembic import op

from tests.migration.releases import CONTRACT, EXPAND

revision = CONTRACT
down_revision = EXPAND
branch_labels = None
depends_on = None
phase = "contract"
compatible_since = EXPAND


def upgrade() -> None:
    op.execute("UPDATE stabilize_history SET release = 'older' WHERE release IS NULL")
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER TABLE stabilize_history ALTER COLUMN release SET NOT NULL")
    else:
        # SQLite cannot add a constraint to a table that is there.
        op.execute(
            "CREATE TRIGGER release_is_required BEFORE INSERT ON stabilize_history WHEN NEW.release IS NULL "
            "BEGIN SELECT RAISE(ABORT, 'release is required'); END"
        )
