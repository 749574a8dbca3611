"""DockerTask: one action of a Docker engine, spoken to through its SDK."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from stabilize_celery.models.stage import StageExecution
from stabilize_celery.tasks.docker_client import DockerMissingError, Watch, bounded, connect, frames
from stabilize_celery.tasks.docker_options import DockerOptions
from stabilize_celery.tasks.docker_run import pull_image, run_container
from stabilize_celery.tasks.interface import Task
from stabilize_celery.tasks.options import (
    OptionError,
    execution_timeout,
    fitted,
    masker_of,
    printed,
    read_options,
    redactor_of,
    seconds,
)
from stabilize_celery.tasks.processes import Capture, ProcessResult
from stabilize_celery.tasks.result import TaskResult

#: Characters of stderr in an error.
_ERROR_HEAD = 200
#: Characters of an id that people see.
_SHORT_ID = 12
_STDERR = 2


class DockerTask(Task):
    """Does ``action`` (run, exec, build, pull, ps, images, logs, stop, rm) at the engine of the worker's environment.

    Outputs: ``stdout`` and ``stderr`` (stripped), ``exit_code``, ``truncated``; ``container_id`` if detached;
    ``image_id`` after build and pull.  ``ps`` and ``images`` print one JSON object per line.

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
        return execution_timeout(stage) or timedelta(
            seconds=DockerOptions.model_fields["timeout"].default + 60
        )


def _act(client: Any, options: DockerOptions, stage: StageExecution) -> TaskResult:
    """Do the action under watch and turn what came of it into a result."""
    import docker
    import requests
    import urllib3

    watch = Watch(client, options.timeout)
    try:
        with watch.running():
            result, more = _ACTIONS[options.action](client, watch, options)
    except (
        docker.errors.DockerException,
        requests.RequestException,
        urllib3.exceptions.HTTPError,
        OSError,
        TypeError,
        ValueError,
    ) as error:
        if watch.ended == "exit":
            reason = getattr(error, "explanation", None) or str(error)
            return options.failure(redactor_of(stage).text(f"Docker {options.action} failed: {reason}"))
        result, more = ProcessResult(-1, b"", b"", False, False, watch.ended), {}
    succeeded = watch.ended == "exit" and result.exit_code == 0
    out, err = printed(result, masker_of(stage) if succeeded else redactor_of(stage))
    data = {
        "stdout": out.strip(),
        "stderr": err.strip(),
        "exit_code": -1 if watch.ended != "exit" else result.exit_code,
        "truncated": result.truncated,
        **more,
    }
    data = fitted(data)
    if watch.ended == "interrupt":
        return TaskResult.terminal(f"Docker {options.action} was interrupted", context=data)
    if watch.ended == "timeout":
        return options.failure(f"Docker {options.action} timed out after {seconds(options.timeout)}s", data)
    if result.exit_code != 0:
        head = f": {data['stderr'][:_ERROR_HEAD]}" if data["stderr"] else ""
        return options.failure(f"Docker {options.action} exited with code {result.exit_code}{head}", data)
    return TaskResult.success(outputs=data)


Done = tuple[ProcessResult, dict[str, Any]]


def _said(capture: Capture) -> ProcessResult:
    return ProcessResult(0, bytes(capture.data), b"", capture.truncated, False, "exit")


def _lines(lines: list[str], options: DockerOptions) -> ProcessResult:
    return _said(bounded([f"{line}\n".encode() for line in lines], options.max_output_size))


def _run(client: Any, watch: Watch, options: DockerOptions) -> Done:
    result, container = run_container(client, watch, options)
    return result, {"container_id": container[:_SHORT_ID]} if options.detach else {}


def _exec(client: Any, watch: Watch, options: DockerOptions) -> Done:
    identity = client.exec_create(
        options.name,
        options.command,
        stdin=options.interactive,
        tty=options.tty,
        workdir=options.workdir,
        user=options.user or "",
        privileged=options.privileged,
        environment=options.environment,
    )["Id"]
    out, err = Capture(options.max_output_size), Capture(options.max_output_size)
    url = f"{client.base_url}/v{client.api_version}/exec/{identity}/start"
    asked = {"Tty": options.tty, "Detach": False}
    with client.post(url, json=asked, stream=True, timeout=options.timeout) as response:
        response.raise_for_status()
        for stream, chunk in frames(response, options.tty):
            (err if stream == _STDERR else out).add(chunk)
    code = client.exec_inspect(identity)["ExitCode"] if watch.ended == "exit" else -1
    return ProcessResult(
        code, bytes(out.data), bytes(err.data), out.truncated, err.truncated, watch.ended
    ), {}


def _build(client: Any, watch: Watch, options: DockerOptions) -> Done:
    import docker

    capture, image = Capture(options.max_output_size), None
    for event in client.build(
        path=options.build_context,
        tag=options.tag,
        dockerfile=options.dockerfile,
        buildargs=options.build_args,
        nocache=options.no_cache,
        platform=options.platform,
        rm=True,
        decode=True,
    ):
        if "error" in event:
            raise docker.errors.APIError(event["error"])
        capture.add(event.get("stream", "").encode())
        image = event.get("aux", {}).get("ID", image)
    return _said(capture), {"image_id": image}


def _pull(client: Any, watch: Watch, options: DockerOptions) -> Done:
    lines = pull_image(client, options)
    return _lines(lines, options), {"image_id": client.inspect_image(options.image)["Id"]}


def _ps(client: Any, watch: Watch, options: DockerOptions) -> Done:
    found = [
        {
            "ID": entry["Id"][:_SHORT_ID],
            "Image": entry.get("Image"),
            "Names": [name.lstrip("/") for name in entry.get("Names") or ()],
            "State": entry.get("State"),
            "Status": entry.get("Status"),
        }
        for entry in client.containers(all=options.all)
    ]
    return _lines([json.dumps(entry) for entry in found], options), {}


def _images(client: Any, watch: Watch, options: DockerOptions) -> Done:
    found = [
        {
            "ID": entry["Id"].removeprefix("sha256:")[:_SHORT_ID],
            "Tags": entry.get("RepoTags") or [],
            "Size": entry.get("Size"),
        }
        for entry in client.images(name=options.image, all=options.all)
    ]
    return _lines([json.dumps(entry) for entry in found], options), {}


def _logs(client: Any, watch: Watch, options: DockerOptions) -> Done:
    streams = []
    for name in ("stdout", "stderr"):
        wanted = {"stdout": name == "stdout", "stderr": name == "stderr"}
        tail = "all" if options.tail is None else options.tail
        chunks = client.logs(options.name, stream=True, tail=tail, **wanted)
        streams.append(bounded(chunks, options.max_output_size))
    out, err = streams
    return ProcessResult(0, bytes(out.data), bytes(err.data), out.truncated, err.truncated, "exit"), {}


def _stop(client: Any, watch: Watch, options: DockerOptions) -> Done:
    client.stop(options.name)
    return _lines([str(options.name)], options), {}


def _rm(client: Any, watch: Watch, options: DockerOptions) -> Done:
    client.remove_container(options.name, force=options.force)
    return _lines([str(options.name)], options), {}


_ACTIONS: dict[str, Callable[[Any, Watch, DockerOptions], Done]] = {
    "run": _run,
    "exec": _exec,
    "build": _build,
    "pull": _pull,
    "ps": _ps,
    "images": _images,
    "logs": _logs,
    "stop": _stop,
    "rm": _rm,
}
