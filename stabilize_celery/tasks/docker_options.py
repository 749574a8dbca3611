"""Options of a ``docker`` stage, and what is refused before an engine is asked."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from stabilize_celery.settings import Seconds
from stabilize_celery.tasks.options import DEFAULT_MAX_OUTPUT_BYTES, Environment, PlainText, TaskOptions

#: Each of these lets a process out of its container or into the host's kernel.
DANGEROUS_CAPABILITIES = frozenset(
    {
        "ALL",
        "BPF",
        "DAC_READ_SEARCH",
        "MAC_ADMIN",
        "MAC_OVERRIDE",
        "NET_ADMIN",
        "PERFMON",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_MODULE",
        "SYS_PTRACE",
        "SYS_RAWIO",
        "SYS_TIME",
        "SYSLOG",
    }
)
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_RESTART = re.compile(r"no|always|unless-stopped|on-failure(:\d+)?")
ACTIONS = ("build", "exec", "images", "logs", "ps", "pull", "rm", "run", "stop")
#: What each action cannot do without.
_REQUIRED = {
    "run": ("image",),
    "exec": ("name", "command"),
    "build": ("tag",),
    "pull": ("image",),
    "logs": ("name",),
    "stop": ("name",),
    "rm": ("name",),
}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    """``["A=1"]`` is the same as ``{"A": "1"}``."""
    if isinstance(value, list) and all(isinstance(item, str) and "=" in item for item in value):
        return dict(item.split("=", 1) for item in value)
    return value


def _strings(value: dict[str, Any] | list[str]) -> dict[str, str]:
    if isinstance(value, list):
        return {name: rest for name, _, rest in (item.partition(":") for item in value)}
    return {str(key): str(item) for key, item in value.items()}


Texts = Annotated[list[PlainText], BeforeValidator(_listed)]
Pairs = Annotated[Environment, BeforeValidator(_pairs)]
Mapped = Annotated[dict[str, Any] | list[str], AfterValidator(_strings)]


class DockerOptions(TaskOptions):
    """Options of a ``docker`` stage; each action takes those that make sense for it."""

    private: ClassVar[frozenset[str]] = frozenset({"environment", "build_args", "command", "entrypoint"})

    action: str = "run"
    #: Seconds for the whole action.
    timeout: Seconds = Field(default=14400.0, gt=0)
    #: Bytes kept of stdout and of stderr.
    max_output_size: int = Field(default=DEFAULT_MAX_OUTPUT_BYTES, ge=0)

    image: PlainText | None = None
    #: Container; ``run`` makes a name up.
    name: PlainText | None = None
    #: One text is split like a shell splits it; no shell runs it.
    command: PlainText | list[PlainText] | None = None

    # run
    #: ``/host/path:/container/path[:ro]``
    volumes: Texts = Field(default_factory=list)
    #: ``[address:]host:container[/udp]``
    ports: Texts = Field(default_factory=list)
    #: A mapping, or a list of ``NAME=value``.
    environment: Pairs = Field(default_factory=dict)
    workdir: str | None = None
    network: str | None = None
    #: Remove the container when it has ended.
    remove: bool = True
    #: Do not wait for it; the output ``container_id`` names it.
    detach: bool = False
    entrypoint: PlainText | list[PlainText] | None = None
    user: str | None = None
    hostname: str | None = None
    privileged: bool = False
    allow_privileged: bool = False
    cap_add: Texts = Field(default_factory=list)
    allow_dangerous_capabilities: bool = False
    cap_drop: Texts = Field(default_factory=list)
    memory: str | int | None = None
    memory_swap: str | int | None = None
    cpus: float | None = Field(default=None, gt=0)
    #: ``all``, a number, or ``device=ID,ID``.
    gpus: str | int | None = None
    shm_size: str | int | None = None
    #: ``/path`` or ``/path:options``
    tmpfs: Mapped = Field(default_factory=dict)
    read_only: bool = False
    security_opt: Texts = Field(default_factory=list)
    #: ``{"nofile": 1024}`` or ``{"nofile": "1024:2048"}``
    ulimit: dict[str, int | str] = Field(default_factory=dict)
    labels: Pairs = Field(default_factory=dict)
    dns: Texts = Field(default_factory=list)
    #: A mapping, or a list of ``host:address``.
    extra_hosts: Mapped = Field(default_factory=dict)
    init: bool = False
    platform: str | None = None
    pull: Literal["always", "missing", "never"] | bool = "missing"
    restart: str | None = None
    stdin_open: bool = False
    tty: bool = False

    # exec
    interactive: bool = False

    # build
    tag: PlainText | None = None
    #: Within ``context``.
    dockerfile: str | None = None
    build_context: str = Field(default=".", alias="context")
    build_args: Pairs = Field(default_factory=dict)
    no_cache: bool = False

    # ps, logs, rm
    all: bool = False
    #: Lines from the end.
    tail: int | None = Field(default=None, ge=0)
    force: bool = False

    @field_validator("action")
    @classmethod
    def _known_action(cls, value: str) -> str:
        if value not in ACTIONS:
            raise ValueError(f"Unsupported action {value!r}. Supported: {list(ACTIONS)}")
        return value

    @field_validator("name")
    @classmethod
    def _container_name(cls, value: str | None) -> str | None:
        if value is not None and not _NAME.fullmatch(value):
            raise ValueError("is no name of a container")
        return value

    @field_validator("restart")
    @classmethod
    def _restart_policy(cls, value: str | None) -> str | None:
        if value is not None and not _RESTART.fullmatch(value):
            raise ValueError("use no, always, unless-stopped, on-failure or on-failure:N")
        return value

    @field_validator("volumes")
    @classmethod
    def _absolute_volumes(cls, value: list[str]) -> list[str]:
        for volume in value:
            parts = volume.split(":")
            if len(parts) not in (2, 3) or not all(part.startswith("/") for part in parts[:2]):
                raise ValueError("volumes must be /absolute/host/path:/absolute/container/path[:mode]")
            if any(".." in part.split("/") for part in parts[:2]):
                raise ValueError("Path traversal blocked in volumes")
        return value

    @model_validator(mode="after")
    def _allowed(self) -> DockerOptions:
        for name in _REQUIRED.get(self.action, ()):
            if not getattr(self, name):
                raise ValueError(f"No '{name}' specified in context; action '{self.action}' needs it")
        if self.privileged and not self.allow_privileged:
            raise ValueError("'privileged' gives the container the whole host; it needs 'allow_privileged'")
        dangerous = {name.upper().removeprefix("CAP_") for name in self.cap_add} & DANGEROUS_CAPABILITIES
        if dangerous and not self.allow_dangerous_capabilities:
            raise ValueError(
                f"capabilities {', '.join(sorted(dangerous))} need 'allow_dangerous_capabilities'"
            )
        if self.restart not in (None, "no") and not self.detach:
            raise ValueError("'restart' needs 'detach': a container that restarts does not end")
        return self
