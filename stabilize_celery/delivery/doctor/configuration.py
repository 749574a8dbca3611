"""The doctor's look at the Celery configuration, against what durable workflows want."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from celery import Celery

from stabilize_celery.messages import MESSAGE_TYPES, TASK_PREFIX
from stabilize_celery.persistence.finding import Finding, Level
from stabilize_celery.redaction import redact
from stabilize_celery.settings import Settings

#: RabbitMQ's own default for ``consumer_timeout``, in seconds.
_CONSUMER_TIMEOUT = 1800


@dataclass(frozen=True)
class Rule:
    """One setting of Celery's.

    Attributes:
        name: of the setting.
        is_wrong: given the value and the whole configuration.
        advice: what to write instead.
    """

    name: str
    level: Level
    is_wrong: Callable[[Any, Mapping[str, Any]], bool]
    advice: str
    why: str


def _on_rabbitmq(conf: Mapping[str, Any]) -> bool:
    url = conf.get("broker_write_url") or conf.get("broker_url") or "amqp://"
    return str(url[0] if isinstance(url, list | tuple) and url else url).startswith(("amqp", "pyamqp"))


def _pool(conf: Mapping[str, Any]) -> str:
    return str(conf.get("worker_pool") or "prefork")


def _quorum_on_direct(kind: Any, conf: Mapping[str, Any]) -> bool:
    return bool(kind == "quorum" and conf.get("task_default_exchange_type", "direct") == "direct")


#: See "Celery settings" in docs/how-to/doctor.md.
RULES = (
    Rule(
        "accept_content",
        Level.ERROR,
        lambda value, _: not {"json", "application/json"} & set(value or ()),
        "accept_content = ['json']",
        "The engine's messages are JSON; workers would refuse them.",
    ),
    Rule(
        "accept_content",
        Level.WARNING,
        lambda value, _: bool({"pickle", "application/x-python-serialize"} & set(value or ())),
        "accept_content = ['json']",
        "Whoever can write to the broker can run any code in a worker that unpickles.",
    ),
    Rule(
        "task_always_eager",
        Level.ERROR,
        lambda value, _: bool(value),
        "task_always_eager = False",
        "Celery tasks used as stages run in the engine's worker, and die with it.",
    ),
    Rule(
        "broker_channel_error_retry",
        Level.WARNING,
        lambda value, conf: not value and _on_rabbitmq(conf),
        "broker_channel_error_retry = True",
        "Without it one channel error, such as RabbitMQ's consumer_timeout, ends the worker process.",
    ),
    Rule(
        "broker_connection_retry_on_startup",
        Level.WARNING,
        lambda value, _: not value,
        "broker_connection_retry_on_startup = True",
        "A worker that is started before its broker then waits for it instead of ending.",
    ),
    Rule(
        "broker_heartbeat",
        Level.WARNING,
        lambda value, conf: _on_rabbitmq(conf) and not 0 < float(value or 0) <= 60,
        "broker_heartbeat = 20",
        "A peer that is gone is noticed after two to four heartbeats; the default of 120 s makes that minutes, 0 never.",
    ),
    Rule(
        "broker_transport_options",
        Level.WARNING,
        lambda value, conf: _on_rabbitmq(conf) and not (value or {}).get("confirm_publish"),
        "broker_transport_options = {'confirm_publish': True}",
        "Your own code that publishes hears of nothing the broker refuses. (The relay counts its own confirms.)",
    ),
    Rule(
        "worker_soft_shutdown_timeout",
        Level.WARNING,
        lambda value, _: not value,
        "worker_soft_shutdown_timeout = 20",
        "A cold shutdown (SIGQUIT) then lets running tasks finish for that long before they are repeated elsewhere.",
    ),
    Rule(
        "worker_cancel_long_running_tasks_on_connection_loss",
        Level.ERROR,
        lambda value, conf: bool(value) and _pool(conf) in ("threads", "gevent", "eventlet"),
        "worker_cancel_long_running_tasks_on_connection_loss = False for this pool",
        "Only prefork can cancel; elsewhere it fails, the tasks run twice, and the worker hangs when it is stopped.",
    ),
    Rule(
        "worker_cancel_long_running_tasks_on_connection_loss",
        Level.WARNING,
        lambda value, conf: not value and _pool(conf) == "prefork",
        "worker_cancel_long_running_tasks_on_connection_loss = True",
        "When the connection to the broker is lost, your tasks that acknowledge late are delivered again while the "
        "first run still goes on.",
    ),
    Rule(
        "worker_enable_remote_control",
        Level.WARNING,
        lambda value, _: value is False,
        "worker_enable_remote_control = True",
        "Celery tasks used as stages are stopped by `revoke`, which workers then do not hear; nor can they be inspected.",
    ),
    Rule(
        "worker_pool",
        Level.ERROR,
        lambda value, conf: value == "solo" and _on_rabbitmq(conf),
        "worker_pool = 'prefork' or 'threads'",
        "On RabbitMQ a solo pool takes about one message a second.",
    ),
    Rule(
        "task_default_queue_type",
        Level.WARNING,
        _quorum_on_direct,
        "task_default_exchange_type = 'topic'",
        "With quorum queues and a direct exchange, tasks with a countdown or ETA sit unacknowledged in a worker's "
        "memory. (The engine never uses them.)",
    ),
    Rule(
        "task_ignore_result",
        Level.WARNING,
        lambda value, conf: str(conf.get("result_backend") or "").startswith("rpc") and not value,
        "result_backend = None, or task_ignore_result = True",
        "Results sent back over the broker that nobody reads pile up there; workflows need no result backend.",
    ),
)

#: What the engine sets on its Celery tasks, and what happens if something undoes it.
_CONTROL = {
    "acks_late": True,
    "reject_on_worker_lost": True,
    "acks_on_failure": True,
    "acks_on_timeout": True,
}
_EVERY = {
    "ignore_result": True,
    "max_retries": 0,
    "serializer": "json",
    "rate_limit": None,
    "time_limit": None,
}


def examine_configuration(app: Celery, settings: Settings, found: list[Finding]) -> None:
    """The configuration this process has, and what became of the engine's own Celery tasks under it."""
    before = len(found)
    found += examine_settings(app.conf)
    _examine_entrypoints(app, found)
    _examine_route(app, settings, found)
    _examine_time_limits(app, settings, found)
    _examine_late_tasks(app, found)
    _examine_leases(settings, found)
    if len(found) == before:
        found.append(Finding("settings", Level.OK, "Celery's settings fit"))


def examine_settings(conf: Mapping[str, Any]) -> list[Finding]:
    """What a configuration says that it should not."""
    return [
        Finding(
            "settings", rule.level, f"{rule.name} is {redact(conf.get(rule.name))!r}", rule.advice, rule.why
        )
        for rule in RULES
        if rule.is_wrong(conf.get(rule.name), conf)
    ]


def _examine_entrypoints(app: Celery, found: list[Finding]) -> None:
    changed: dict[str, list[str]] = {}
    for name, message_type in MESSAGE_TYPES.items():
        task = app.tasks[TASK_PREFIX + name]
        wanted = _EVERY if message_type.runs_user_code else {**_EVERY, **_CONTROL}
        for option, value in wanted.items():
            actual = getattr(task, option, value)
            if actual != value and not (value is None and not actual):
                changed.setdefault(f"{option} = {actual!r} instead of {value!r}", []).append(name)
    for what, names in changed.items():
        listed = "all" if len(names) == len(MESSAGE_TYPES) else ", ".join(names)
        found.append(
            Finding(
                "settings",
                Level.ERROR,
                f"the engine's Celery tasks ({listed}) have {what}",
                "let task_annotations and global task_* settings spare tasks named 'stabilize.*'",
                "The engine sets what it relies on: late acknowledgement, no result, no retries and limits but its own.",
            )
        )


def _examine_route(app: Celery, settings: Settings, found: list[Finding]) -> None:
    try:
        routed = app.amqp.router.route({}, TASK_PREFIX + "StartWorkflow")["queue"]
    except Exception as error:
        found.append(
            Finding(
                "settings",
                Level.ERROR,
                f"task_routes cannot be used: {type(error).__name__}: {error}",
                "correct task_routes",
            )
        )
        return
    name = getattr(routed, "name", routed)
    if name != settings.queue:
        found.append(
            Finding(
                "settings",
                Level.WARNING,
                f"task_routes sends the engine's Celery tasks to queue {name}",
                "set task_routes before the configuration is first used, or add "
                f"{{'stabilize.*': {{'queue': {settings.queue!r}}}}} to it",
                "The engine names its queues itself; only what somebody calls by hand goes astray.",
            )
        )


def _examine_time_limits(app: Celery, settings: Settings, found: list[Finding]) -> None:
    for name in ("task_time_limit", "task_soft_time_limit"):
        limit = app.conf.get(name)
        if limit and limit < settings.task_time_limit:
            found.append(
                Finding(
                    "settings",
                    Level.WARNING,
                    f"{name} is {limit:g} s, stabilize_task_time_limit {settings.task_time_limit:g} s",
                    f"set stabilize_task_time_limit below {limit:g}, or {name} above it",
                    "Celery ends the pool process of a task of yours before the engine does: the attempt ends as that "
                    "of a lost worker, and is repeated.",
                )
            )


def _examine_late_tasks(app: Celery, found: list[Finding]) -> None:
    """Users' tasks that hold a message for as long as they run."""
    if not _on_rabbitmq(app.conf):
        return
    held = sorted(
        name
        for name, task in app.tasks.items()
        if not name.startswith((TASK_PREFIX, "celery."))
        and task.acks_late
        and not 0 < float(task.time_limit or app.conf.task_time_limit or 0) <= _CONSUMER_TIMEOUT
    )
    if held:
        more = f" and {len(held) - 5} more" if len(held) > 5 else ""
        found.append(
            Finding(
                "settings",
                Level.WARNING,
                f"{', '.join(held[:5])}{more}: acknowledged late, with no time limit below {_CONSUMER_TIMEOUT} s",
                f"give them a time_limit below {_CONSUMER_TIMEOUT}, or acks_late=False where they are used as stages",
                "RabbitMQ closes the channel of a worker that holds a message for longer than its consumer_timeout.",
            )
        )


def _examine_leases(settings: Settings, found: list[Finding]) -> None:
    if settings.lease < 3 * settings.heartbeat:
        found.append(
            Finding(
                "settings",
                Level.WARNING,
                f"stabilize_lease is {settings.lease:g} s, stabilize_heartbeat {settings.heartbeat:g} s",
                "let the lease last for several heartbeats",
                "One heartbeat that comes late, and another worker runs the same task.",
            )
        )
