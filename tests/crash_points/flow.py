"""The workflow that is run over every crash point: a retry, a fan-out, a synthetic stage, a join, and a jump back."""

from __future__ import annotations

from stabilize_celery import Workflow
from tests.conformance.harness import flow, stage


def workflow() -> Workflow:
    retried = [{"raise": "TransientError"}, {"return": "success"}]
    jumping = [{"return": "jump", "target": "join"}, {"return": "success"}]
    return flow(
        stage("first"),
        stage("retried", "script", ["first"], do=retried),
        stage("planned", after=["first"], plan={"before": [{"name": "before"}]}),
        stage("join", after=["retried", "planned"]),
        stage("review", "script", ["join"], do=jumping),
    )


#: How often each task body runs when nothing dies.
BODIES = {"first": 1, "retried": 2, "before": 1, "planned": 1, "join": 2, "review": 2}
