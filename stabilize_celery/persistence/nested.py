"""Statements about workflows within workflows."""

from __future__ import annotations

from sqlalchemy import bindparam, select

from stabilize_celery.persistence.tables import stages, workflows

#: The workflows that tasks of a workflow started and that have not ended, each with the task that started it.
read_inner = select(workflows.c.id, workflows.c.parent).where(
    workflows.c.parent_workflow_id == bindparam("workflow_id"), workflows.c.end_time.is_(None)
)

#: The task that waits for a workflow, the workflow locked.
lock_parent = (
    select(workflows.c.parent).where(workflows.c.id == bindparam("workflow_id")).with_for_update(of=workflows)
)

#: How the workflow stands whose task started another.
read_outer = select(workflows.c.status).where(workflows.c.id == bindparam("workflow_id"))

#: The state of the stage whose task started a workflow, locked against change: a transaction that ends this stage may
#: have looked for the workflows within it before this one was there.  No transaction of the outer workflow waits for a
#: row of an inner one.
lock_outer_stage = (
    select(stages.c.status, stages.c.generation)
    .where(stages.c.id == bindparam("stage_id"))
    .with_for_update(read=True)
)
