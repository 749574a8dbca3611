from __future__ import annotations

import gc
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stabilize_celery.contrib.docker import DockerTask
from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import TaskRun, running
from tests.unit.tasks.fake_docker import Container, FakeDocker
from tests.unit.tasks.helpers import stage_of


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDocker]:
    for name in ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with FakeDocker(tmp_path / "docker.sock") as fake:
        monkeypatch.setenv("DOCKER_HOST", fake.url)
        yield fake


def run(own: dict[str, Any], inherited: dict[str, Any] | None = None) -> TaskResult:
    return DockerTask().execute(stage_of(own, inherited))


def outputs(own: dict[str, Any], inherited: dict[str, Any] | None = None) -> dict[str, Any]:
    result = run(own, inherited)
    assert result.status is WorkflowStatus.SUCCEEDED, result.context
    return result.outputs


def failure(own: dict[str, Any]) -> str:
    result = run(own)
    assert result.status is WorkflowStatus.TERMINAL
    assert not result.outputs
    return result.context["error"]


def box(command: str, **options: Any) -> dict[str, Any]:
    return {"action": "run", "image": "busybox", "command": command, **options}


def created(engine: FakeDocker) -> dict[str, Any]:
    return engine.asked("POST", "/containers/create")[-1][1]


# ---------------------------------------------------------------------- run


def test_the_output_keys_of_the_contract(engine: FakeDocker):
    assert outputs(box("print hi && error oops")) == {
        "stdout": "hi",
        "stderr": "oops",
        "exit_code": 0,
        "truncated": False,
    }
    assert engine.asked("POST", "/containers/create")[0][0]["name"].startswith("stabilize-run-")
    assert not engine.containers


def test_exit_code(engine: FakeDocker):
    result = run(box("print out && error why && exit 3"))
    assert result.context["error"] == "Docker run exited with code 3: why"
    assert (result.context["stdout"], result.context["exit_code"]) == ("out", 3)
    result = run(box("exit 3", continue_on_failure=True))
    assert (result.status, result.outputs["exit_code"]) == (WorkflowStatus.FAILED_CONTINUE, 3)
    assert not engine.containers


def test_containers_can_be_kept(engine: FakeDocker):
    outputs(box("print hi", remove=False, name="kept"))
    assert [c.name for c in engine.containers.values()] == ["kept"]


def test_detach(engine: FakeDocker):
    got = outputs(box("hang", detach=True, name="bg"))
    (container,) = engine.containers.values()
    assert got["container_id"] == container.id[:12]
    assert container.started
    assert not container.ended.is_set()
    assert created(engine)["HostConfig"]["AutoRemove"] is True


def test_output_limit(engine: FakeDocker):
    got = outputs(box("flood 100000", max_output_size=1500))
    assert (len(got["stdout"]), got["truncated"]) == (1500, True)


def test_tty(engine: FakeDocker):
    assert outputs(box("print hi", tty=True))["stdout"].startswith("hi")


def test_every_option_reaches_the_engine(engine: FakeDocker):
    outputs(
        box(
            "print 'a b' c",
            environment={"A": 1, "B": "x"},
            volumes=["/host:/data:ro"],
            ports=["127.0.0.1:8080:80", "53:53/udp"],
            workdir="/w",
            network="net",
            entrypoint=["/entry"],
            user="1000",
            hostname="h",
            cap_add=["CHOWN"],
            cap_drop=["NET_RAW"],
            memory="64m",
            memory_swap="128m",
            cpus=1.5,
            gpus="all",
            shm_size="1m",
            tmpfs=["/tmp:size=1m"],
            read_only=True,
            security_opt=["no-new-privileges"],
            ulimit={"nofile": "10:20"},
            labels=["l=1"],
            dns=["1.1.1.1"],
            extra_hosts={"db": "10.0.0.1"},
            init=True,
            stdin_open=True,
            platform="linux/amd64",
        )
    )
    config = created(engine)
    assert config["Cmd"] == ["print", "a b", "c"]
    assert sorted(config["Env"]) == ["A=1", "B=x"]
    assert config["ExposedPorts"] == {"80/tcp": {}, "53/udp": {}}
    assert (config["WorkingDir"], config["User"], config["Hostname"]) == ("/w", "1000", "h")
    assert (config["Entrypoint"], config["Labels"]["l"], config["OpenStdin"]) == (["/entry"], "1", True)
    host = config["HostConfig"]
    assert host["Binds"] == ["/host:/data:ro"]
    assert host["PortBindings"]["80/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": "8080"}]
    assert host["PortBindings"]["53/udp"] == [{"HostIp": "", "HostPort": "53"}]
    assert (host["NetworkMode"], host["CapAdd"], host["CapDrop"]) == ("net", ["CHOWN"], ["NET_RAW"])
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (64 << 20, 128 << 20, 1_500_000_000)
    assert host["DeviceRequests"][0]["Count"] == -1
    assert (host["ShmSize"], host["Tmpfs"], host["ReadonlyRootfs"]) == (1 << 20, {"/tmp": "size=1m"}, True)
    assert (host["SecurityOpt"], host["Init"]) == (["no-new-privileges"], True)
    assert host["Ulimits"] == [{"Name": "nofile", "Soft": 10, "Hard": 20}]
    assert (host["Dns"], host["ExtraHosts"]) == (["1.1.1.1"], ["db:10.0.0.1"])
    assert engine.asked("POST", "/containers/create")[0][0]["platform"] == "linux/amd64"


@pytest.mark.parametrize(
    ("gpus", "request_"),
    [("2", {"Count": 2, "DeviceIDs": []}), ("device=0,1", {"Count": 0, "DeviceIDs": ["0", "1"]})],
)
def test_gpus(engine: FakeDocker, gpus: str, request_: dict[str, Any]):
    outputs(box("exit 0", gpus=gpus))
    got = created(engine)["HostConfig"]["DeviceRequests"][0]
    assert {key: got[key] or request_[key] * 0 for key in request_} == request_


def test_restart_policy(engine: FakeDocker):
    outputs(box("hang", detach=True, restart="on-failure:3"))
    host = created(engine)["HostConfig"]
    assert host["RestartPolicy"] == {"Name": "on-failure", "MaximumRetryCount": 3}
    assert not host.get("AutoRemove")


def test_a_missing_image_is_pulled(engine: FakeDocker):
    assert outputs({"action": "run", "image": "alpine:3", "command": "print hi"})["stdout"] == "hi"
    assert len(engine.asked("POST", "/images/create")) == 1
    outputs({"action": "run", "image": "alpine:3", "command": "print hi", "pull": "always"})
    assert len(engine.asked("POST", "/images/create")) == 2


def test_an_image_that_cannot_be_pulled(engine: FakeDocker):
    assert "pull access denied" in failure({"action": "run", "image": "nope"})
    assert "No such image" in failure({"action": "run", "image": "alpine:3", "pull": "never"})


def test_what_an_earlier_attempt_left_is_removed(engine: FakeDocker):
    left = Container(
        "1" * 64, {"Image": "busybox", "Labels": {"stabilize.task": "task:0"}}, "mine", started=True
    )
    other = Container("2" * 64, {"Image": "busybox", "Labels": {"stabilize.task": "task:1"}}, "other")
    engine.containers = {left.id: left, other.id: other}
    with running(TaskRun("w", "s", "task")):
        assert outputs(box("print hi", name="mine"))["stdout"] == "hi"
    assert list(engine.containers) == [other.id]
    assert created(engine)["Labels"]["stabilize.task"] == "task:0"


# ---------------------------------------------------------------------- time


class ManualTimer:
    """A timer whose time is over when the test says so."""

    made: list[ManualTimer] = []

    def __init__(self, seconds: float, function: Any, args: list[Any]) -> None:
        self.seconds, self.fire = seconds, lambda: function(*args)
        self.made.append(self)

    def start(self) -> None:
        pass

    cancel = start


@pytest.fixture
def time_is_over_at(engine: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> Any:
    ManualTimer.made.clear()
    monkeypatch.setattr("stabilize_celery.contrib.docker.threading.Timer", ManualTimer)

    def at(point: str) -> None:
        engine.reached = lambda reached: ManualTimer.made[0].fire() if reached == point else None

    return at


def test_timeout_kills_the_container_and_keeps_its_output(engine: FakeDocker, time_is_over_at: Any):
    time_is_over_at("waiting")
    result = run(box("print before && hang", timeout=0.3))
    assert ManualTimer.made[0].seconds == 0.3
    assert result.context["error"] == "Docker run timed out after 0.3s"
    assert (result.context["stdout"], result.context["exit_code"]) == ("before", -1)
    assert len(engine.asked("POST", "/containers/.*/kill")) == 1
    assert not engine.containers


@pytest.mark.parametrize("point", ["created", "started", "waiting"])
def test_an_interrupt_kills_the_container(engine: FakeDocker, point: str):
    task_run = TaskRun("w", "s", "t")
    engine.reached = lambda reached: task_run.interrupt() if reached == point else None
    with running(task_run):
        result = run(box("hang", continue_on_failure=True))
    assert (result.status, result.context["error"]) == (WorkflowStatus.TERMINAL, "Docker run was interrupted")
    assert not engine.containers


@pytest.mark.parametrize(
    ("own", "point"),
    [
        ({"action": "build", "tag": "hang", "context": "."}, "building"),
        ({"action": "exec", "name": "c", "command": "print a && hang"}, "executing"),
    ],
)
def test_an_interrupt_ends_the_wait(
    engine: FakeDocker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: dict[str, Any], point: str
):
    (tmp_path / "Dockerfile").write_text("FROM busybox")
    (tmp_path / ".dockerignore").write_text("docker.sock")
    monkeypatch.chdir(tmp_path)
    engine.containers["1" * 64] = Container("1" * 64, {"Image": "busybox"}, "c", started=True)
    task_run = TaskRun("w", "s", "t")
    engine.reached = lambda reached: task_run.interrupt() if reached == point else None
    with running(task_run):
        result = run(own)
    assert result.context["error"] == f"Docker {own['action']} was interrupted"
    assert result.context["exit_code"] == -1


@pytest.mark.parametrize("tty", [True, False])
def test_an_exec_that_prints_a_lot(engine: FakeDocker, tty: bool):
    engine.containers["1" * 64] = Container("1" * 64, {"Image": "busybox"}, "c", started=True)
    own = {"action": "exec", "name": "c", "command": "flood 300000 && error e", "tty": tty}
    got = outputs(own | {"max_output_size": 200_001})
    assert (len(got["stdout"]), got["truncated"], got["stderr"]) == (200_001, True, "" if tty else "e")


def test_an_exec_that_takes_too_long(engine: FakeDocker, time_is_over_at: Any):
    time_is_over_at("executing")
    engine.containers["1" * 64] = Container("1" * 64, {"Image": "busybox"}, "c", started=True)
    result = run({"action": "exec", "name": "c", "command": "print a && hang", "timeout": 90})
    assert result.context["error"] == "Docker exec timed out after 90s"
    assert result.context["stdout"] == "a"


# ---------------------------------------------------------------------- other actions


def test_exec(engine: FakeDocker):
    engine.containers["1" * 64] = Container("1" * 64, {"Image": "busybox"}, "c", started=True)
    own = {"action": "exec", "name": "c", "workdir": "/w", "environment": {"A": 1}}
    got = outputs(own | {"command": "print hi && error oops"})
    assert (got["stdout"], got["stderr"], got["exit_code"]) == ("hi", "oops", 0)
    (_, asked) = engine.asked("POST", "/containers/c/exec")[0]
    assert (asked["WorkingDir"], asked["Env"]) == ("/w", ["A=1"])
    assert failure(own | {"command": "error no && exit 2"}) == "Docker exec exited with code 2: no"
    assert "No such container: x" in failure(own | {"name": "x", "command": "true"})


def test_build(engine: FakeDocker, tmp_path: Path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "Dockerfile.x").write_text("FROM busybox")
    own = {"action": "build", "context": str(source), "dockerfile": "Dockerfile.x", "build_args": {"V": 1}}
    got = outputs(own | {"tag": "me:1", "no_cache": True})
    assert (got["image_id"], got["stdout"]) == ("sha256:built", "Step 1/1 : FROM busybox")
    ((query, body),) = engine.asked("POST", "/build")
    assert (query["t"], query["nocache"], json.loads(query["buildargs"])) == ("me:1", "True", {"V": "1"})
    assert b"FROM busybox" in body
    assert failure(own | {"tag": "broken"}) == "Docker build failed: no such instruction"
    assert failure(own | {"tag": "me", "context": str(tmp_path / "nope")}).startswith("Docker build failed: ")


def test_pull(engine: FakeDocker):
    got = outputs({"action": "pull", "image": "alpine:3"})
    assert got["image_id"] == engine.pullable["alpine:3"]
    assert got["stdout"] == "3: Pulling\nDownloaded alpine:3"
    assert (
        failure({"action": "pull", "image": "nope"})
        == "Docker pull failed: pull access denied for nope:latest"
    )


def test_logs_stop_rm(engine: FakeDocker):
    container = Container("1" * 64, {"Image": "busybox", "Cmd": ["print", "hi", "&&", "error", "e"]}, "c")
    container.start()
    container.ended.clear()
    engine.containers[container.id] = container
    got = outputs({"action": "logs", "name": "c", "tail": 5})
    assert (got["stdout"], got["stderr"]) == ("hi", "e")
    assert engine.asked("GET", "/containers/c/logs")[0][0]["tail"] == "5"
    assert "cannot remove a running container" in failure({"action": "rm", "name": "c"})
    assert outputs({"action": "stop", "name": "c"})["stdout"] == "c"
    outputs({"action": "rm", "name": "c"})
    assert not engine.containers
    assert "No such container" in failure({"action": "logs", "name": "c"})


# ---------------------------------------------------------------------- options, secrets, no engine


@pytest.mark.parametrize(
    ("own", "error"),
    [
        (
            {"action": "foo"},
            "option 'action': Input should be 'build', 'exec', 'logs', 'pull', 'rm', 'run' or 'stop'",
        ),
        ({"action": "ps"}, "or 'stop' (got 'ps')"),
        ({"action": "run"}, "No 'image' specified in context"),
        ({"action": "exec", "name": "c"}, "No 'command' specified in context"),
        ({"action": "build"}, "No 'tag' specified in context"),
        (box("x", volumes=["rel:/x"]), "volumes must be /absolute/host/path"),
        (box("x", volumes=["/a:rel"]), "volumes must be /absolute/host/path"),
        (box("x", volumes=["/a/../etc:/x"]), "Path traversal blocked in volumes"),
        (box("x", privileged=True), "needs 'allow_privileged'"),
        (box("x", cap_add=["SYS_ADMIN"]), "capabilities SYS_ADMIN need 'allow_dangerous_capabilities'"),
        (box("x", cap_add="cap_net_admin"), "capabilities NET_ADMIN need 'allow_dangerous_capabilities'"),
        (box("x", name="-rm"), "is no name of a container"),
        (box("x", restart="sometimes", detach=True), "option 'restart'"),
        (box("x", restart="always"), "'restart' needs 'detach'"),
        (box("x", timeout=0), "option 'timeout'"),
    ],
)
def test_options_that_make_no_sense(engine: FakeDocker, own: dict[str, Any], error: str):
    assert error in failure(own)
    assert not engine.requests


def test_dangerous_options_can_be_allowed(engine: FakeDocker):
    outputs(box("exit 0", privileged=True, allow_privileged=True))
    outputs(box("exit 0", cap_add=["SYS_ADMIN"], allow_dangerous_capabilities=True))
    assert created(engine)["HostConfig"]["CapAdd"] == ["SYS_ADMIN"]


def test_upstream_outputs_do_not_configure(engine: FakeDocker):
    inherited = {"privileged": True, "volumes": ["/:/host"], "command": "exit 9", "allow_privileged": True}
    outputs({"image": "busybox"}, inherited)
    config = created(engine)
    assert not config["HostConfig"].get("Binds")
    assert not config["HostConfig"].get("Privileged")
    assert not config.get("Cmd")


def test_secrets(engine: FakeDocker):
    own = box("print s3cr3t && error s3cr3t && exit 1", environment={"TOKEN": "s3cr3t"}, secrets=["TOKEN"])
    result = run(own)
    assert result.context["error"] == "Docker run exited with code 1: ***"
    assert "s3cr3t" not in str(result)
    result = run({"action": "run", "image": "s3cr3t", "k": "s3cr3t", "secrets": ["k"]})
    assert "s3cr3t" not in str(result)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the SDK leaves its socket open
def test_no_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    expected = "Docker is not available. Ensure Docker is installed and running."
    assert failure(box("x")).startswith(expected)
    assert run(box("x", continue_on_failure=True)).status is WorkflowStatus.FAILED_CONTINUE
    gc.collect()


def test_no_sdk(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "docker", None)
    assert "install stabilize-celery[docker]" in failure(box("x"))


def test_the_sdk_is_imported_only_when_it_is_used():
    import subprocess

    script = (
        "import sys\nfrom stabilize_celery.builtin import register_builtin_tasks\n"
        "from stabilize_celery.tasks.registry import TaskRegistry\nr = TaskRegistry()\nregister_builtin_tasks(r)\n"
        "assert {'python', 'shell', 'http', 'docker'} <= set(r.names())\nr.resolve('docker')\n"
        "assert 'docker' not in sys.modules and 'requests' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_engine_lets_a_long_container_run():
    timeout = DockerTask().get_execution_timeout(stage_of({}))
    assert timeout is not None
    assert timeout.total_seconds() > 14400
