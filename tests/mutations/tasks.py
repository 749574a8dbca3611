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
        "a hook of an earlier pass changes the stage",
        "on_cancel of a pass that was undone writes into the next one.",
        "same_pass = stage is not None and stage.generation == message.generation",
        "same_pass = stage is not None",
        ("tests/unit/test_controls_kept.py::test_a_hook_of_an_earlier_pass_does_not_change_the_next",),
    ),
    Change(
        "the result of a canceled task counts",
        "A canceled stage gets outputs.",
        "if task.status is not S.RUNNING or stage.status is not S.RUNNING:",
        "if task.status is S.NOT_STARTED:",
        ("tests/unit/test_controls_kept.py::test_a_running_body_hears_that_its_stage_is_skipped",),
        inside="RunTaskHandler",
    ),
    Change(
        "a signal is seen again by the next suspension",
        "A task that suspends twice takes its first signal for the second.",
        "seen = SIGNAL_KEYS if result.status is not S.RUNNING else ()",
        "seen = ()",
        ("tests/unit/test_controls_kept.py::test_each_suspension_has_its_own_time",),
    ),
    Change(
        "a kept signal is not taken",
        "A task waits for a signal that was sent before it suspended.",
        "kept = unit.next_signal(stage)",
        "kept = None",
        ("tests/unit/test_stale_messages.py::test_a_signal_sent_in_two_is_taken_in_order",),
        inside="RunTaskHandler._suspend",
    ),
    Change(
        "suspensions are not counted",
        "The timer of an earlier suspension ends a later one.",
        "task.suspensions += 1",
        "task.suspensions += 0",
        ("tests/unit/test_controls_kept.py::test_each_suspension_has_its_own_time",),
    ),
    Change(
        "a transient signal is kept",
        "A signal that nobody waited for wakes a later suspension.",
        "if message.persistent and not ended:",
        "if not ended:",
        ("tests/unit/test_controls_kept.py::test_a_transient_signal_that_nobody_waits_for_is_lost",),
    ),
]
