"""The tables.  Their names carry a prefix because they usually live in the application's own database."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.types import TypeDecorator

from stabilize_celery.models.stage import Phase, SyntheticStageOwner
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.models.workflow import WorkflowType


class UtcDateTime(TypeDecorator[datetime]):
    """A timezone-aware time: ``timestamptz`` on PostgreSQL, UTC text on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class EnumName(TypeDecorator[Any]):
    """An enum member stored under its name, as text that any tool can read."""

    impl = String
    cache_ok = True

    def __init__(self, enum: type[Enum]) -> None:
        super().__init__(32)
        self.enum = enum

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else value.name

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else self.enum[value]


#: Text JSON, not ``jsonb``: it keeps what it is given (key order, escaped NUL) and is cheaper to write.
Json = JSON(none_as_null=True)


#: What most columns hold.
_EMPTY: dict[type[Any], str] = {dict: "{}", list: "[]"}
_EMPTY_TEXTS = {text: empty for empty, text in _EMPTY.items()}


def dumps(value: Any) -> str:
    """JSON as it is stored: ASCII only, so that no character can offend a database; no NaN."""
    if not value and type(value) in _EMPTY:
        return _EMPTY[type(value)]
    return json.dumps(value, allow_nan=False, separators=(",", ":"))


def loads(stored: str | bytes) -> Any:
    """The inverse, for drivers."""
    text = stored if isinstance(stored, str) else stored.decode()
    empty = _EMPTY_TEXTS.get(text) if len(text) == 2 else None
    return json.loads(text) if empty is None else empty()


PREFIX = "stabilize_"
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

_ID = String(26)
_STATUS = EnumName(WorkflowStatus)

workflows = Table(
    PREFIX + "workflows",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("type", EnumName(WorkflowType), nullable=False),
    Column("application", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("status", _STATUS, nullable=False),
    Column("context", Json, nullable=False),
    Column("trigger", Json, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("start_time", UtcDateTime),
    Column("end_time", UtcDateTime),
    Column("start_time_expiry", UtcDateTime),
    Column("is_canceled", Boolean, nullable=False),
    Column("canceled_by", Text),
    Column("cancellation_reason", Text),
    Column("paused", Json),
    Column("pipeline_config_id", Text),
    Column("is_limit_concurrent", Boolean, nullable=False),
    Column("max_concurrent_executions", Integer, nullable=False),
    Column("keep_waiting_pipelines", Boolean, nullable=False),
    Column("origin", Text, nullable=False),
    Column("config_version", Text),
    Column("dedup_key", Text),
    Column("parent", Json),
    Column("parent_workflow_id", _ID),
    #: See Workflow.live_branches: the hidden join over all branches.
    Column("live_branches", Integer, nullable=False),
    Column("has_halted", Boolean, nullable=False),
    #: A slot of its configuration is taken by it.
    Column("holds_slot", Boolean, nullable=False, server_default=text("false")),
    UniqueConstraint("application", "dedup_key"),
    CheckConstraint("live_branches >= 0", name="live_branches"),
)
Index("ix_stabilize_workflows_listing", workflows.c.application, workflows.c.id)
Index("ix_stabilize_workflows_status", workflows.c.status, workflows.c.id)
Index(
    "ix_stabilize_workflows_slots",
    workflows.c.pipeline_config_id,
    workflows.c.status,
    workflows.c.id,
    postgresql_where=text("holds_slot OR status = 'BUFFERED'"),
    sqlite_where=text("holds_slot OR status = 'BUFFERED'"),
)

Index(
    "ix_stabilize_workflows_parent",
    workflows.c.parent_workflow_id,
    postgresql_where=text("parent_workflow_id IS NOT NULL"),
    sqlite_where=text("parent_workflow_id IS NOT NULL"),
)

stages = Table(
    PREFIX + "stages",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("workflow_id", _ID, ForeignKey(workflows.c.id, ondelete="CASCADE"), nullable=False),
    Column("ref_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("status", _STATUS, nullable=False),
    Column("generation", Integer, nullable=False),
    #: Place in the list the workflow was made with.
    Column("position", Integer, nullable=False),
    #: Topological place among its siblings; rows are locked in this order.
    Column("topo", Integer, nullable=False),
    Column("rank", Json, nullable=False),
    Column("context", Json, nullable=False),
    Column("outputs", Json, nullable=False),
    Column("sources", Json, nullable=False),
    #: The tasks, in order: a task is never read or written without its stage.
    Column("tasks", Json, nullable=False),
    Column("output_reducers", Json, nullable=False),
    Column("parent_stage_id", _ID),
    Column("synthetic_stage_owner", EnumName(SyntheticStageOwner)),
    Column("phase", EnumName(Phase)),
    Column("planned", Json, nullable=False),
    Column("open_children", Integer, nullable=False),
    Column("upstream_count", Integer, nullable=False),
    Column("open_upstreams", Integer, nullable=False),
    Column("blocked", Boolean, nullable=False),
    Column("released", Boolean, nullable=False),
    Column("start_time", UtcDateTime),
    Column("end_time", UtcDateTime),
    Column("start_time_expiry", UtcDateTime),
    UniqueConstraint("workflow_id", "ref_id"),
    CheckConstraint("open_upstreams >= 0", name="open_upstreams"),
    CheckConstraint("open_children >= 0", name="open_children"),
)
Index(
    "ix_stabilize_stages_parent",
    stages.c.parent_stage_id,
    postgresql_where=text("parent_stage_id IS NOT NULL"),
    sqlite_where=text("parent_stage_id IS NOT NULL"),
)

edges = Table(
    PREFIX + "edges",
    metadata,
    Column("upstream_id", _ID, nullable=False),
    Column("downstream_id", _ID, nullable=False),
    Column("workflow_id", _ID, ForeignKey(workflows.c.id, ondelete="CASCADE"), nullable=False),
    PrimaryKeyConstraint("upstream_id", "downstream_id"),
)
Index("ix_stabilize_edges_downstream", edges.c.downstream_id)
Index("ix_stabilize_edges_workflow", edges.c.workflow_id)

messages = Table(
    PREFIX + "messages",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("type", String(64), nullable=False),
    Column("version", Integer, nullable=False),
    Column("workflow_id", _ID),
    Column("stage_id", _ID),
    Column("task_id", _ID),
    Column("generation", Integer, nullable=False),
    Column("payload", Json, nullable=False),
    #: Must have its workflow for itself while it is handled.
    Column("exclusive", Boolean, nullable=False),
    Column("queue", Text, nullable=False),
    #: For people: what Flower and logs show.
    Column("label", Text, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    #: Not handled before.
    Column("due_at", UtcDateTime, nullable=False),
    #: When the relay sends it (again): its due time, the end of its lease, or some time after it was last sent.
    Column("send_at", UtcDateTime, nullable=False),
    Column("sends", Integer, nullable=False),
    #: Who runs its user code; the fencing token is the number of claims.
    Column("lease_owner", Text),
    Column("claims", Integer, nullable=False),
    #: Failed or unfinished executions so far.
    Column("attempts", Integer, nullable=False),
    Column("last_error", Json),
    #: Set to ``ask`` or ``kill`` when the work is not wanted any more.
    Column("cancel", String(8)),
)
Index("ix_stabilize_messages_send_at", messages.c.send_at)
#: What should be in the broker, by queue.
Index(
    "ix_stabilize_messages_sent",
    messages.c.queue,
    messages.c.send_at,
    postgresql_where=text("sends > 0 AND lease_owner IS NULL"),
    sqlite_where=text("sends > 0 AND lease_owner IS NULL"),
)
Index("ix_stabilize_messages_workflow", messages.c.workflow_id, messages.c.stage_id)

history = Table(
    PREFIX + "history",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("workflow_id", _ID, ForeignKey(workflows.c.id, ondelete="CASCADE"), nullable=False),
    Column("stage_id", _ID),
    Column("task_id", _ID),
    Column("generation", Integer, nullable=False),
    #: Order within the transaction that wrote it.
    Column("step", Integer, nullable=False),
    Column("event", String(32), nullable=False),
    Column("from_status", _STATUS),
    Column("to_status", _STATUS),
    Column("reason", Text),
    Column("actor", Text),
    Column("worker", Text),
    Column("details", Json),
    Column("at", UtcDateTime, nullable=False),
)
Index("ix_stabilize_history_workflow", history.c.workflow_id, history.c.at)

signals = Table(
    PREFIX + "signals",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("workflow_id", _ID, ForeignKey(workflows.c.id, ondelete="CASCADE"), nullable=False),
    Column("stage_id", _ID, nullable=False),
    Column("name", Text, nullable=False),
    Column("data", Json, nullable=False),
    Column("user", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
)
Index("ix_stabilize_signals_stage", signals.c.stage_id, signals.c.id)

#: One row per configuration with a limit: the lock under which slots are given out, and the limit in force.
slots = Table(
    PREFIX + "slots",
    metadata,
    Column("pipeline_config_id", Text, primary_key=True),
    Column("max_concurrent", Integer),
    Column("keep_waiting", Boolean, nullable=False),
    Column("set_by", _ID),
)

dead_letters = Table(
    PREFIX + "dead_letters",
    metadata,
    Column("id", _ID, primary_key=True),
    Column("type", String(64), nullable=False),
    Column("workflow_id", _ID),
    Column("stage_id", _ID),
    Column("task_id", _ID),
    Column("label", Text, nullable=False),
    Column("row", Json, nullable=False),
    Column("error", Json, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("died_at", UtcDateTime, nullable=False),
)
Index("ix_stabilize_dead_letters_workflow", dead_letters.c.workflow_id)
Index("ix_stabilize_dead_letters_died", dead_letters.c.died_at, dead_letters.c.id)

#: Storage parameters on PostgreSQL.  Rows that change often get room for their next version on the same page;
#: the messages table, where every row is soon dead, is vacuumed long before a fifth of it is.
STORAGE: dict[str, dict[str, float]] = {
    messages.name: {"fillfactor": 80, "autovacuum_vacuum_scale_factor": 0.01},
    stages.name: {"fillfactor": 80},
    workflows.name: {"fillfactor": 80},
}
