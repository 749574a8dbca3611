"""An audit between any two messages of any workflow finds nothing wrong."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings

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


@given(PLANS)
@settings(max_examples=int(30 * PERCENT), deadline=None, suppress_health_check=list(HealthCheck))
def test_a_healthy_workflow_is_never_reported(plan: Plan) -> None:
    AuditedMachine(plan).run()


@given(LIMITED_PLANS)
@settings(max_examples=int(20 * PERCENT), deadline=None, suppress_health_check=list(HealthCheck))
def test_healthy_workflows_with_a_limit_are_never_reported(plan: Plan) -> None:
    AuditedMachine(plan).run()
