"""Containers: how the options become a container, and running it to its end."""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

from stabilize_celery.tasks.docker_client import Watch, bounded, connect
from stabilize_celery.tasks.docker_options import DockerOptions
from stabilize_celery.tasks.processes import ProcessResult
from stabilize_celery.tasks.run import current_run

#: Label that finds the container of an earlier attempt whose worker died.
TASK_LABEL = "stabilize.task"
#: Label of one attempt's container.
ATTEMPT_LABEL = "stabilize.attempt"
#: Seconds for a request that kills or removes a container.
_QUICK_SECONDS = 30.0


def run_container(client: Any, watch: Watch, options: DockerOptions) -> tuple[ProcessResult, str]:
    """Run a container; what it did, and its id.

    A container that is waited for is killed on a timeout and on an interrupt, and removed at the end unless asked
    not to.  One that an earlier attempt at the same task left behind is removed first.
    """
    _remove_leftovers(client)
    attempt = uuid.uuid4().hex
    try:
        container = create(client, options, attempt)
    except Exception:
        if watch.ended != "exit":
            _remove_attempt(attempt)  # the engine may have made it, and its answer was cut off
        raise
    if options.detach:
        client.start(container)
        return ProcessResult(0, b"", b"", False, False, "exit"), container
    try:
        watch.stopping(lambda: _kill(container))
        client.start(container)
        if watch.ended != "exit":
            _kill(container)  # what was told to stop before it had started did not listen
        code = client.wait(container, timeout=None).get("StatusCode", 0)
        out = bounded(_logs(client, container, stdout=True), options.max_output_size)
        err = bounded(_logs(client, container, stderr=True), options.max_output_size)
    finally:
        if options.remove:
            with contextlib.suppress(Exception):
                client.remove_container(container, force=True, v=True)
    result = ProcessResult(
        exit_code=code if watch.ended == "exit" else -1,
        stdout=bytes(out.data),
        stderr=bytes(err.data),
        stdout_truncated=out.truncated,
        stderr_truncated=err.truncated,
        ended=watch.ended,
    )
    return result, container


def _kill(container: str) -> None:
    """Over a connection of its own: the other one is busy waiting."""
    with contextlib.suppress(Exception), contextlib.closing(connect(_QUICK_SECONDS)) as client:
        client.kill(container)


def _remove_attempt(attempt: str) -> None:
    with contextlib.suppress(Exception), contextlib.closing(connect(_QUICK_SECONDS)) as client:
        _remove_labelled(client, f"{ATTEMPT_LABEL}={attempt}")


def _remove_labelled(client: Any, label: str) -> None:
    for found in client.containers(all=True, filters={"label": label}):
        client.remove_container(found["Id"], force=True, v=True)


def _logs(client: Any, container: str, stdout: bool = False, stderr: bool = False) -> Any:
    return client.logs(container, stdout=stdout, stderr=stderr, stream=True)


def _remove_leftovers(client: Any) -> None:
    run = current_run()
    if run is not None:
        _remove_labelled(client, f"{TASK_LABEL}={run.idempotency_key}")


def create(client: Any, options: DockerOptions, attempt: str) -> str:
    """Create the container, pulling its image as the option ``pull`` says; returns its id."""
    import docker

    if options.pull in ("always", True):
        pull_image(client, options)
    arguments = container_arguments(client, options, attempt)
    try:
        return str(client.create_container(**arguments)["Id"])
    except docker.errors.ImageNotFound:
        if options.pull == "never":
            raise
    pull_image(client, options)
    return str(client.create_container(**arguments)["Id"])


def pull_image(client: Any, options: DockerOptions) -> list[str]:
    """Pull the image; what the engine said, line by line.

    Raises:
        docker.errors.APIError: it could not be pulled.
    """
    import docker

    repository, tag = docker.utils.parse_repository_tag(options.image)
    lines = []
    for event in client.pull(
        repository, tag=tag or "latest", stream=True, decode=True, platform=options.platform
    ):
        if "error" in event:
            raise docker.errors.APIError(event["error"])
        if "progress" not in event:
            lines.append(": ".join(filter(None, [event.get("id"), event.get("status")])))
    return lines


def container_arguments(client: Any, options: DockerOptions, attempt: str) -> dict[str, Any]:
    """The options as the SDK takes them."""
    from docker.utils.ports import build_port_bindings

    labels = {**options.labels, ATTEMPT_LABEL: attempt}
    run = current_run()
    if run is not None and not options.detach:
        labels[TASK_LABEL] = run.idempotency_key
    ports = build_port_bindings(options.ports)
    return {
        "image": options.image,
        "command": options.command,
        "name": options.name or f"stabilize-run-{uuid.uuid4().hex[:12]}",
        "hostname": options.hostname,
        "user": options.user,
        "stdin_open": options.stdin_open,
        "tty": options.tty,
        "ports": [tuple(port.split("/")) if "/" in port else port for port in ports],
        "environment": options.environment,
        "volumes": [volume.split(":")[1] for volume in options.volumes],
        "entrypoint": options.entrypoint,
        "working_dir": options.workdir,
        "labels": labels,
        "platform": options.platform,
        "host_config": _host_config(client, options, ports),
    }


def _host_config(client: Any, options: DockerOptions, ports: dict[str, Any]) -> Any:
    from docker.types import DeviceRequest, Ulimit

    policy: dict[str, Any] | None = None
    if options.restart is not None:
        name, _, count = options.restart.partition(":")
        policy = {"Name": name, "MaximumRetryCount": int(count or 0)}
    gpus = []
    if options.gpus is not None:
        devices = str(options.gpus).removeprefix("device=")
        named = devices.split(",") if devices != str(options.gpus) else None
        number = None if named else (-1 if devices == "all" else int(devices))
        gpus = [DeviceRequest(count=number, device_ids=named, capabilities=[["gpu"]])]
    limits = []
    for name, value in options.ulimit.items():
        soft, _, hard = str(value).partition(":")
        limits.append(Ulimit(name=name, soft=int(soft), hard=int(hard or soft)))
    return client.create_host_config(
        binds=options.volumes,
        port_bindings=ports,
        privileged=options.privileged,
        dns=options.dns or None,
        network_mode=options.network,
        restart_policy=policy,
        cap_add=options.cap_add or None,
        cap_drop=options.cap_drop or None,
        extra_hosts=options.extra_hosts or None,
        read_only=options.read_only,
        mem_limit=options.memory,
        memswap_limit=options.memory_swap,
        nano_cpus=int(options.cpus * 10**9) if options.cpus else None,
        security_opt=options.security_opt or None,
        ulimits=limits or None,
        shm_size=options.shm_size,
        tmpfs=options.tmpfs or None,
        init=options.init or None,
        device_requests=gpus or None,
        auto_remove=options.detach and options.remove and options.restart in (None, "no"),
    )
