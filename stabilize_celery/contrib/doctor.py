"""The doctor: is this deployment fit to run workflows, and what is to be changed if not?  It changes nothing.

Each area is a function that gathers facts and a table of checks on them; so is every queue and every worker.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import celery
import psycopg
import psycopg.pq
from amqp.exceptions import NotFound, PreconditionFailed
from kombu.connection import Connection
from kombu.utils.url import maybe_sanitize_url
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from stabilize_celery.errors import StabilizeError
from stabilize_celery.messages import MESSAGE_TYPES, TASK_PREFIX
from stabilize_celery.persistence.store import WorkflowStore
from stabilize_celery.persistence.tables import dead_letters, messages
from stabilize_celery.redaction import redact
from stabilize_celery.settings import Settings

if TYPE_CHECKING:
    from stabilize_celery.engine import Stabilize

#: RabbitMQ's own default for ``consumer_timeout``, in seconds.
_CONSUMER_TIMEOUT = 1800
_RELAY = "stabilize-relay"


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    #: It works, but not as well, or not in every case.
    WARNING = "warning"
    #: Workflows do not run, or can be delayed without end.
    ERROR = "error"


OK, WARNING, ERROR = Level.OK, Level.WARNING, Level.ERROR


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, in the ``database``, ``broker``, ``settings`` or ``workers``."""

    area: str
    level: Level
    what: str
    #: What to change; empty if nothing.
    advice: str = ""
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "level": str(self.level)}


# Level, when, what, advice, why; texts are filled with the facts.
# fmt: off
Checks = list[tuple[Level, Callable[[Any], Any], str, str, str]]
SERVER: Checks = [
    (WARNING, lambda f: int(f.server_version_num) < 130000, "PostgreSQL is older than 13", "upgrade the server",
     "The engine is tested with supported releases only."),
    (ERROR, lambda f: f.standby or f.default_transaction_read_only == "on", "{unwritable}",
     "let stabilize_database_url name the primary", "Every step of a workflow is written."),
    (WARNING, lambda f: f.fsync == "off", "fsync is off", "set fsync = on",
     "A crash of the machine can destroy the database, and every workflow in it."),
    (WARNING, lambda f: f.synchronous_commit == "off", "synchronous_commit is off",
     "ALTER ROLE ... SET synchronous_commit = 'on' for the role of the workers",
     "A crash of the server forgets its last commits: work is repeated, a workflow that was just started is lost."),
    (WARNING, lambda f: f.apart > 2.0, "its clock and this machine's are {apart:.1f} s apart", "keep time with NTP on both",
     "The engine goes by the database's clock; times in logs cannot be compared with those of workflows."),
]
POOLER: Checks = [
    (WARNING, lambda f: f.error, "a second session could not be used: {error}", "check the limits for connections", ""),
    (WARNING, lambda f: f.kept is not None and not f.listen,
     "a pooler gives each transaction another session (transaction mode)",
     "none, or set stabilize_database_listen_url to the server itself",
     "The relay hears no NOTIFY through it, so delays below stabilize_relay_interval take that long."),
    (ERROR, lambda f: f.kept is False and f.prepare,
     "the pooler loses prepared statements, and stabilize_database_prepare is on",
     "set stabilize_database_prepare = False, or use PgBouncer 1.21 with max_prepared_statements",
     "A statement prepared in one session is unknown in the next: handling messages fails now and then."),
]
BACKLOG: Checks = [
    (ERROR, lambda f: f.overdue, "{overdue} messages should have been sent, the first {late:.0f} s ago",
     "start a worker without --no-stabilize-relay, and look at its log",
     "The relay sends what is delayed, and what was lost on the way; their workflows stand still."),
    (OK, lambda f: not f.overdue, "no message is overdue", "", ""),
    (WARNING, lambda f: f.dead, "{dead} dead letters", "look at them with the command `dead-letters`",
     "Each is a message that failed for good, and mostly a workflow that ended with it."),
]
BROKER: Checks = [
    (OK, lambda f: f.kind == "amqp", "{url} answers ({product})", "", ""),
    (ERROR, lambda f: f.kind == "memory", "{url} connects no two processes",
     "set broker_url to RabbitMQ, or use Stabilize.embedded() for one process",
     "Workers receive nothing of what other processes send; the relay alone carries everything on."),
    (OK, lambda f: f.kind == "redis", "{url} answers (Redis {product})", "", ""),
    (WARNING, lambda f: f.maxmemory and f.policy != "noeviction",
     "Redis throws away keys when its memory is full: maxmemory-policy is {policy}", "maxmemory-policy noeviction",
     "A queue is a key: all its messages are lost at once, and sent again after stabilize_resend_delay."),
    (WARNING, lambda f: f.kind == "redis" and not f.aof_enabled, "Redis keeps no append-only file", "appendonly yes",
     "A restart loses what waits in it: it is sent again after stabilize_resend_delay, but not messages of your own tasks."),
    (WARNING, lambda f: f.kind not in ("amqp", "memory", "redis"), "{url} answers ({kind})", "prefer RabbitMQ",
     "Other brokers confirm nothing: what one of them loses is sent again after stabilize_resend_delay."),
]
QUEUE: Checks = [
    (ERROR, lambda f: not f.known, "queue {name} is not in task_queues, and task_create_missing_queues is off",
     "add Queue({name!r}) to task_queues, or set task_create_missing_queues = True", "Nothing can be sent to it."),
    (WARNING, lambda f: not f.exists, "queue {name} does not exist yet", "start a worker for it: -Q {name}",
     "It is made when the first message is sent or the first worker starts."),
    (ERROR, lambda f: f.refused, "queue {name} is of another kind than the app declares: {refused}",
     "let task_queues say what the broker has, or name another queue (stabilize_queue, _task_queue, _task_routes)",
     "The kind of a queue cannot be changed; another declaration of it is refused."),
    (OK, lambda f: f.consumers, "queue {name}: {waiting:,} messages, {consumers} consumers", "", ""),
    (ERROR, lambda f: f.consumers == 0, "queue {name} has no consumer, and {waiting:,} messages",
     "start a worker for it: -Q {name}", "What is sent to it waits until there is one."),
]
ENGINE: Checks = [
    (ERROR, lambda f: f.route_error, "task_routes cannot be used: {route_error}", "correct task_routes", ""),
    (WARNING, lambda f: f.routed not in (None, f.queue), "task_routes sends the engine's Celery tasks to queue {routed}",
     "set task_routes before the configuration is first used, or add {{'stabilize.*': {{'queue': {queue!r}}}}} to it",
     "The engine names its queues itself; only what is called by hand goes astray."),
    *((WARNING, lambda f, name=name: 0 < (f.conf.get(name) or 0) < f.limit,
       name + " is {conf[" + name + "]:g} s, stabilize_task_time_limit {limit:g} s",
       "set stabilize_task_time_limit below {conf[" + name + "]:g}, or " + name + " above it",
       "Celery ends the pool process of a task before the engine does: the attempt is repeated as that of a lost worker.")
      for name in ("task_time_limit", "task_soft_time_limit")),
    (WARNING, lambda f: f.held, "{held}: acknowledged late, with no time limit below {timeout} s",
     "give them a time_limit below {timeout}, or acks_late=False where they are used as stages",
     "RabbitMQ closes the channel of a worker that holds a message for longer than its consumer_timeout."),
    (WARNING, lambda f: f.lease < 3 * f.heartbeat, "stabilize_lease is {lease:g} s, stabilize_heartbeat {heartbeat:g} s",
     "let the lease last for several heartbeats", "After one late heartbeat another worker runs the same task."),
]
WORKER: Checks = [
    (WARNING, lambda f: f.foreign, "{name} consumes {ours} for another database, {foreign}",
     "give each app a virtual host of its own, or queues of its own with stabilize_queue",
     "Each drops what it gets of the other's; that is sent again, but after stabilize_resend_delay."),
    (ERROR, lambda f: f.missing, "{name} consumes {ours} but does not know {missing}", "{cure}",
     "Celery throws away a message whose task it does not know; it is sent again after stabilize_resend_delay."),
    (ERROR, lambda f: f.fits and f.pool == "solo" and f.amqp, "{name} has a solo pool",
     "start it with --pool prefork or --pool threads",
     "On RabbitMQ a solo pool takes about one message a second, and hears nothing while it works."),
    (ERROR, lambda f: f.fits and f.pool == "thread" and f.celery < (5, 7),
     "{name} has a pool of threads, on Celery {celery[0]}.{celery[1]}",
     "upgrade to Celery 5.7 or later, or start it with --pool prefork",
     "Before 5.7 a pool of threads on RabbitMQ stalls between messages."),
    (WARNING, lambda f: f.fits and f.control and f.tasks, "{name} consumes {queue} and {tasks}",
     "give {queue} a worker of its own with -Q",
     "The engine's messages, milliseconds each, wait behind tasks that may take hours."),
    (WARNING, lambda f: f.fits and f.tasks and not f.control and f.fetched > f.size,
     "{name} fetches {fetched} messages for {size} tasks at a time", "start it with --prefetch-multiplier 1",
     "Tasks that were fetched wait behind a long one while other workers are free."),
]
RELAY: Checks = [
    (OK, lambda f: f.alive, "a relay runs in {alive}{served} ({sent:,} messages sent)", "", ""),
    (ERROR, lambda f: not f.relays, "no worker runs a relay{served}", "start at least one without --no-stabilize-relay",
     "Only a relay sends delayed messages, retries and what was lost on the way."),
]
#: Settings of Celery's, as docs/how-to/doctor.md lists them: name, level, whether a value is wrong, what to write, why.
SETTINGS: list[tuple[str, Level, Callable[[Any, Mapping[str, Any]], Any], str, str]] = [
    ("accept_content", ERROR, lambda v, _: not {"json", "application/json"} & set(v or ()), "accept_content = ['json']",
     "The engine's messages are JSON; workers would refuse them."),
    ("accept_content", WARNING, lambda v, _: {"pickle", "application/x-python-serialize"} & set(v or ()),
     "accept_content = ['json']", "Write access to the broker is enough to run any code in a worker that unpickles."),
    ("task_always_eager", ERROR, lambda v, _: v, "task_always_eager = False",
     "Celery tasks used as stages run in the engine's worker, and die with it."),
    ("broker_channel_error_retry", WARNING, lambda v, conf: not v and _on_rabbitmq(conf),
     "broker_channel_error_retry = True",
     "Without it one channel error, such as RabbitMQ's consumer_timeout, ends the worker process."),
    ("broker_connection_retry_on_startup", WARNING, lambda v, _: not v, "broker_connection_retry_on_startup = True",
     "A worker that is started before its broker then waits for it instead of ending."),
    ("broker_heartbeat", WARNING, lambda v, conf: _on_rabbitmq(conf) and not 0 < float(v or 0) <= 60,
     "broker_heartbeat = 20",
     "A peer that is gone is noticed after two to four heartbeats; the default of 120 s makes that minutes, 0 never."),
    ("broker_transport_options", WARNING, lambda v, conf: _on_rabbitmq(conf) and not (v or {}).get("confirm_publish"),
     "broker_transport_options = {'confirm_publish': True}",
     "Your own code that publishes hears of nothing the broker refuses. (The relay counts its own confirms.)"),
    ("worker_soft_shutdown_timeout", WARNING, lambda v, _: not v, "worker_soft_shutdown_timeout = 20",
     "A cold shutdown (SIGQUIT) then lets running tasks finish for that long before they are repeated elsewhere."),
    ("worker_cancel_long_running_tasks_on_connection_loss", ERROR,
     lambda v, conf: v and conf.get("worker_pool") in ("threads", "gevent", "eventlet"),
     "worker_cancel_long_running_tasks_on_connection_loss = False for this pool",
     "Only prefork can cancel; elsewhere it fails, the tasks run twice, and the worker hangs when it is stopped."),
    ("worker_cancel_long_running_tasks_on_connection_loss", WARNING,
     lambda v, conf: not v and conf.get("worker_pool") in (None, "", "prefork"),
     "worker_cancel_long_running_tasks_on_connection_loss = True",
     "When the connection to the broker is lost, your tasks that acknowledge late are delivered again while they run."),
    ("worker_enable_remote_control", WARNING, lambda v, _: v is False, "worker_enable_remote_control = True",
     "Without it no worker stops a Celery task used as a stage, which is done by `revoke`, or can be inspected."),
    ("worker_pool", ERROR, lambda v, conf: v == "solo" and _on_rabbitmq(conf), "worker_pool = 'prefork' or 'threads'",
     "On RabbitMQ a solo pool takes about one message a second."),
    ("task_default_queue_type", WARNING,
     lambda v, conf: v == "quorum" and conf.get("task_default_exchange_type", "direct") == "direct",
     "task_default_exchange_type = 'topic'",
     "With quorum queues and a direct exchange, tasks with a countdown or ETA sit in a worker's memory."),
    ("task_ignore_result", WARNING, lambda v, conf: str(conf.get("result_backend") or "").startswith("rpc") and not v,
     "result_backend = None, or task_ignore_result = True",
     "Results sent back over the broker and never read pile up there; workflows need no result backend."),
]
#: What the engine sets on its Celery tasks, and on those that are not for user code.
_EVERY = {"ignore_result": True, "max_retries": 0, "serializer": "json", "rate_limit": None, "time_limit": None}
# fmt: on
_CONTROL = dict.fromkeys(["acks_late", "reject_on_worker_lost", "acks_on_failure", "acks_on_timeout"], True)


def examine(engine: Stabilize, timeout: float = 2.0) -> list[Finding]:
    """Every check, in the order in which a person would look.

    Args:
        engine: on its Celery app, or embedded; of the latter only the database is looked at.
        timeout: seconds that the broker has to accept a connection, and workers have to answer.

    Raises:
        ConfigurationError: no database is configured, or a setting cannot be read.
    """
    found = examine_database(engine.store, engine.settings)
    if engine.app is None:
        return found
    if not engine.store.database.is_postgresql:
        advice = "set stabilize_database_url to a PostgreSQL database"
        why = "SQLite is for one process: workers of several would wait for each other."
        found.append(Finding("database", ERROR, "SQLite with Celery workers", advice, why))
    broker, is_reachable = _examine_broker(engine.app, engine.settings, timeout)
    found += broker + examine_configuration(engine.app, engine.settings)
    if is_reachable:
        found += _examine_workers(engine, timeout, found)
    return found


def _apply(area: str, checks: Checks, **facts: Any) -> list[Finding]:
    known = SimpleNamespace(**facts)
    return [
        Finding(area, level, *(each.format_map(facts) for each in texts))
        for level, when, *texts in checks
        if when(known)
    ]


def examine_database(store: WorkflowStore, settings: Settings) -> list[Finding]:
    """Is it there, of the right kind, set up safely, with our tables, and is what is due being sent?"""
    is_postgresql = store.database.is_postgresql
    try:
        with store.database.autocommit() as connection:
            asked = "SHOW server_version" if is_postgresql else "SELECT sqlite_version()"
            version = connection.execute(text(asked)).scalar_one()
    except (StabilizeError, SQLAlchemyError) as error:
        advice = "check stabilize_database_url, and that the server runs and lets this user in"
        why = "All state is there: nothing can be started or continued without it."
        return [Finding("database", ERROR, f"not reachable: {' '.join(str(error).split())}", advice, why)]
    kind = "PostgreSQL" if is_postgresql else "SQLite"
    found = [Finding("database", OK, f"{store.database.name} answers ({kind} {version})")]
    if is_postgresql:
        found += _apply("database", SERVER, **_server_facts(store))
        found += _apply("database", POOLER, **_pooler_facts(store, settings))
    try:
        store.check_schema()
    except StabilizeError as error:
        return [*found, Finding("database", ERROR, str(error), "run the `migrate` command")]
    found.append(Finding("database", OK, "the tables are of the version this release needs"))
    return found + _apply("database", BACKLOG, **_backlog_facts(store, settings))


def _server_facts(store: WorkflowStore) -> dict[str, Any]:
    names = ("server_version_num", "default_transaction_read_only", "fsync", "synchronous_commit")
    with store.database.autocommit() as connection:
        facts = {name: connection.execute(text(f"SHOW {name}")).scalar_one() for name in names}
        facts["standby"] = connection.execute(text("SELECT pg_is_in_recovery()")).scalar_one()
        before = datetime.now(UTC)
        theirs: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
        ours = before + (datetime.now(UTC) - before) / 2
    unwritable = "it is a standby" if facts["standby"] else "its transactions are read-only"
    return {**facts, "unwritable": unwritable, "apart": abs((ours - theirs).total_seconds())}


def _pooler_facts(store: WorkflowStore, settings: Settings) -> dict[str, Any]:
    """Is there a pooler between us and the server that gives each transaction another session?"""
    facts = {"listen": settings.database_listen_url, "prepare": settings.database_prepare}
    url = store.database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    try:
        with (
            psycopg.connect(url, autocommit=True, connect_timeout=10) as ours,
            psycopg.connect(url, autocommit=True, connect_timeout=10) as other,
        ):
            return {**facts, "kept": _moved_statement_works(ours, other), "error": ""}
    except psycopg.Error as error:
        return {**facts, "kept": None, "error": " ".join(str(error).split())}


def _moved_statement_works(ours: psycopg.Connection[Any], other: psycopg.Connection[Any]) -> bool | None:
    """Whether a prepared statement survives a change of the session; ``None`` if the session cannot change."""
    pid = "SELECT pg_backend_pid()"
    # By the protocol, as drivers do it; poolers know nothing of the PREPARE of SQL.
    name = f"stabilize_doctor_{secrets.token_hex(8)}"
    ours.pgconn.prepare(name.encode(), b"SELECT 1")
    first = ours.execute(pid, prepare=False).fetchone()
    # The next transaction gets the session that we have just left.
    with other.transaction():
        theirs = other.execute(pid, prepare=False).fetchone()
        if theirs != first and ours.execute(pid, prepare=False).fetchone() == first:
            return None
        kept = ours.pgconn.exec_prepared(name.encode(), []).status == psycopg.pq.ExecStatus.TUPLES_OK
        if not kept:
            with suppress(psycopg.Error):
                other.execute(f"DEALLOCATE {name}", prepare=False)
    return kept


def _backlog_facts(store: WorkflowStore, settings: Settings) -> dict[str, Any]:
    now = store.now()
    # A relay that is alive sends within ten of its intervals.
    threshold = now - timedelta(seconds=max(10.0, 10 * settings.relay_interval))
    overdue = select(messages.c.send_at).where(messages.c.send_at < threshold).limit(1001).subquery()
    dead = select(func.count()).select_from(select(dead_letters.c.id).limit(1001).subquery())
    with store.database.autocommit() as connection:
        count, oldest = connection.execute(select(func.count(), func.min(overdue.c.send_at))).one()
        given_up = connection.execute(dead).scalar_one()
    late = (now - oldest).total_seconds() if count else 0.0
    return {"overdue": _many(count), "late": late, "dead": _many(given_up)}


def _many(count: int) -> str:
    return "more than 1,000" if count > 1000 else f"{count:,}" if count else ""


def _examine_broker(app: celery.Celery, settings: Settings, timeout: float) -> tuple[list[Finding], bool]:
    """What is found, and whether the broker can be reached."""
    url = maybe_sanitize_url(str(app.conf.broker_write_url or app.conf.broker_url or "amqp://"))
    found: list[Finding] = []
    try:
        with app.connection_for_write(connect_timeout=timeout) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=timeout)
            kind = connection.transport.driver_type
            found += _apply("broker", BROKER, url=url, kind=kind, **_broker_facts(connection, kind))
            for name in settings.queues():
                if kind == "amqp":
                    found += _apply("broker", QUEUE, name=name, **_queue_facts(app, connection, name))
                elif kind == "redis":
                    # It does not know who consumes; the workers are asked for that.
                    waiting = connection.default_channel._size(name)
                    found.append(Finding("broker", OK, f"queue {name}: {waiting:,} messages"))
    except Exception as error:
        what = f"{url} is not reachable: {str(error) or type(error).__name__}"
        advice = "check broker_url, and that the broker runs and lets this user in"
        why = "Workflows can be started without it, and go on once it is back."
        return [*found, Finding("broker", ERROR, what, advice, why)], False
    return found, True


def _broker_facts(connection: Connection, kind: str) -> dict[str, Any]:
    """Of Redis also what it may lose; that costs time and no workflow, because what matters is in the database."""
    info: dict[str, Any] = {}
    if kind == "redis":
        info = connection.default_channel.client.info()  # type: ignore[attr-defined]
    properties = connection.connection.server_properties if kind == "amqp" else {}
    product = " ".join(str(properties.get(key, "")) for key in ("product", "version")).strip()
    facts = {name: info.get(name) for name in ("maxmemory", "aof_enabled")}
    policy = info.get("maxmemory_policy", "noeviction")
    return {**facts, "product": product or info.get("redis_version", "AMQP"), "policy": policy}


def _queue_facts(app: celery.Celery, connection: Connection, name: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"known": True, "exists": True, "refused": "", "waiting": 0, "consumers": None}
    try:
        queue = app.amqp.queues[name]
    except KeyError:
        return {**facts, "known": False}
    try:
        with connection.channel() as channel:
            answer = channel.queue_declare(name, passive=True)
    except NotFound:
        return {**facts, "exists": False}
    facts |= {"waiting": answer.message_count, "consumers": answer.consumer_count}
    channel = connection.channel()
    try:
        queue(channel).queue_declare()
    except PreconditionFailed as error:
        facts["refused"] = str(error.reply_text)
    finally:
        with suppress(Exception):
            channel.close()
    return facts


def _on_rabbitmq(conf: Mapping[str, Any]) -> bool:
    url = conf.get("broker_write_url") or conf.get("broker_url") or "amqp://"
    return str(url[0] if isinstance(url, list | tuple) and url else url).startswith(("amqp", "pyamqp"))


def examine_configuration(app: celery.Celery, settings: Settings) -> list[Finding]:
    """The configuration this process has, and what became of the engine's own Celery tasks under it."""
    found = [*_examine_settings(app.conf), *_examine_entrypoints(app)]
    routed = route_error = None
    try:
        routed = app.amqp.router.route({}, TASK_PREFIX + "StartWorkflow")["queue"]
    except Exception as error:
        route_error = f"{type(error).__name__}: {error}"
    facts = {"conf": app.conf, "routed": getattr(routed, "name", routed), "route_error": route_error}
    facts |= {"queue": settings.queue, "limit": settings.task_time_limit, "timeout": _CONSUMER_TIMEOUT}
    facts |= {"lease": settings.lease, "heartbeat": settings.heartbeat, "held": _held_messages(app)}
    found += _apply("settings", ENGINE, **facts)
    return found or [Finding("settings", OK, "Celery's settings fit")]


def _examine_settings(conf: Mapping[str, Any]) -> list[Finding]:
    return [
        Finding("settings", level, f"{name} is {redact(conf.get(name))!r}", advice, why)
        for name, level, is_wrong, advice, why in SETTINGS
        if is_wrong(conf.get(name), conf)
    ]


def _examine_entrypoints(app: celery.Celery) -> Iterator[Finding]:
    changed: dict[str, list[str]] = {}
    for name, message_type in MESSAGE_TYPES.items():
        task = app.tasks[TASK_PREFIX + name]
        wanted = _EVERY if message_type.runs_user_code else {**_EVERY, **_CONTROL}
        for option, value in wanted.items():
            actual = getattr(task, option, value)
            if actual != value and not (value is None and not actual):
                changed.setdefault(f"{option} = {actual!r} instead of {value!r}", []).append(name)
    advice = "let task_annotations and global task_* settings spare tasks named 'stabilize.*'"
    why = "The engine relies on late acknowledgement, no result, no retries and limits but its own."
    for what, names in changed.items():
        listed = "all" if len(names) == len(MESSAGE_TYPES) else ", ".join(names)
        yield Finding("settings", ERROR, f"the engine's Celery tasks ({listed}) have {what}", advice, why)


def _held_messages(app: celery.Celery) -> str:
    """Users' tasks that hold a message for as long as they run."""
    held = sorted(
        name
        for name, task in app.tasks.items()
        if not name.startswith((TASK_PREFIX, "celery."))
        and task.acks_late
        and not 0 < float(task.time_limit or app.conf.task_time_limit or 0) <= _CONSUMER_TIMEOUT
    )
    more = f" and {len(held) - 5} more" if len(held) > 5 else ""
    return ", ".join(held[:5]) + more if _on_rabbitmq(app.conf) else ""


def _examine_workers(engine: Stabilize, timeout: float, known: list[Finding]) -> Iterator[Finding]:
    """Ask every worker that answers; ``known`` is what was found before."""
    app, settings = engine.app, engine.settings
    assert app is not None
    names = sorted(app.control.inspect(timeout=timeout).ping() or {})
    if not names:
        advice = f"start one: celery -A {app.main or 'yourapp'} worker"
        why = "None runs, all are too busy to answer, or worker_enable_remote_control is off."
        yield Finding("workers", ERROR, "no worker answers", advice, why)
        return
    # As many answers as there are workers: not the whole timeout each time.
    inspect = app.control.inspect(destination=names, timeout=timeout, limit=len(names))
    stats, registered = inspect.stats() or {}, inspect.registered() or {}
    active = inspect.active_queues() or {}
    queues = {name: {queue["name"] for queue in each} for name, each in active.items()}
    identity = None
    with suppress(StabilizeError):  # then that is a finding already
        identity = engine.store.database.identity
    concerned = []
    for name in [name for name in names if queues.get(name, set()) & set(settings.queues())]:
        facts = _worker_facts(stats.get(name, {}), registered.get(name, ()), queues[name], settings, identity)
        found = _apply("workers", WORKER, name=name, **facts)
        what = f"{name}: {facts['pool']} pool of {facts['size']}, consumes {', '.join(sorted(queues[name]))}"
        yield from found or [Finding("workers", OK, what)]
        if not facts["foreign"]:
            concerned.append(name)
    yield from _examine_relays(stats, identity)
    yield from _examine_coverage(set().union(*queues.values()), settings)
    confs = inspect.conf(with_defaults=True) or {}
    yield from _examine_their_settings({name: confs.get(name) for name in concerned}, known)


def _worker_facts(
    stats: dict[str, Any], registered: Iterable[str], queues: set[str], settings: Settings, identity: Any
) -> dict[str, Any]:
    tasks = {entry.split(" ")[0] for entry in registered}
    pool, ours = stats.get("pool", {}), set(settings.queues())
    unknown = [kind for kind in MESSAGE_TYPES if TASK_PREFIX + kind not in tasks]
    foreign = _foreign_database(stats, identity)
    missing, cure = ", ".join(unknown), "start it with this release of stabilize-celery"
    if len(unknown) == len(MESSAGE_TYPES):
        missing = "the engine's messages"
        cure = "write `stabilize = Stabilize(app)` in its app, or give it other queues with -Q"
    return {
        "ours": ", ".join(sorted(queues & ours)),
        "foreign": foreign,
        "missing": "" if foreign else missing,
        "cure": cure,
        "fits": not foreign and not missing,
        "pool": str(pool.get("implementation", "")).removeprefix("celery.concurrency.").split(":")[0],
        "size": int(pool.get("max-concurrency") or 1),
        "amqp": str(stats.get("broker", {}).get("transport", "amqp")).startswith(("amqp", "py")),
        "celery": tuple(int(part) for part in celery.__version__.split(".")[:2]),
        "queue": settings.queue,
        "control": settings.queue in queues,
        "tasks": ", ".join(sorted(queues & ours - {settings.queue})),
        "fetched": int(stats.get("prefetch_count") or 0),
    }


def _foreign_database(stats: dict[str, Any], identity: str | None) -> str | None:
    """The database that a worker's relay serves, if it is another one."""
    theirs: str | None = stats.get(_RELAY, {}).get("database")
    return theirs if identity is not None and theirs != identity else None


def _examine_relays(stats: dict[str, Any], identity: str | None) -> Iterator[Finding]:
    ours = {name: each for name, each in stats.items() if not _foreign_database(each, identity)}
    relays = {name: each[_RELAY] for name, each in ours.items() if _RELAY in each}
    alive = [name for name, relay in relays.items() if relay.get("alive")]
    for name in sorted(set(relays) - set(alive)):
        yield Finding("workers", ERROR, f"the relay of {name} has ended", "look at its log, and restart it")
    served = "" if identity is None else f" for database {identity}"
    sent = sum(int(relays[name].get("sent", 0)) for name in alive)
    facts = {"alive": ", ".join(sorted(alive)), "relays": relays, "served": served, "sent": sent}
    yield from _apply("workers", RELAY, **facts)


def _examine_coverage(consumed: set[str], settings: Settings) -> Iterator[Finding]:
    for queue in settings.queues():
        if queue not in consumed:
            types = [kind for kind in settings.task_routes if settings.queue_for(kind) == queue]
            why = f"Tasks of type {', '.join(types)} wait there." if types else "What is sent to it waits."
            what = f"no worker that answers consumes queue {queue}"
            yield Finding("workers", ERROR, what, f"start one: -Q {queue}", why)


def _examine_their_settings(confs: dict[str, Any], known: list[Finding]) -> Iterator[Finding]:
    """What a worker's own configuration says where it differs from the one here."""
    seen = {(finding.what, finding.advice) for finding in known}
    names: dict[Finding, list[str]] = {}
    for name, conf in confs.items():
        for finding in _examine_settings(conf) if isinstance(conf, dict) else ():
            if (finding.what, finding.advice) not in seen:
                names.setdefault(finding, []).append(name)
    for one, workers in names.items():
        yield Finding("workers", one.level, f"{', '.join(workers)}: {one.what}", one.advice, one.why)
