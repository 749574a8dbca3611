"""What is recorded of tasks: attempts, retries, signals."""

from __future__ import annotations

from tests.mutations.change import Change

CHANGES = [
    Change(
        "the second task of a stage is left out",
        "Only the first task of a stage runs.",
        "following = stage.next_task(task)",
        "following = None",
        (
            "tests/conformance/test_data_flow.py::test_the_next_task_sees_the_context_and_the_outputs_of_the_one_before",
        ),
        inside="CompleteTaskHandler",
    ),
    Change(
        "a hook that fails is not repeated",
        "A clean-up that fails for a moment is never done.",
        "if outcome.verdict in (Verdict.RETRY, Verdict.PUT_OFF):",
        "if outcome.verdict is Verdict.PUT_OFF:",
        ("tests/unit/test_registration.py::test_a_worker_that_does_without_a_type_fails_its_stage",),
    ),
    Change(
        "polling counts as an attempt of a task",
        "A task that was polled and suspended has no attempts left.",
        "task.attempts = attempt.number if counts else attempt.number - 1",
        "task.attempts = attempt.number",
        ("tests/unit/tasks/test_function_tasks.py::test_unfillable_parameters_are_a_clear_failure",),
    ),
    Change(
        "a poll counts as an attempt",
        "A task that polls fails after a few polls.",
        "unit.requeue(delay=outcome.delay, counted=False)",
        "unit.requeue(delay=outcome.delay, counted=True)",
        ("tests/unit/test_run_handle.py::test_get_moves_a_clock_that_stands_still",),
        inside="RunTaskHandler._returned",
    ),
    Change(
        "a task starts twice",
        "A late duplicate runs a task that is running already.",
        "if task.status is S.NOT_STARTED and stage.status is S.RUNNING:",
        "if stage.status is S.RUNNING:",
        ("tests/unit/test_crash_points.py::test_what_a_watcher_raises_goes_through",),
        inside="StartTaskHandler",
    ),
]
