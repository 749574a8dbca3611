"""An engine that speaks enough of the Docker Engine API on a unix socket to test a client, without containers.

What a container or an exec does is decided by its command: ``print TEXT``, ``error TEXT``, ``exit N``, ``hang``
(until killed), ``flood N`` (bytes), joined by ``&&``.
"""

from __future__ import annotations

import json
import re
import socketserver
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4


@dataclass
class Container:
    """A container, or an exec in one."""

    id: str
    config: dict[str, Any]
    name: str = ""
    started: bool = False
    frames: list[tuple[int, bytes]] = field(default_factory=list)
    code: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.started = True
        words = self.config.get("Cmd") or []
        for step in " ".join(words).split(" && "):
            verb, _, rest = step.partition(" ")
            if verb == "print":
                self.frames.append((1, rest.encode() + b"\n"))
            elif verb == "error":
                self.frames.append((2, rest.encode() + b"\n"))
            elif verb == "flood":
                self.frames += [(1, b"x" * 1000)] * (int(rest) // 1000)
            elif verb == "exit":
                self.code = int(rest)
            elif verb == "hang":
                return
        self.ended.set()

    def output(self, kinds: set[int]) -> bytes:
        if self.config.get("Tty"):
            return b"".join(data for _, data in self.frames)
        return b"".join(
            struct.pack(">BxxxL", kind, len(data)) + data for kind, data in self.frames if kind in kinds
        )


class FakeDocker(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Listens on ``path`` until closed; what it was asked and what it holds can be looked at."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Handler)
        self.url = f"unix://{path}"
        self.containers: dict[str, Container] = {}
        self.execs: dict[str, Container] = {}
        self.images = {"busybox:latest": "sha256:" + "ab" * 32}
        self.pullable = {"alpine:3": "sha256:" + "cd" * 32}
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        #: Called with the name of a point in a conversation when it is reached.
        self.reached: Callable[[str], None] = lambda point: None
        self.over = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})

    def find(self, key: str) -> Container | None:
        return next((c for c in self.containers.values() if key in (c.id, c.name) or c.id[:12] == key), None)

    def asked(self, method: str, path: str) -> list[tuple[dict[str, str], Any]]:
        return [(query, body) for m, p, query, body in self.requests if m == method and re.fullmatch(path, p)]

    def handle_error(self, *_: object) -> None:
        """Clients that hang up are part of the tests."""

    def __enter__(self) -> FakeDocker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for container in [*self.containers.values(), *self.execs.values()]:
            container.ended.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeDocker

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "unix"

    # ------------------------------------------------------------------ plumbing

    def _any(self) -> None:
        url = urlsplit(self.path)
        path = re.sub(r"^/v[\d.]+", "", url.path)
        self.query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        raw = self._read_body()
        self.body = json.loads(raw) if self.headers.get("Content-Type") == "application/json" and raw else raw
        self.server.requests.append((self.command, path, self.query, self.body))
        for method, pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method == self.command:
                answer(self, *match.groups())
                return
        self.json(404, {"message": f"page not found: {path}"})

    do_GET = do_POST = do_DELETE = do_HEAD = _any

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", "0")))

    def json(self, status: int, value: Any = None) -> None:
        data = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def chunks(self) -> Callable[[bytes], None]:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

        def send(data: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

        return send

    def container(self, key: str) -> Container | None:
        found = self.server.find(key)
        if found is None:
            self.json(404, {"message": f"No such container: {key}"})
        return found

    # ------------------------------------------------------------------ answers

    def version(self) -> None:
        self.json(200, {"ApiVersion": "1.44", "MinAPIVersion": "1.24", "Version": "25.0"})

    def create(self) -> None:
        image = self.body["Image"]
        if image not in self.server.images and f"{image}:latest" not in self.server.images:
            self.json(404, {"message": f"No such image: {image}"})
            return
        name = self.query["name"]
        if self.server.find(name):
            self.json(409, {"message": f"Conflict. The container name {name} is already in use"})
            return
        container = Container(uuid4().hex * 2, self.body, name)
        self.server.containers[container.id] = container
        self.server.reached("created")
        self.json(201, {"Id": container.id, "Warnings": []})

    def start(self, key: str) -> None:
        if container := self.container(key):
            container.start()
            self.json(204)
            self.server.reached("started")

    def wait(self, key: str) -> None:
        if container := self.container(key):
            self.server.reached("waiting")
            container.ended.wait()
            self.json(200, {"StatusCode": container.code})

    def logs(self, key: str) -> None:
        if container := self.container(key):
            streams = ((1, "stdout"), (2, "stderr"))
            kinds = {kind for kind, name in streams if self.query.get(name) in ("1", "True")}
            data = container.output(kinds)
            send = self.chunks()
            for start in range(0, len(data), 700):
                send(data[start : start + 700])
            send(b"")

    def inspect(self, key: str) -> None:
        if container := self.container(key):
            self.json(200, {"Id": container.id, "Config": {"Tty": False, **container.config}})

    def kill(self, key: str) -> None:
        if container := self.container(key):
            if not container.started or container.ended.is_set():
                self.json(409, {"message": f"container {key} is not running"})
                return
            container.code = 137
            container.ended.set()
            self.json(204)

    def remove(self, key: str) -> None:
        if container := self.container(key):
            if container.started and not container.ended.is_set() and self.query.get("force") != "True":
                self.json(409, {"message": "cannot remove a running container"})
                return
            container.ended.set()
            del self.server.containers[container.id]
            self.json(204)

    def list(self) -> None:
        wanted = set(json.loads(self.query.get("filters", "{}")).get("label", []))
        found = []
        for container in self.server.containers.values():
            labels = {f"{name}={value}" for name, value in (container.config.get("Labels") or {}).items()}
            if wanted <= labels:
                entry = {
                    "Id": container.id,
                    "Image": container.config["Image"],
                    "Names": ["/" + container.name],
                }
                found.append({**entry, "State": "running", "Status": "Up"})
        self.json(200, found)

    def images(self) -> None:
        found = [{"Id": i, "RepoTags": [t], "Size": 5} for t, i in self.server.images.items()]
        self.json(200, found)

    def inspect_image(self, name: str) -> None:
        if name in self.server.images:
            self.json(200, {"Id": self.server.images[name]})
        else:
            self.json(404, {"message": "No such image"})

    def pull(self) -> None:
        name = f"{self.query['fromImage']}:{self.query['tag']}"
        send = self.chunks()
        send(json.dumps({"status": "Pulling", "id": "3"}).encode() + b"\r\n")
        send(json.dumps({"status": "Downloading", "progress": "[=>]", "id": "x"}).encode() + b"\r\n")
        if name in self.server.pullable:
            self.server.images[name] = self.server.pullable[name]
            send(json.dumps({"status": "Downloaded " + name}).encode() + b"\r\n")
        else:
            send(json.dumps({"error": f"pull access denied for {name}"}).encode() + b"\r\n")
        send(b"")

    def build(self) -> None:
        if "hang" in self.query["t"]:
            self.server.reached("building")
        send = self.chunks()
        send(json.dumps({"stream": "Step 1/1 : FROM busybox\n"}).encode() + b"\r\n")
        if "hang" in self.query["t"]:
            self.server.over.wait()
        if "broken" in self.query["t"]:
            send(json.dumps({"error": "no such instruction"}).encode() + b"\r\n")
        else:
            send(json.dumps({"aux": {"ID": "sha256:built"}}).encode() + b"\r\n")
        send(b"")

    def exec_create(self, key: str) -> None:
        if self.container(key):
            made = Container(uuid4().hex, self.body)
            self.server.execs[made.id] = made
            self.json(201, {"Id": made.id})

    def exec_start(self, key: str) -> None:
        made = self.server.execs[key]
        made.start()
        self.close_connection = True
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n"
        self.wfile.write(head + made.output({1, 2}))
        self.server.reached("executing")
        made.ended.wait()

    def exec_inspect(self, key: str) -> None:
        self.json(200, {"ExitCode": self.server.execs[key].code})

    def stop(self, key: str) -> None:
        if container := self.container(key):
            container.ended.set()
            self.json(204)


_ROUTES: list[tuple[str, str, Callable[..., None]]] = [
    ("GET", "/version", _Handler.version),
    ("POST", "/containers/create", _Handler.create),
    ("GET", "/containers/json", _Handler.list),
    ("POST", "/containers/([^/]+)/start", _Handler.start),
    ("POST", "/containers/([^/]+)/wait", _Handler.wait),
    ("GET", "/containers/([^/]+)/logs", _Handler.logs),
    ("GET", "/containers/([^/]+)/json", _Handler.inspect),
    ("POST", "/containers/([^/]+)/kill", _Handler.kill),
    ("POST", "/containers/([^/]+)/stop", _Handler.stop),
    ("DELETE", "/containers/([^/]+)", _Handler.remove),
    ("POST", "/containers/([^/]+)/exec", _Handler.exec_create),
    ("POST", "/exec/([^/]+)/start", _Handler.exec_start),
    ("GET", "/exec/([^/]+)/json", _Handler.exec_inspect),
    ("GET", "/images/json", _Handler.images),
    ("GET", "/images/(.+)/json", _Handler.inspect_image),
    ("POST", "/images/create", _Handler.pull),
    ("POST", "/build", _Handler.build),
]
