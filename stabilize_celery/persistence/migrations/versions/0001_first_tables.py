"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None
phase = "expand"


def upgrade() -> None:
    _version()
    _workflows()
    _stages()
    _edges()
    _messages()
    _history()
    _signals()
    _slots()
    _dead_letters()
    if op.get_context().dialect.name == "postgresql":
        _storage()


def _id() -> sa.String:
    return sa.String(26)


def _time() -> sa.DateTime:
    return sa.DateTime(timezone=True)


def _version() -> None:
    # Alembic makes this table, with its own column alone.
    op.add_column(
        "stabilize_schema_version",
        sa.Column("compatible_since", sa.String(32), server_default="0001", nullable=False),
    )


def _workflows() -> None:
    op.create_table(
        "stabilize_workflows",
        sa.Column("id", _id(), nullable=False),
        sa.Column("type", sa.String(32), nullable=False),
        sa.Column("application", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.Column("trigger", sa.JSON(), nullable=False),
        sa.Column("created_at", _time(), nullable=False),
        sa.Column("start_time", _time()),
        sa.Column("end_time", _time()),
        sa.Column("start_time_expiry", _time()),
        sa.Column("is_canceled", sa.Boolean(), nullable=False),
        sa.Column("canceled_by", sa.Text()),
        sa.Column("cancellation_reason", sa.Text()),
        sa.Column("paused", sa.JSON()),
        sa.Column("pipeline_config_id", sa.Text()),
        sa.Column("is_limit_concurrent", sa.Boolean(), nullable=False),
        sa.Column("max_concurrent_executions", sa.Integer(), nullable=False),
        sa.Column("keep_waiting_pipelines", sa.Boolean(), nullable=False),
        sa.Column("origin", sa.Text(), nullable=False),
        sa.Column("config_version", sa.Text()),
        sa.Column("dedup_key", sa.Text()),
        sa.Column("parent", sa.JSON()),
        sa.Column("parent_workflow_id", _id()),
        sa.Column("live_branches", sa.Integer(), nullable=False),
        sa.Column("has_halted", sa.Boolean(), nullable=False),
        sa.Column("holds_slot", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.CheckConstraint("live_branches >= 0", name=op.f("ck_stabilize_workflows_live_branches")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stabilize_workflows")),
        sa.UniqueConstraint(
            "application", "dedup_key", name=op.f("uq_stabilize_workflows_application_dedup_key")
        ),
    )
    op.create_index(
        "ix_stabilize_workflows_parent",
        "stabilize_workflows",
        ["parent_workflow_id"],
        postgresql_where=sa.text("parent_workflow_id IS NOT NULL"),
        sqlite_where=sa.text("parent_workflow_id IS NOT NULL"),
    )
    op.create_index("ix_stabilize_workflows_listing", "stabilize_workflows", ["application", "id"])
    op.create_index(
        "ix_stabilize_workflows_slots",
        "stabilize_workflows",
        ["pipeline_config_id", "status", "id"],
        postgresql_where=sa.text("holds_slot OR status = 'BUFFERED'"),
        sqlite_where=sa.text("holds_slot OR status = 'BUFFERED'"),
    )
    op.create_index("ix_stabilize_workflows_status", "stabilize_workflows", ["status", "id"])


def _stages() -> None:
    op.create_table(
        "stabilize_stages",
        sa.Column("id", _id(), nullable=False),
        sa.Column("workflow_id", _id(), nullable=False),
        sa.Column("ref_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("topo", sa.Integer(), nullable=False),
        sa.Column("rank", sa.JSON(), nullable=False),
        sa.Column("context", sa.JSON(), nullable=False),
        sa.Column("outputs", sa.JSON(), nullable=False),
        sa.Column("sources", sa.JSON(), nullable=False),
        sa.Column("tasks", sa.JSON(), nullable=False),
        sa.Column("output_reducers", sa.JSON(), nullable=False),
        sa.Column("parent_stage_id", _id()),
        sa.Column("synthetic_stage_owner", sa.String(32)),
        sa.Column("phase", sa.String(32)),
        sa.Column("planned", sa.JSON(), nullable=False),
        sa.Column("open_children", sa.Integer(), nullable=False),
        sa.Column("upstream_count", sa.Integer(), nullable=False),
        sa.Column("open_upstreams", sa.Integer(), nullable=False),
        sa.Column("blocked", sa.Boolean(), nullable=False),
        sa.Column("released", sa.Boolean(), nullable=False),
        sa.Column("start_time", _time()),
        sa.Column("end_time", _time()),
        sa.Column("start_time_expiry", _time()),
        sa.CheckConstraint("open_children >= 0", name=op.f("ck_stabilize_stages_open_children")),
        sa.CheckConstraint("open_upstreams >= 0", name=op.f("ck_stabilize_stages_open_upstreams")),
        sa.ForeignKeyConstraint(
            ["workflow_id"],
            ["stabilize_workflows.id"],
            name=op.f("fk_stabilize_stages_workflow_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stabilize_stages")),
        sa.UniqueConstraint("workflow_id", "ref_id", name=op.f("uq_stabilize_stages_workflow_id_ref_id")),
    )
    op.create_index(
        "ix_stabilize_stages_parent",
        "stabilize_stages",
        ["parent_stage_id"],
        postgresql_where=sa.text("parent_stage_id IS NOT NULL"),
        sqlite_where=sa.text("parent_stage_id IS NOT NULL"),
    )


def _edges() -> None:
    op.create_table(
        "stabilize_edges",
        sa.Column("upstream_id", _id(), nullable=False),
        sa.Column("downstream_id", _id(), nullable=False),
        sa.Column("workflow_id", _id(), nullable=False),
        sa.ForeignKeyConstraint(
            ["workflow_id"],
            ["stabilize_workflows.id"],
            name=op.f("fk_stabilize_edges_workflow_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("upstream_id", "downstream_id", name=op.f("pk_stabilize_edges")),
    )
    op.create_index("ix_stabilize_edges_downstream", "stabilize_edges", ["downstream_id"])
    op.create_index("ix_stabilize_edges_workflow", "stabilize_edges", ["workflow_id"])


def _messages() -> None:
    op.create_table(
        "stabilize_messages",
        sa.Column("id", _id(), nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("workflow_id", _id()),
        sa.Column("stage_id", _id()),
        sa.Column("task_id", _id()),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("exclusive", sa.Boolean(), nullable=False),
        sa.Column("queue", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("created_at", _time(), nullable=False),
        sa.Column("due_at", _time(), nullable=False),
        sa.Column("send_at", _time(), nullable=False),
        sa.Column("sends", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.Text()),
        sa.Column("claims", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("last_error", sa.JSON()),
        sa.Column("cancel", sa.String(8)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stabilize_messages")),
    )
    op.create_index("ix_stabilize_messages_send_at", "stabilize_messages", ["send_at"])
    op.create_index(
        "ix_stabilize_messages_sent",
        "stabilize_messages",
        ["queue", "send_at"],
        postgresql_where=sa.text("sends > 0 AND lease_owner IS NULL"),
        sqlite_where=sa.text("sends > 0 AND lease_owner IS NULL"),
    )
    op.create_index("ix_stabilize_messages_workflow", "stabilize_messages", ["workflow_id", "stage_id"])


def _history() -> None:
    op.create_table(
        "stabilize_history",
        sa.Column("id", _id(), nullable=False),
        sa.Column("workflow_id", _id(), nullable=False),
        sa.Column("stage_id", _id()),
        sa.Column("task_id", _id()),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("step", sa.Integer(), nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("from_status", sa.String(32)),
        sa.Column("to_status", sa.String(32)),
        sa.Column("reason", sa.Text()),
        sa.Column("actor", sa.Text()),
        sa.Column("worker", sa.Text()),
        sa.Column("details", sa.JSON()),
        sa.Column("at", _time(), nullable=False),
        sa.ForeignKeyConstraint(
            ["workflow_id"],
            ["stabilize_workflows.id"],
            name=op.f("fk_stabilize_history_workflow_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stabilize_history")),
    )
    op.create_index("ix_stabilize_history_workflow", "stabilize_history", ["workflow_id", "at"])


def _signals() -> None:
    op.create_table(
        "stabilize_signals",
        sa.Column("id", _id(), nullable=False),
        sa.Column("workflow_id", _id(), nullable=False),
        sa.Column("stage_id", _id(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("at", _time(), nullable=False),
        sa.ForeignKeyConstraint(
            ["workflow_id"],
            ["stabilize_workflows.id"],
            name=op.f("fk_stabilize_signals_workflow_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stabilize_signals")),
    )
    op.create_index("ix_stabilize_signals_stage", "stabilize_signals", ["stage_id", "id"])


def _slots() -> None:
    op.create_table(
        "stabilize_slots",
        sa.Column("pipeline_config_id", sa.Text(), nullable=False),
        sa.Column("max_concurrent", sa.Integer()),
        sa.Column("keep_waiting", sa.Boolean(), nullable=False),
        sa.Column("set_by", _id()),
        sa.PrimaryKeyConstraint("pipeline_config_id", name=op.f("pk_stabilize_slots")),
    )


def _dead_letters() -> None:
    op.create_table(
        "stabilize_dead_letters",
        sa.Column("id", _id(), nullable=False),
        sa.Column("type", sa.String(64), nullable=False),
        sa.Column("workflow_id", _id()),
        sa.Column("stage_id", _id()),
        sa.Column("task_id", _id()),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("row", sa.JSON(), nullable=False),
        sa.Column("error", sa.JSON(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("died_at", _time(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stabilize_dead_letters")),
    )
    op.create_index("ix_stabilize_dead_letters_workflow", "stabilize_dead_letters", ["workflow_id"])
    op.create_index("ix_stabilize_dead_letters_died", "stabilize_dead_letters", ["died_at", "id"])


def _storage() -> None:
    # Rows that are changed often: room for the next version of a row on its own page, and no wait for many dead ones.
    op.execute("ALTER TABLE stabilize_messages SET (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.01)")
    op.execute("ALTER TABLE stabilize_stages SET (fillfactor = 80)")
    op.execute("ALTER TABLE stabilize_workflows SET (fillfactor = 80)")
