"""DockerTask: one action of a Docker engine, through its SDK (the extra ``docker``)."""

from __future__ import annotations

import contextlib
import re
import struct
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.plugins import Plugin
from stabilize_celery.redaction import Masker, Redactor, masker_of, redactor_of
from stabilize_celery.settings import Seconds
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.options import (
    DEFAULT_MAX_OUTPUT_BYTES,
    Environment,
    OptionError,
    PlainText,
    TaskOptions,
    decode,
    execution_timeout,
    fitted,
    read_options,
    seconds,
)
from stabilize_celery.tasks.processes import Capture, Ending
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import current_run

#: Each of these lets a process out of its container or into the host's kernel.
_DANGEROUS = re.compile(
    "ALL|BPF|DAC_READ_SEARCH|MAC_ADMIN|MAC_OVERRIDE|NET_ADMIN|PERFMON|SYSLOG|"
    "SYS_ADMIN|SYS_BOOT|SYS_MODULE|SYS_PTRACE|SYS_RAWIO|SYS_TIME"
)
#: What each action cannot do without.
_REQUIRED = {"build": ["tag"], "exec": ["name", "command"], "logs": ["name"], "pull": ["image"]}
_REQUIRED |= {"rm": ["name"], "run": ["image"], "stop": ["name"]}
#: Labels that find the container of an earlier attempt whose worker died, and that of this attempt.
TASK_LABEL = "stabilize.task"
ATTEMPT_LABEL = "stabilize.attempt"
#: Seconds for a request that kills or removes a container.
_QUICK_SECONDS = 30.0
#: Seconds an action has to end by itself after its container was killed, before its connection is cut.
_CUT_AFTER_SECONDS = 10.0
_CHUNK = 65536
#: Head of a piece of output: stream, three unused bytes, size.
_FRAME = struct.Struct(">BxxxL")


class Docker(Plugin):
    """The task type ``docker``."""

    def task_types(self) -> Mapping[str, Any]:
        return {"docker": DockerTask}


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _pairs(value: Any) -> Any:
    """``["A=1"]`` is the same as ``{"A": "1"}``."""
    if isinstance(value, list) and all(isinstance(item, str) and "=" in item for item in value):
        return dict(item.split("=", 1) for item in value)
    return value


def _like(pattern: str, otherwise: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(otherwise)
        return value

    return AfterValidator(check)


Texts = Annotated[list[PlainText], BeforeValidator(_listed)]
Pairs = Annotated[Environment, BeforeValidator(_pairs)]
Name = Annotated[PlainText, _like(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*", "is no name of a container")]
Volume = Annotated[
    PlainText,
    _like(r"/[^:]*:/[^:]*(:[^:]*)?", "volumes must be /absolute/host/path:/absolute/container/path[:mode]"),
    _like(r"(?s)(?!.*/\.\.(/|:|$)).*", "Path traversal blocked in volumes"),
]
_RESTART = r"no|always|unless-stopped|on-failure(:\d+)?"
Restart = Annotated[str, _like(_RESTART, "use no, always, unless-stopped, on-failure or on-failure:N")]


class DockerOptions(TaskOptions):
    """Options of a ``docker`` stage; each action takes those that make sense for it."""

    private: ClassVar[frozenset[str]] = frozenset({"environment", "build_args", "command", "entrypoint"})

    action: Literal["build", "exec", "logs", "pull", "rm", "run", "stop"] = "run"
    #: Seconds for the whole action.
    timeout: Seconds = Field(default=14400.0, gt=0)
    #: Bytes kept of stdout and of stderr.
    max_output_size: int = Field(default=DEFAULT_MAX_OUTPUT_BYTES, ge=0)
    image: PlainText | None = None
    #: Container; ``run`` makes a name up.
    name: Name | None = None
    #: One text is split like a shell splits it; no shell runs it.
    command: PlainText | list[PlainText] | None = None
    #: ``/host/path:/container/path[:ro]``
    volumes: Annotated[list[Volume], BeforeValidator(_listed)] = Field(default_factory=list)
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
    tmpfs: dict[str, Any] | list[str] = Field(default_factory=dict)
    read_only: bool = False
    security_opt: Texts = Field(default_factory=list)
    #: ``{"nofile": 1024}`` or ``{"nofile": "1024:2048"}``
    ulimit: dict[str, int | str] = Field(default_factory=dict)
    labels: Pairs = Field(default_factory=dict)
    dns: Texts = Field(default_factory=list)
    #: A mapping, or a list of ``host:address``.
    extra_hosts: dict[str, Any] | list[str] = Field(default_factory=dict)
    init: bool = False
    platform: str | None = None
    pull: Literal["always", "missing", "never"] | bool = "missing"
    restart: Restart | None = None
    stdin_open: bool = False
    tty: bool = False
    interactive: bool = False
    tag: PlainText | None = None
    #: Within ``context``.
    dockerfile: str | None = None
    build_context: str = Field(default=".", alias="context")
    build_args: Pairs = Field(default_factory=dict)
    no_cache: bool = False
    #: Lines from the end.
    tail: int | None = Field(default=None, ge=0)
    force: bool = False

    @model_validator(mode="after")
    def _allowed(self) -> DockerOptions:
        for name in _REQUIRED[self.action]:
            if not getattr(self, name):
                raise ValueError(f"No '{name}' specified in context; action '{self.action}' needs it")
        if self.privileged and not self.allow_privileged:
            raise ValueError("'privileged' gives the container the whole host; it needs 'allow_privileged'")
        added = {name.upper().removeprefix("CAP_") for name in self.cap_add}
        dangerous = ", ".join(sorted(filter(_DANGEROUS.fullmatch, added)))
        if dangerous and not self.allow_dangerous_capabilities:
            raise ValueError(f"capabilities {dangerous} need 'allow_dangerous_capabilities'")
        if self.restart not in (None, "no") and not self.detach:
            raise ValueError("'restart' needs 'detach': a container that restarts does not end")
        return self


class DockerTask(Task):
    """Does ``action`` (run, exec, build, pull, logs, stop, rm) at the engine of the worker's environment.

    Outputs: ``stdout`` and ``stderr`` (stripped), ``exit_code``, ``truncated``; ``container_id`` if detached;
    ``image_id`` after build and pull.

    What an ``exec`` started goes on in its container after a timeout: the engine has no way to end it.
    """

    def execute(self, stage: StageExecution) -> TaskResult:
        """Do what ``stage`` asks for."""
        try:
            options = read_options(DockerOptions, stage)
        except OptionError as error:
            return TaskResult.terminal(str(error))
        try:
            client = connect(options.timeout)
        except DockerMissingError as error:
            message = f"Docker is not available. Ensure Docker is installed and running. ({error})"
            return options.failure(masker_of(stage).text(message))
        with contextlib.closing(client):
            return _act(client, options, stage)

    def get_execution_timeout(self, stage: StageExecution) -> timedelta | None:
        """The option ``timeout`` and some room to clean up."""
        default = timedelta(seconds=DockerOptions.model_fields["timeout"].default + 60)
        return execution_timeout(stage) or default


class DockerMissingError(Exception):
    """There is no Docker engine, or no SDK to speak to it."""


def connect(timeout: float) -> Any:
    """A client of the engine that the environment (``DOCKER_HOST`` etc.) names.

    Raises:
        DockerMissingError: none answers, or the extra ``docker`` is not installed.
    """
    try:
        import docker
    except ImportError:
        raise DockerMissingError("install stabilize-celery[docker]") from None
    try:
        # From the first read on, silence may last as long as the whole action.
        return docker.DockerClient.from_env(version="auto", timeout=timeout)
    except docker.errors.DockerException as error:
        reason = str(error)
    # Out here, so that the sockets the SDK leaves in the traceback go now.
    raise DockerMissingError(reason)


class _Watch:
    """Ends an action when its time is over or its run is interrupted.

    The container it waits for is killed.  If the action has not ended some time after that, the responses it reads are
    cut off, so that the worker gets on in any case.
    """

    def __init__(self, client: Any, timeout: float) -> None:
        self.ended: Ending = "exit"
        self._timeout = timeout
        self._container: str | None = None
        self._responses: list[Any] = []
        self._cut = False
        self._over = threading.Event()
        self._lock = threading.Lock()
        client.api.hooks["response"].append(self._note)

    def _note(self, response: Any, *_: Any, **__: Any) -> None:
        """Called by requests when the head of a response has arrived."""
        self._responses.append(response)
        if self._cut:
            _shut(response)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Watch over the block."""
        run = current_run()
        timer = threading.Timer(self._timeout, self._end, ["timeout"])
        timer.daemon = True
        timer.start()
        try:
            with run.on_interrupt(lambda: self._end("interrupt")) if run else contextlib.nullcontext():
                yield
        finally:
            self._over.set()
            timer.cancel()
            for response in self._responses:
                with contextlib.suppress(Exception):
                    response.close()

    def start(self, container: Any) -> None:
        """Start the container that is waited for; it is killed if the end has come or comes."""
        self._container = container.id
        container.start()
        # One that was killed before it had started did not listen.
        if self.ended != "exit":
            _quickly(lambda api: api.kill(container.id))

    def _end(self, why: Ending) -> None:
        with self._lock:
            if self.ended != "exit" or self._over.is_set():
                return
            self.ended = why
        threading.Thread(target=self._stop, daemon=True).start()

    def _stop(self) -> None:
        if (container := self._container) is not None:
            _quickly(lambda api: api.kill(container))
            if self._over.wait(_CUT_AFTER_SECONDS):
                return
        self._cut = True
        for response in list(self._responses):
            _shut(response)


def _shut(response: Any) -> None:
    """Let the reader of a response find its end.  It may have ended already, or its transport may not be able to."""
    with contextlib.suppress(Exception):
        response.raw.shutdown()


def _quickly(act: Callable[[Any], Any]) -> None:
    """Do something over a connection of its own, because the other one may be busy waiting."""
    with contextlib.suppress(Exception), contextlib.closing(connect(_QUICK_SECONDS)) as client:
        act(client.api)


@dataclass
class _Done:
    """What an action came to."""

    out: Capture = field(default_factory=lambda: Capture(0))
    err: Capture = field(default_factory=lambda: Capture(0))
    exit_code: int = 0
    more: dict[str, Any] = field(default_factory=dict)


def _act(client: Any, options: DockerOptions, stage: StageExecution) -> TaskResult:
    """Do the action under watch and turn what came of it into a result."""
    import docker
    import urllib3

    errors = (docker.errors.DockerException, urllib3.exceptions.HTTPError, OSError, TypeError, ValueError)
    watch, action = _Watch(client, options.timeout), options.action
    try:
        with watch.running():
            done = _ACTIONS[action](client, watch, options)
    except errors as error:
        if watch.ended == "exit":
            reason = getattr(error, "explanation", None) or str(error)
            return options.failure(redactor_of(stage).text(f"Docker {action} failed: {reason}"))
        done = _Done()
    code = done.exit_code if watch.ended == "exit" else -1
    masker = masker_of(stage) if code == 0 else redactor_of(stage)
    out, err = (_text(each, masker) for each in (done.out, done.err))
    truncated = done.out.truncated or done.err.truncated
    data = fitted({"stdout": out, "stderr": err, "exit_code": code, "truncated": truncated, **done.more})
    if watch.ended == "interrupt":
        return TaskResult.terminal(f"Docker {action} was interrupted", context=data)
    if watch.ended == "timeout":
        return options.failure(f"Docker {action} timed out after {seconds(options.timeout)}s", data)
    if code != 0:
        head = f": {data['stderr'][:200]}" if data["stderr"] else ""
        return options.failure(f"Docker {action} exited with code {code}{head}", data)
    return TaskResult.success(outputs=data)


def _text(capture: Capture, masker: Masker | Redactor) -> str:
    data = masker.data(bytes(capture.data), truncated=capture.truncated)
    return decode(data, capture.truncated).strip()


def _captured(chunks: Iterable[bytes | str], options: DockerOptions) -> Capture:
    """The first ``max_output_size`` bytes of a stream; what follows is not fetched."""
    capture = Capture(options.max_output_size)
    for chunk in chunks:
        capture.add(chunk.encode() if isinstance(chunk, str) else chunk)
        if capture.truncated:
            break
    with contextlib.suppress(Exception):
        chunks.close()  # type: ignore[attr-defined]
    return capture


def _run(client: Any, watch: _Watch, options: DockerOptions) -> _Done:
    """Run a container, after removing one that an earlier attempt at the same task has left behind."""
    run, attempt = current_run(), uuid.uuid4().hex
    if run is not None:
        _remove_labelled(client.api, f"{TASK_LABEL}={run.idempotency_key}")
    try:
        container = _create(client, options, attempt)
    except Exception:
        if watch.ended != "exit":
            # The engine may have made it, and its answer was cut off.
            _quickly(lambda api: _remove_labelled(api, f"{ATTEMPT_LABEL}={attempt}"))
        raise
    if options.detach:
        container.start()
        return _Done(more={"container_id": container.short_id})
    try:
        watch.start(container)
        code = container.wait(timeout=None).get("StatusCode", 0)
        done = _logs(client, watch, options.model_copy(update={"name": container.id, "tail": None}))
        return replace(done, exit_code=code)
    finally:
        if options.remove:
            with contextlib.suppress(Exception):
                container.remove(force=True, v=True)


def _remove_labelled(api: Any, label: str) -> None:
    for found in api.containers(all=True, filters={"label": label}):
        api.remove_container(found["Id"], force=True, v=True)


def _create(client: Any, options: DockerOptions, attempt: str) -> Any:
    """Create the container, pulling its image as the option ``pull`` says."""
    import docker

    if options.pull in ("always", True):
        list(_pull_events(client, options))
    try:
        return client.containers.create(**_arguments(options, attempt))
    except docker.errors.ImageNotFound:
        if options.pull == "never":
            raise
    list(_pull_events(client, options))
    return client.containers.create(**_arguments(options, attempt))


def _arguments(options: DockerOptions, attempt: str) -> dict[str, Any]:
    """The options as the SDK takes them."""
    from docker.types import DeviceRequest, Ulimit
    from docker.utils.ports import build_port_bindings

    run, labels = current_run(), {**options.labels, ATTEMPT_LABEL: attempt}
    if run is not None and not options.detach:
        labels[TASK_LABEL] = run.idempotency_key
    restart, _, retries = (options.restart or "").partition(":")
    gpus = None
    if options.gpus is not None:
        _, is_named, devices = str(options.gpus).rpartition("device=")
        count = None if is_named else -1 if devices == "all" else int(devices)
        named = devices.split(",") if is_named else None
        gpus = [DeviceRequest(count=count, device_ids=named, capabilities=[["gpu"]])]
    limits = []
    for name, value in options.ulimit.items():
        soft, _, hard = str(value).partition(":")
        limits.append(Ulimit(name=name, soft=int(soft), hard=int(hard or soft)))
    same = "image command hostname user stdin_open tty environment entrypoint init platform volumes network privileged"
    return {
        **_given(options, f"{same} read_only shm_size dns cap_add cap_drop extra_hosts security_opt tmpfs"),
        "name": options.name or f"stabilize-run-{uuid.uuid4().hex[:12]}",
        "labels": labels,
        "ports": build_port_bindings(options.ports),
        "working_dir": options.workdir,
        "mem_limit": options.memory,
        "memswap_limit": options.memory_swap,
        "nano_cpus": int(options.cpus * 10**9) if options.cpus else None,
        "restart_policy": {"Name": restart, "MaximumRetryCount": int(retries or 0)} if restart else None,
        "ulimits": limits or None,
        "device_requests": gpus,
        "auto_remove": options.detach and options.remove and options.restart in (None, "no"),
    }


def _given(options: DockerOptions, names: str) -> dict[str, Any]:
    return {name: value for name in names.split() if (value := getattr(options, name))}


def _exec(client: Any, watch: _Watch, options: DockerOptions) -> _Done:
    api = client.api
    given = _given(options, "tty workdir user privileged environment")
    identity = api.exec_create(options.name, options.command, stdin=options.interactive, **given)["Id"]
    out, err = Capture(options.max_output_size), Capture(options.max_output_size)
    url = f"{api.base_url}/v{api.api_version}/exec/{identity}/start"
    asked = {"Tty": options.tty, "Detach": False}
    with api.post(url, json=asked, stream=True, timeout=options.timeout) as response:
        response.raise_for_status()
        for stream, chunk in _frames(response, options.tty):
            (out if stream == 1 else err).add(chunk)
    return _Done(out, err, api.exec_inspect(identity)["ExitCode"] if watch.ended == "exit" else -1)


def _frames(response: Any, tty: bool) -> Iterator[tuple[int, bytes]]:
    """The output in a raw response: which stream (1 stdout, 2 stderr) and what it got.

    ``exec_start`` of the SDK reads past the buffer of the HTTP client: what arrives with the response's head is lost.
    """
    while tty and (chunk := response.raw.read1(_CHUNK)):
        yield 1, chunk
    while not tty and len(head := response.raw.read(_FRAME.size)) == _FRAME.size:
        stream, size = _FRAME.unpack(head)
        while size > 0 and (chunk := response.raw.read(min(size, _CHUNK))):
            size -= len(chunk)
            yield stream, chunk


def _events(events: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What the engine says; an error is raised."""
    import docker

    for event in events:
        if "error" in event:
            raise docker.errors.APIError(event["error"])
        yield event


def _build(client: Any, watch: _Watch, options: DockerOptions) -> _Done:
    capture, image = Capture(options.max_output_size), None
    events = client.api.build(
        path=options.build_context,
        buildargs=options.build_args,
        nocache=options.no_cache,
        rm=True,
        decode=True,
        **_given(options, "tag dockerfile platform"),
    )
    for event in _events(events):
        capture.add(event.get("stream", "").encode())
        image = event.get("aux", {}).get("ID", image)
    return _Done(capture, more={"image_id": image})


def _pull_events(client: Any, options: DockerOptions) -> Iterator[str]:
    """Pull the image; what the engine says, line by line."""
    from docker.utils import parse_repository_tag

    repository, tag = parse_repository_tag(options.image)
    given = {"tag": tag or "latest", "platform": options.platform}
    for event in _events(client.api.pull(repository, stream=True, decode=True, **given)):
        if "progress" not in event:
            yield ": ".join(filter(None, [event.get("id"), event.get("status")])) + "\n"


def _pull(client: Any, watch: _Watch, options: DockerOptions) -> _Done:
    out = _captured(list(_pull_events(client, options)), options)
    return _Done(out, more={"image_id": client.images.get(options.image).id})


def _logs(client: Any, watch: _Watch, options: DockerOptions) -> _Done:
    def logs(**stream: bool) -> Capture:
        tail = "all" if options.tail is None else options.tail
        return _captured(client.api.logs(options.name, stream=True, tail=tail, **stream), options)

    return _Done(logs(stdout=True, stderr=False), logs(stdout=False, stderr=True))


def _end(client: Any, watch: _Watch, options: DockerOptions) -> _Done:
    if options.action == "stop":
        client.api.stop(options.name)
    else:
        client.api.remove_container(options.name, force=options.force)
    return _Done(_captured([str(options.name)], options))


_ACTIONS: dict[str, Callable[[Any, _Watch, DockerOptions], _Done]] = {
    "build": _build,
    "exec": _exec,
    "logs": _logs,
    "pull": _pull,
    "rm": _end,
    "run": _run,
    "stop": _end,
}
