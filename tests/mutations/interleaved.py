"""What only interleaved transactions can show: the explorer finds each, see ``tests/interleaving``.

Three more, which need many schedules, are put back by ``make explore-faults``.
"""

from __future__ import annotations

from tests.mutations.change import Change

CHANGES = [
    Change(
        "premature success",
        "A workflow is SUCCEEDED while a branch is cut off, by a header read before the rows it counts.",
        "if ended == workflow.live_branches == 1:",
        "if ended == workflow.live_branches:",
        ("tests/interleaving/test_continued.py::test_a_pair",),
        served=True,
    ),
    Change(
        "the downstream lock left out",
        "Two branches that end at once count a join down from the same number.",
        (
            '.where(edges.c.upstream_id == bindparam("stage_id"))\n'
            ".order_by(stages.c.topo, stages.c.id)\n"
            ".with_for_update(of=stages)"
        ),
        ('.where(edges.c.upstream_id == bindparam("stage_id"))\n.order_by(stages.c.topo, stages.c.id)'),
        ("tests/interleaving/test_continued.py::test_a_pair",),
        served=True,
    ),
    Change(
        "the stage lock left out",
        "Two messages change a stage from the same state.",
        'lock_stage = _one_stage.where(stages.c.id == bindparam("stage_id")).with_for_update(of=stages)',
        'lock_stage = _one_stage.where(stages.c.id == bindparam("stage_id"))',
        ("tests/interleaving/test_continued.py::test_a_pair",),
        served=True,
    ),
    Change(
        "the slots lock left out",
        "Two executions take the last slot.",
        'select(*slots.c).where(slots.c.pipeline_config_id == bindparam("config_id")).with_for_update(of=slots)',
        'select(*slots.c).where(slots.c.pipeline_config_id == bindparam("config_id"))',
        ("tests/interleaving/test_continued.py::test_a_pair[two of a limit of one]",),
        served=True,
    ),
    Change(
        "the exclusive gate taken shared",
        "A cancel or a jump meets progress in the middle.",
        "(messages.c.exclusive, func.pg_advisory_xact_lock(key)),",
        "(messages.c.exclusive, func.pg_advisory_xact_lock_shared(key)),",
        ("tests/interleaving/test_continued.py::test_a_pair",),
        served=True,
    ),
    Change(
        "no repeat on deadlock",
        "A deadlock with another application fails a workflow.",
        "if is_retryable(error) and collision < COLLISIONS - 1:",
        "if is_retryable(error) and collision < 0:",
        ("tests/interleaving/test_continued.py::test_a_pair[a stranger]",),
        served=True,
    ),
    Change(
        "dedup_key without its lock",
        "Two starts with one key fail, or both run.",
        "_lock_keys(connection, workflows)\nfor workflow in workflows:",
        "for workflow in workflows:",
        ("tests/interleaving/test_continued.py::test_a_pair[one key, two starts]",),
        served=True,
    ),
    Change(
        "published before the caller's commit",
        "A start in a caller's transaction is published before others can see it.",
        "waiting.append(call)",
        "call()",
        ("tests/interleaving/test_continued.py::test_a_pair",),
        served=True,
    ),
]
