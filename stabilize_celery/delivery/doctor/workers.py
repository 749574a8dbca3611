"""The doctor's look at the workers that are running: pools, queues, what they know, and the relay."""

from __future__ import annotations

from typing import Any

from celery import Celery

from stabilize_celery.delivery.doctor.configuration import examine_settings
from stabilize_celery.errors import StoreError
from stabilize_celery.messages import MESSAGE_TYPES, TASK_PREFIX
from stabilize_celery.persistence.database import Database
from stabilize_celery.persistence.finding import Finding, Level
from stabilize_celery.settings import Settings

RELAY = "stabilize-relay"
#: Celery and kombu before these let a pool of threads stall.
_THREADS_SINCE = (5, 7)


def examine_workers(
    app: Celery, settings: Settings, database: Database, timeout: float, found: list[Finding]
) -> None:
    """Ask every worker that answers, and add what is found."""
    names = sorted(app.control.inspect(timeout=timeout).ping() or {})
    if not names:
        found.append(
            Finding(
                "workers",
                Level.ERROR,
                "no worker answers",
                f"start one: celery -A {app.main or 'yourapp'} worker",
                "Nobody runs workflows, or the workers are too busy to answer, or worker_enable_remote_control is off.",
            )
        )
        return
    # As many answers as there are workers: not the whole timeout each time.
    inspect = app.control.inspect(destination=names, timeout=timeout, limit=len(names))
    stats, registered = inspect.stats() or {}, inspect.registered() or {}
    consumed = {
        name: {queue["name"] for queue in queues} for name, queues in (inspect.active_queues() or {}).items()
    }
    ours = set(settings.queues())
    concerned = [name for name in names if consumed.get(name, set()) & ours]
    identity = _identity_of(database)
    for name in [name for name in concerned if _is_foreign(stats.get(name, {}), identity)]:
        concerned.remove(name)
        found.append(
            Finding(
                "workers",
                Level.WARNING,
                f"{name} consumes {', '.join(sorted(consumed[name] & ours))} for another database, "
                f"{stats[name][RELAY]['database']}",
                "give each app a virtual host of its own, or queues of its own with stabilize_queue",
                "Each drops what it gets of the other's; that is sent again, but after stabilize_resend_delay.",
            )
        )
    for name in concerned:
        known = {entry.split(" ")[0] for entry in registered.get(name, ())}
        if not _examine_knowledge(name, known, consumed[name] & ours, found):
            continue
        _examine_pool(app, name, stats.get(name, {}), consumed[name], settings, found)
    _examine_relay(stats, identity, found)
    _examine_coverage(consumed, settings, found)
    confs = inspect.conf(with_defaults=True) or {}
    _examine_their_settings(
        {name: confs[name] for name in concerned if isinstance(confs.get(name), dict)}, found
    )


def _examine_knowledge(name: str, known: set[str], queues: set[str], found: list[Finding]) -> bool:
    missing = [kind for kind in MESSAGE_TYPES if TASK_PREFIX + kind not in known]
    if not missing:
        return True
    all_missing = len(missing) == len(MESSAGE_TYPES)
    found.append(
        Finding(
            "workers",
            Level.ERROR,
            f"{name} consumes {', '.join(sorted(queues))} but does not know "
            + ("the engine's messages" if all_missing else ", ".join(missing)),
            "write `stabilize = Stabilize(app)` in its app, or give it other queues with -Q"
            if all_missing
            else "start it with this release of stabilize-celery",
            "Celery throws away a message whose task it does not know; it is sent again only after "
            "stabilize_resend_delay.",
        )
    )
    return False


def _examine_pool(
    app: Celery, name: str, stats: dict[str, Any], queues: set[str], settings: Settings, found: list[Finding]
) -> None:
    pool = stats.get("pool", {})
    kind = str(pool.get("implementation", "")).removeprefix("celery.concurrency.").split(":")[0]
    size = int(pool.get("max-concurrency") or 1)
    task_queues = set(settings.queues()) - {settings.queue}
    before = len(found)
    if kind == "solo" and str(stats.get("broker", {}).get("transport", "amqp")).startswith(("amqp", "py")):
        found.append(
            Finding(
                "workers",
                Level.ERROR,
                f"{name} has a solo pool",
                "start it with --pool prefork or --pool threads",
                "On RabbitMQ a solo pool takes about one message a second, and hears nothing while it works.",
            )
        )
    if kind == "thread" and _version() < _THREADS_SINCE:
        found.append(
            Finding(
                "workers",
                Level.ERROR,
                f"{name} has a pool of threads, on Celery {'.'.join(map(str, _version()))}",
                "upgrade to Celery 5.7 or later, or start it with --pool prefork",
                "Before 5.7 a pool of threads on RabbitMQ stalls between messages.",
            )
        )
    if settings.queue in queues and queues & task_queues:
        found.append(
            Finding(
                "workers",
                Level.WARNING,
                f"{name} consumes {settings.queue} and {', '.join(sorted(queues & task_queues))}",
                f"give {settings.queue} a worker of its own with -Q",
                "The engine's messages, milliseconds each, wait behind tasks that may take hours.",
            )
        )
    elif queues & task_queues and int(stats.get("prefetch_count") or 0) > size:
        found.append(
            Finding(
                "workers",
                Level.WARNING,
                f"{name} fetches {stats['prefetch_count']} messages for {size} tasks at a time",
                "start it with --prefetch-multiplier 1",
                "Tasks that were fetched wait behind a long one while other workers are free.",
            )
        )
    if len(found) == before:
        found.append(
            Finding(
                "workers", Level.OK, f"{name}: {kind} pool of {size}, consumes {', '.join(sorted(queues))}"
            )
        )


def _version() -> tuple[int, ...]:
    import celery

    return tuple(int(part) for part in celery.__version__.split(".")[:2])


def _identity_of(database: Database) -> str | None:
    try:
        return database.identity
    except StoreError:
        # Said by the look at the database already.
        return None


def _is_foreign(told: dict[str, Any], identity: str | None) -> bool:
    """Whether a worker's relay says that it serves another database."""
    return None not in (identity, theirs := told.get(RELAY, {}).get("database")) and theirs != identity


def _examine_relay(stats: dict[str, Any], identity: str | None, found: list[Finding]) -> None:
    relays = {
        name: told[RELAY] for name, told in stats.items() if RELAY in told and not _is_foreign(told, identity)
    }
    served = "" if identity is None else f" for database {identity}"
    alive = [name for name, told in relays.items() if told.get("alive")]
    for name in sorted(set(relays) - set(alive)):
        found.append(
            Finding(
                "workers", Level.ERROR, f"the relay of {name} has ended", "look at its log, and restart it"
            )
        )
    if alive:
        sent = sum(int(relays[name].get("sent", 0)) for name in alive)
        found.append(
            Finding(
                "workers",
                Level.OK,
                f"a relay runs in {', '.join(sorted(alive))}{served} ({sent:,} messages sent)",
            )
        )
    elif not relays:
        found.append(
            Finding(
                "workers",
                Level.ERROR,
                f"no worker runs a relay{served}",
                "start at least one without --no-stabilize-relay",
                "Delayed messages, retries and what was lost on the way are sent by nobody else.",
            )
        )


def _examine_coverage(consumed: dict[str, set[str]], settings: Settings, found: list[Finding]) -> None:
    everything = set().union(*consumed.values())
    for queue in settings.queues():
        if queue not in everything:
            types = [kind for kind in settings.task_routes if settings.queue_for(kind) == queue]
            reason = f"Tasks of type {', '.join(types)} wait there." if types else "What is sent to it waits."
            found.append(
                Finding(
                    "workers",
                    Level.ERROR,
                    f"no worker that answers consumes queue {queue}",
                    f"start one: -Q {queue}",
                    reason,
                )
            )


def _examine_their_settings(confs: dict[str, dict[str, Any]], found: list[Finding]) -> None:
    """What a worker's own configuration says where it differs from the one here."""
    known = {(finding.what, finding.advice) for finding in found}
    told: dict[tuple[str, str], list[str]] = {}
    findings: dict[tuple[str, str], Finding] = {}
    for name, conf in confs.items():
        for finding in examine_settings(conf):
            key = (finding.what, finding.advice)
            if finding.level is not Level.OK and key not in known:
                told.setdefault(key, []).append(name)
                findings[key] = finding
    for key, names in told.items():
        one = findings[key]
        found.append(Finding("workers", one.level, f"{', '.join(names)}: {one.what}", one.advice, one.why))
