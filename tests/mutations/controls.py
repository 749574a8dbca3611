"""What people ask of a workflow, resets, sub-workflows, limits."""

from __future__ import annotations

from tests.mutations.change import Change

CHANGES = [
    Change(
        "a canceled stage does not end its branch",
        "A workflow never ends after one of its stages was canceled.",
        "if stage.is_synthetic:",
        "if not stage.is_synthetic:",
        ("tests/unit/test_nesting.py::TestMap::test_a_failure_stops_the_others",),
        inside="CancelStageHandler",
    ),
    Change(
        "a canceled workflow may be restarted",
        "What a person has canceled runs again.",
        "is_canceled=True,",
        "is_canceled=False,",
        ("tests/unit/test_control_errors.py::test_a_canceled_workflow_is_not_restarted",),
        inside="CancelWorkflowHandler",
    ),
    Change(
        "a reset begins no new generation",
        "Messages of the old pass count in the new one.",
        "generation=stage.generation + 1,",
        "generation=stage.generation,",
        ("tests/conformance/test_dynamic_routing.py::test_a_jump_back_runs_everything_between_again",),
        inside="reset_stage",
    ),
    Change(
        "errors and answers of the last pass are kept over a reset",
        "A restarted approval takes its old answer.",
        "context={key: value for key, value in stage.context.items() if key not in PASS_KEYS},",
        "context=dict(stage.context),",
        ("tests/unit/test_nesting.py::TestSubWorkflow::test_a_restart_runs_another_child",),
    ),
    Change(
        "a canceled task is not told",
        "The body of a canceled task runs on, and its messages stay.",
        "unit.stop_running(stage, force=force)",
        "unit.now",
        (
            "tests/conformance/test_time_limits.py::test_nothing_is_left_of_a_time_limit_when_a_stage_has_ended",
        ),
        inside="abandon_work",
    ),
]
