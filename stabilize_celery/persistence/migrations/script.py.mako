"""${message}"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
${imports if imports else ""}
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None
#: "expand": workers of the release before run on the new tables too, so it is applied before the deploy.
#: "contract": they do not, so it is applied after it; compatible_since = "0001" names the oldest that do.
phase = "expand"


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
