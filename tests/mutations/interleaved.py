"""What only interleaved transactions can show: the explorer finds each, see ``tests/interleaving``."""

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
]
