"""When a step of the tables may be applied: before a deploy, beside workers of the release before, or after it.

Each revision says so itself, by ``phase``.  One that is to be applied after the deploy also says by
``compatible_since`` whose workers may still run then; that is written into the database, because releases that are
older than the step cannot know of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from alembic.script import Script

from stabilize_celery.persistence.schema import VERSION_TABLE

#: *expand* adds what older workers need not know; *contract* takes away, or forbids, what they still use.
Phase = Literal["expand", "contract"]


@dataclass(frozen=True)
class Step:
    """One revision of the tables."""

    revision: str
    title: str
    phase: Phase
    #: The oldest release, told by its newest revision, whose workers may run afterwards; ``None`` for *expand*.
    compatible_since: str | None

    def __str__(self) -> str:
        return f"{self.revision} {self.title}"


def step_of(script: Script) -> Step:
    """What a revision file declares.

    Raises:
        ValueError: it declares no phase, or what does not fit together; only those who write revisions see this.
    """
    phase = getattr(script.module, "phase", None)
    since = getattr(script.module, "compatible_since", None)
    if phase not in ("expand", "contract"):
        raise ValueError(f"{script.path}: say phase = 'expand' or phase = 'contract'")
    if (phase == "contract") != (since is not None):
        raise ValueError(f"{script.path}: compatible_since belongs to phase 'contract', and to that alone")
    if since is not None and since > script.revision:
        raise ValueError(f"{script.path}: compatible_since is later than the revision itself")
    return Step(script.revision, (script.doc or "").rstrip("."), cast(Phase, phase), since)


def record(ctx: Any, step: Any, **_: Any) -> None:
    """Write down whose workers may run from now on; Alembic calls this after each step, in its transaction."""
    since = step_of(step.up_revision).compatible_since
    if since is not None:
        ctx.execute(f"UPDATE {VERSION_TABLE} SET compatible_since = '{since}'")
