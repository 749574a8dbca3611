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
]
