"""Every option, with its default and meaning.

Celery apps set them as ``stabilize_<name>`` keys of their configuration; Django style is ``STABILIZE_<NAME>`` under the
``CELERY`` namespace.  ``STABILIZE_<NAME>`` in the environment is taken where the configuration says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from stabilize_celery.clock import MAX_SECONDS
from stabilize_celery.errors import ConfigurationError
from stabilize_celery.redaction import DEFAULT_KEYS, redact

PREFIX = "stabilize_"
#: Given what is set by its plain name, the values of more settings.
Source = Callable[[Mapping[str, Any]], Mapping[str, Any]]
_sources: list[Source] = []


def add_source(source: Source) -> None:
    """Ask ``source`` for what neither the configuration nor the environment says; adding it twice changes nothing."""
    if source not in _sources:
        _sources.append(source)


def _split(value: Any) -> Any:
    """Lists may be text with commas: the environment knows nothing else."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _number(value: Any) -> Any:
    """``True`` is no number of seconds."""
    if isinstance(value, bool):
        raise ValueError("a number of seconds is wanted, not a truth value")
    return value


#: A finite number of seconds that a date can be reckoned with.
Seconds = Annotated[float, BeforeValidator(_number), Field(ge=0, le=MAX_SECONDS, allow_inf_nan=False)]
OptionalTask = Literal["python", "shell", "http", "docker"]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]


class Settings(BaseModel):
    """The engine's options; times are seconds, sizes bytes."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )

    database_url: str | None = None
    """SQLAlchemy URL of the database that holds the workflows."""
    django_alias: str = "default"
    """Django projects: the alias in DATABASES of the database that holds the workflows, if there is no URL."""
    database_pool_size: int = Field(5, ge=1)
    """Connections kept open per process."""
    database_prepare: bool = True
    """Prepare statements; off behind PgBouncer before 1.21."""
    database_listen_url: str | None = None
    """URL of the server itself, for LISTEN, if database_url names a pooler in transaction mode; without it delays below
    relay_interval take up to that long there."""

    inline: bool = True
    """Handle follow-on messages of a workflow in the same transaction."""
    inline_batch: int = Field(1000, ge=1)
    """Most follow-on messages handled in one transaction."""

    queue: str = "stabilize"
    """Queue of the engine's control messages; one for each app."""
    task_queue: str = "stabilize.tasks"
    """Queue of the messages that run user code; by default the name of the other with `.tasks`."""
    task_routes: dict[str, Any] = Field(default_factory=dict)
    """Queues of single task types: {"charge": {"queue": "payments"}}."""
    imports: Names = ()
    """Modules that register task types and builders."""

    builtin_tasks: Annotated[tuple[OptionalTask, ...], BeforeValidator(_split)] = (
        "python",
        "shell",
        "http",
        "docker",
    )
    """Which of the task types python, shell, http and docker there are; others are refused."""

    check_types: bool = True
    """Refuse to start a workflow with a task type that is not registered, where that is known."""

    unknown_type_grace: Seconds = Field(600.0, ge=0)
    """How long a task whose type a worker does not know is put off, for one that does; then it fails."""

    lease: Seconds = Field(30.0, gt=0)
    """How long a worker owns a task without a sign of life."""
    heartbeat: Seconds = Field(3.0, gt=0)
    """How often a worker renews its leases and hears of cancellations."""
    task_time_limit: Seconds = Field(14400.0, gt=0)
    """How long one call of a task may take."""
    task_kill_grace: Seconds = Field(5.0, ge=0)
    """How long a task that timed out or is canceled by force may still run before its pool process is ended."""
    max_attempts: int = Field(10, ge=1)
    """How often a task is executed before a transient error is final."""
    retry_delay: Seconds = Field(1.0, gt=0)
    """Delay before the first retry; doubles with each."""
    retry_delay_max: Seconds = Field(60.0, gt=0)
    """Longest delay between retries."""
    poll_delay: Seconds = Field(1.0, gt=0)
    """Delay between calls of a task that says it is still running."""
    max_output_bytes: int = Field(1024 * 1024, ge=1)
    """Largest outputs or context of a stage, as JSON."""
    hook_time_limit: Seconds = Field(60.0, gt=0)
    """How long on_cancel or on_cleanup may take."""
    allow_private_urls: bool = False
    """Let HTTP tasks reach private addresses."""

    redact_keys: Names = DEFAULT_KEYS
    """Keys whose values are shown as ``***`` in history, errors, logs, pages and on the command line."""

    relay_interval: Seconds = Field(1.0, gt=0)
    """Longest sleep of the relay between looks at the table."""
    relay_batch: int = Field(100, ge=1)
    """Most messages the relay sends at once."""
    resend_delay: Seconds = Field(10.0, gt=0)
    """When a message that was sent but not handled is sent again."""
    resend_delay_max: Seconds = Field(300.0, gt=0)
    """Longest time between sending a message again."""
    control_retry_delay: Seconds = Field(1.0, gt=0)
    """Delay before a control message that failed is repeated."""
    control_max_attempts: int = Field(10, ge=1)
    """Failures after which a control message is a dead letter."""
    retention: Seconds | None = Field(None, ge=0)
    """How long workflows that have ended are kept, unless `prune` is given another time."""

    send_events: bool = False
    """Send Celery events for what workflows do and for messages handled in place."""
    metrics_port: int | None = Field(None, ge=1, le=65535)
    """Port on which a worker serves metrics to Prometheus; none by default."""
    metrics_address: str = "0.0.0.0"
    """Address on which it listens there."""
    tracing: bool = False
    """Make OpenTelemetry spans of what tasks do."""

    @model_validator(mode="before")
    @classmethod
    def _name_queues(cls, values: Any) -> Any:
        """One setting names all queues of an app."""
        if isinstance(values, Mapping) and isinstance(values.get("queue"), str):
            return {"task_queue": f"{values['queue']}.tasks", **values}
        return values

    @classmethod
    def load(cls, values: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
        """From a configuration's ``stabilize_*`` keys and the environment.

        Raises:
            ConfigurationError: a value of the wrong form, or a key that does not exist.
        """
        environ = os.environ if environ is None else environ
        chosen: dict[str, Any] = {}
        for name in cls.model_fields:
            if (key := PREFIX + name) in values:
                chosen[name] = values[key]
            elif (key := PREFIX.upper() + name.upper()) in environ:
                chosen[name] = environ[key]
        unknown = sorted(
            k for k in values if k.startswith(PREFIX) and k[len(PREFIX) :] not in cls.model_fields
        )
        if unknown:
            raise ConfigurationError(f"there is no setting {', '.join(unknown)}")
        for source in _sources:
            chosen = {**source(chosen), **chosen}
        return cls.of(**chosen)

    @classmethod
    def of(cls, **values: Any) -> Settings:
        """Settings from plain names, with errors that say what to write instead.

        Raises:
            ConfigurationError: a value of the wrong form.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            problems = "; ".join(
                f"{PREFIX}{'.'.join(str(p) for p in e['loc'])}: {e['msg']} (is {redact(e['input'])!r})"
                for e in error.errors(include_url=False)
            )
            raise ConfigurationError(problems) from None

    def queue_for(self, task_type: str) -> str:
        """The queue of the messages that run a task type."""
        route = self.task_routes.get(task_type)
        if route is None:
            return self.task_queue
        if isinstance(route, str):
            return route
        return str(route.get("queue", self.task_queue))

    def queues(self) -> list[str]:
        """Every queue the engine sends to."""
        return list(dict.fromkeys([self.queue, self.task_queue, *map(self.queue_for, self.task_routes)]))
