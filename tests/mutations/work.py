"""Running user code: is it wanted, how long, what came of it."""

from __future__ import annotations

from tests.mutations.change import Change

CHANGES = [
    Change(
        "a stale generation reaches user code",
        "A task of a pass that was undone is run.",
        ("stage.generation != message.generation\nor task.status is not S.RUNNING"),
        ("task.status is S.NOT_STARTED\nor task.status is not S.RUNNING"),
        ("tests/unit/test_stale_messages.py::test_a_task_of_an_earlier_pass_is_not_called",),
        inside="judge",
    ),
]
