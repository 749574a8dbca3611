"""An audit between any two messages of any workflow finds nothing wrong."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, select, update

from stabilize_celery import WorkflowStatus as S
from stabilize_celery.persistence.tables import messages, stages, workflows
from tests.property.flow_machine import Machine, Plan
from tests.property.test_flow_control_properties import LIMITED_PLANS, PERCENT, PLANS

#: The machine moves the clock past times at which a relay would have looked.
FOR_EVER = 1e7


class AuditedMachine(Machine):
    """Looks at everything before each message."""

    def step(self) -> bool:
        found = self.engine.audit(overdue=FOR_EVER)
        assert not found.problems, found.problems
        return super().step()


@pytest.mark.slow
@given(PLANS)
@settings(max_examples=int(20 * PERCENT), deadline=None, suppress_health_check=list(HealthCheck))
def test_a_healthy_workflow_is_never_reported(plan: Plan) -> None:
    AuditedMachine(plan).run()


@given(LIMITED_PLANS)
@settings(max_examples=int(10 * PERCENT), deadline=None, suppress_health_check=list(HealthCheck))
def test_healthy_workflows_with_a_limit_are_never_reported(plan: Plan) -> None:
    AuditedMachine(plan).run()


#: Their loss is noticed by nobody, or lets a task body run again that had done its work.
SPARED = (
    "RunHook",
    "PauseWorkflow",
    "ResumeWorkflow",
    "RestartStage",
    "CancelStage",
    "CancelWorkflow",
    "SignalStage",
    "JumpToStage",
    "CompleteTask",
)


class DamagedMachine(Machine):
    """Loses a message, or a count, before some steps; each time an audit mends it at once."""

    def __init__(self, plan: Plan, damages: dict[int, tuple[str, int]]) -> None:
        super().__init__(plan)
        self.damages = damages

    def step(self) -> bool:
        if self.steps in self.damages:
            self._damage(*self.damages.pop(self.steps))
            self.engine.audit(repair=True, user="kim", overdue=FOR_EVER)
            found = self.engine.audit(overdue=FOR_EVER)
            assert not found.problems, found.problems
        return super().step()

    def _check_executions(self) -> None:
        """Attempts are counted in the message: one that is lost begins again."""

    def _damage(self, what: str, number: int) -> None:
        table, condition, values = {
            "messages": (messages, messages.c.type.not_in(SPARED), None),
            "branches": (workflows, workflows.c.status == S.RUNNING, {"live_branches": number}),
            "upstreams": (stages, stages.c.status == S.NOT_STARTED, {"open_upstreams": number % 3}),
            "children": (stages, stages.c.status == S.RUNNING, {"open_children": number % 3}),
            "blocked": (stages, stages.c.status == S.NOT_STARTED, {"blocked": bool(number % 2)}),
            "slots": (
                workflows,
                workflows.c.pipeline_config_id.is_not(None),
                {"holds_slot": bool(number % 2)},
            ),
        }[what]
        with self.engine.store.database.begin() as connection:
            ids = list(connection.execute(select(table.c.id).where(condition).order_by(table.c.id)).scalars())
            if not ids:
                return
            chosen = table.c.id == ids[number % len(ids)]
            if values is None:
                connection.execute(delete(table).where(chosen))
            else:
                connection.execute(update(table).where(chosen).values(values))


def damages(*kinds: str) -> st.SearchStrategy[dict[int, tuple[str, int]]]:
    one = st.tuples(st.sampled_from(kinds), st.integers(0, 11))
    return st.dictionaries(st.integers(1, 25), one, min_size=1, max_size=4)


@given(PLANS, damages("messages", "messages", "branches", "upstreams", "children", "blocked"))
@settings(max_examples=int(50 * PERCENT), deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_lost_is_mended_and_the_workflow_ends(plan: Plan, lost: dict[int, tuple[str, int]]) -> None:
    DamagedMachine(plan, lost).run()
