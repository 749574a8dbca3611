"""An embedded engine whose clock stands still, one message at a time, on both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import delete, select

from stabilize_celery import FakeClock, Stabilize, StageExecution, TaskResult, WorkflowRun
from stabilize_celery.persistence.tables import messages
from tests.conformance import behaviours


class Bench:
    """An engine without in-place continuation: every message is a row that a test can get hold of."""

    def __init__(self, stabilize: Stabilize) -> None:
        self.stabilize = stabilize
        self.clock = stabilize.store.clock

    def rows(self, type: str | None = None) -> list[dict[str, Any]]:
        """The messages that are not finished."""
        chosen = select(messages).order_by(messages.c.id)
        if type is not None:
            chosen = chosen.where(messages.c.type == type)
        with self.stabilize.store.database.begin() as connection:
            return [dict(row) for row in connection.execute(chosen).mappings()]

    def execute(self, statement: Any) -> None:
        with self.stabilize.store.database.begin() as connection:
            connection.execute(statement)

    def lose(self, type: str) -> None:
        """Delete every message of a type."""
        assert self.rows(type), f"there is no {type}"
        self.execute(delete(messages).where(messages.c.type == type))

    def until(self, reached: Callable[[], object]) -> None:
        """Handle one message after the other until something is so."""
        for _ in range(1000):
            if reached():
                return
            assert self.stabilize.processor.step(), "nothing happens any more"
        raise AssertionError("it goes on for ever")

    def until_sent(self, type: str) -> None:
        self.until(lambda: self.rows(type))

    def drain(self) -> None:
        """Handle everything, and let time pass where something waits for it."""
        self.stabilize.processor.drain()

    def statuses(self, run: WorkflowRun) -> dict[str, str]:
        return {behaviours.ref_of(stage): str(stage.status) for stage in run.workflow().stages}

    def kinds(self) -> set[str]:
        """What an audit reports."""
        return {problem.kind for problem in self.stabilize.audit().problems}

    def mend(self) -> set[str]:
        """Repair, and see that it has helped; returns what was wrong."""
        found = self.stabilize.audit(repair=True, user="kim")
        assert not found.unrepaired, found.unrepaired
        left = self.stabilize.audit().problems
        assert not left, left
        return {problem.kind for problem in found.problems}


def jump_once(stage: StageExecution) -> TaskResult:
    """Back to stage a, once."""
    jumped = stage.execution.context.get("_jump_history")
    return TaskResult.success() if jumped else TaskResult.jump_to("a")


@pytest.fixture(params=["sqlite", "postgres"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    url = "sqlite://" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    with Stabilize.embedded(
        url,
        create_tables=request.param == "sqlite",
        concurrency=1,
        clock=FakeClock(),
        inline=False,
        check_types=False,
        control_max_attempts=2,
        # The processor finds everything through the table at once.
        resend_delay=3600.0,
    ) as stabilize:
        behaviours.register(stabilize)
        stabilize.registry.register("jump_once", jump_once)
        yield Bench(stabilize)
