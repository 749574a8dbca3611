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
    Change(
        "the audit overlooks the time limit of a stage",
        "A stage whose timer is lost waits for ever, and the audit is clean.",
        "if end is not None and message.type not in sent:",
        'if end is not None and message.type not in sent | {"ExpireStage"}:',
        ("tests/integration/recovery/test_repairs.py::test_a_message_that_is_lost_is_made_anew",),
        served=True,
    ),
    Change(
        "the end of a command's output is read twice",
        "A command that leaves a child behind fails now and then with KeyError.",
        """
        for _ in range(_PIPE_CHUNKS):
            if not self._read(stream):
                break
        """,
        """
        for _ in range(_PIPE_CHUNKS):
            self._read(stream)
        """,
        ("tests/unit/tasks/test_processes.py::test_what_is_left_may_be_dead_before_its_output_is_looked_at",),
    ),
    Change(
        "a canceled body is not interrupted",
        "A task does not hear that it is canceled.",
        "lease.run.interrupt()",
        "lease.done.is_set()",
        ("tests/unit/worker/test_leases.py::test_only_a_task_that_does_not_stop_takes_its_process_along",),
        inside="_beat",
    ),
    Change(
        "retry_after is ignored",
        "A task is called again sooner than the service it calls has asked for.",
        "return float(mark.retry_after)",
        "return 0.0",
        ("tests/unit/test_stale_messages.py::test_a_retry_is_not_claimed_before_its_time",),
    ),
]
