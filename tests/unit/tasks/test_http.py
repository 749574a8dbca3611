from __future__ import annotations

import base64
import gzip
import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpcore
import pytest

from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.tasks.http import HTTPTask
from stabilize_celery.tasks.result import TaskResult
from stabilize_celery.tasks.run import TaskRun, running
from stabilize_celery.tasks.ssrf import Network
from tests.unit.tasks.helpers import PATIENCE, stage_of
from tests.unit.tasks.http_server import Answer, Server

#: How a refused address ends.
ALLOWED = "; the stage's allow_private_urls, or stabilize_allow_private_urls, allows it"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running_server:
        yield running_server


def run(own: dict[str, Any], inherited: dict[str, Any] | None = None) -> TaskResult:
    return HTTPTask().execute(stage_of({"allow_private_urls": True, **own}, inherited))


def outputs(own: dict[str, Any], inherited: dict[str, Any] | None = None) -> dict[str, Any]:
    result = run(own, inherited)
    assert result.status is WorkflowStatus.SUCCEEDED, result.context
    return result.outputs


def failure(own: dict[str, Any]) -> str:
    result = run(own)
    assert result.status is WorkflowStatus.TERMINAL
    assert not result.outputs
    return result.context["error"]


# ---------------------------------------------------------------------- answers


def test_the_output_keys_of_the_contract(server: Server):
    server.routes["/"] = Answer(body="é".encode(), headers={"Content-Type": "text/plain; charset=utf-8"})
    got = outputs({"url": server.url + "/"})
    assert got.pop("elapsed_ms") >= 0
    assert got["headers"]["Content-Type"] == "text/plain; charset=utf-8"
    del got["headers"]
    assert got == {
        "status_code": 200,
        "body": "é",
        "url": server.url + "/",
        "content_type": "text/plain; charset=utf-8",
        "content_length": 2,
    }


def test_json(server: Server):
    server.routes["/"] = Answer(body=b'{"a": [1]}')
    assert outputs({"url": server.url, "parse_json": True})["body_json"] == {"a": [1]}
    assert "body_json" not in outputs({"url": server.url})
    for text in (b"no json", b"[NaN]"):
        server.routes["/"] = Answer(body=text)
        assert "body_json" not in outputs({"url": server.url, "parse_json": True})


def test_charset_and_binary(server: Server):
    server.routes["/"] = Answer(body=b"\xe9", headers={"Content-Type": "text/plain; charset=latin-1"})
    assert outputs({"url": server.url})["body"] == "é"
    server.routes["/"] = Answer(body=b"\x89PNG\xff")
    got = outputs({"url": server.url})
    assert base64.b64decode(got["body_b64"]) == b"\x89PNG\xff"


def test_statuses(server: Server):
    server.routes["/made"] = Answer(201)
    url = server.url
    assert outputs({"url": url + "/made"})["status_code"] == 201
    assert failure({"url": url + "/none"}) == "HTTP 404"
    assert outputs({"url": url + "/none", "expected_status": 404})["body"] == "no such path"
    assert (
        failure({"url": url, "expected_status": [201, 204]}) == "Unexpected status 200, expected [201, 204]"
    )


def test_a_failure_keeps_its_data(server: Server):
    result = run({"url": server.url + "/none"})
    assert (result.context["status_code"], result.context["body"]) == (404, "no such path")
    result = run({"url": server.url + "/none", "continue_on_failure": True})
    assert result.status is WorkflowStatus.FAILED_CONTINUE
    assert (result.outputs["status_code"], result.context) == (404, {"error": "HTTP 404"})


def test_compressed_answers_count_decompressed(server: Server):
    body = gzip.compress(b"x" * 100_000)
    server.routes["/"] = Answer(body=body, headers={"Content-Encoding": "gzip"})
    assert outputs({"url": server.url})["content_length"] == 100_000
    error = failure({"url": server.url, "max_response_size": 10_000})
    assert error == "Response exceeds max size (10000 bytes)"
    server.routes["/"] = Answer(body=b"no gzip", headers={"Content-Encoding": "gzip"})
    assert failure({"url": server.url})


@pytest.mark.parametrize("announced", [True, False])
def test_size_limit(server: Server, announced: bool):
    def endless(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while not server.over.is_set():
            handler.wfile.write(b"x" * 1000)

    server.routes["/"] = Answer(body=b"x" * 101) if announced else endless
    assert failure({"url": server.url, "max_response_size": 100}) == "Response exceeds max size (100 bytes)"
    server.routes["/"] = Answer(body=b"x" * 100)
    assert outputs({"url": server.url, "max_response_size": 100})["body"] == "x" * 100


def test_head(server: Server):
    server.routes["/"] = Answer(body=b"x" * 500)
    got = outputs({"url": server.url, "method": "head", "max_response_size": 10})
    assert (got["body"], got["content_length"]) == ("", 500)


def test_download(server: Server, tmp_path: Path):
    server.routes["/"] = Answer(body=b"\0\xff" * 1000)
    target = tmp_path / "file"
    got = outputs({"url": server.url, "download_to": str(target)})
    assert (got["body"], got["content_length"]) == (str(target), 2000)
    assert target.read_bytes() == b"\0\xff" * 1000
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_download_leaves_what_was_there(server: Server, tmp_path: Path):
    target = tmp_path / "file"
    target.write_text("old")
    server.routes["/"] = Answer(body=b"x" * 1000)
    assert "exceeds" in failure({"url": server.url, "download_to": str(target), "max_response_size": 10})
    assert failure({"url": server.url + "/none", "download_to": str(target)}) == "HTTP 404"
    server.routes["/"] = Answer(headers={"Content-Length": "1000"}, body=b"cut")
    assert failure({"url": server.url, "download_to": str(target), "timeout": 1})
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


# ---------------------------------------------------------------------- requests


def test_bodies(server: Server, tmp_path: Path):
    (tmp_path / "up.txt").write_bytes(b"content")
    base = {"url": server.url, "method": "POST", "body": "last", "form": {"a": "b c"}, "json": [1]}
    outputs(
        base | {"upload_file": str(tmp_path / "up.txt"), "upload_form": {"k": "v"}, "upload_filename": "n"}
    )
    outputs(base)
    del base["json"]
    outputs(base)
    del base["form"]
    outputs(base)
    upload, as_json, form, text = server.seen
    assert b'name="file"; filename="n"' in upload.body
    assert b'name="k"\r\n\r\nv' in upload.body
    assert b"content" in upload.body
    assert (as_json.body, as_json.headers["content-type"]) == (b"[1]", "application/json")
    assert (form.body, form.headers["content-type"]) == (b"a=b+c", "application/x-www-form-urlencoded")
    assert text.body == b"last"


def test_substitution(server: Server):
    server.routes["/x/1"] = Answer()
    own = {
        "url": server.url + "/x/{id}?q={q}",
        "method": "PUT",
        "headers": {"X-Id": "{id}"},
        "bearer_token": "{token}",
        "body": '{"n": {"id": {id}}, "s": "{s}", "t": {none}}',
    }
    outputs(own, {"id": 1, "q": "a b", "token": "t0k3n", "s": "{id}", "timeout": 1e-9, "method": "GET"})
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("PUT", "/x/1?q=a%20b")
    assert (seen.headers["x-id"], seen.headers["authorization"]) == ("1", "Bearer t0k3n")
    assert seen.body == b'{"n": {"id": 1}, "s": "{id}", "t": {none}}'


def test_credentials(server: Server):
    host = server.url.removeprefix("http://")
    outputs({"url": server.url, "auth": ["user", "passw0rd"]})
    got = outputs({"url": f"http://user:passw0rd@{host}/"})
    expected = "Basic " + base64.b64encode(b"user:passw0rd").decode()
    assert [seen.headers["authorization"] for seen in server.seen] == [expected, expected]
    assert got["url"] == f"http://{host}/"


def test_data_cannot_add_headers(server: Server):
    error = failure({"url": server.url, "headers": {"X": "{v}"}, "v": "a\r\nY: b"})
    assert "must not contain line breaks" in error
    assert not server.seen


def test_the_environment_is_not_asked_for_proxies(server: Server, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert outputs({"url": server.url})["body"] == "ok"


def test_an_explicit_proxy(server: Server):
    server.routes["http://public.example/x"] = Answer(body=b"proxied")
    assert outputs({"url": "http://public.example/x", "proxy": server.url})["body"] == "proxied"
    assert "'proxy' needs 'allow_private_urls'" in failure(
        {"url": "http://public.example/x", "proxy": server.url, "allow_private_urls": False}
    )


# ---------------------------------------------------------------------- redirects


@pytest.mark.parametrize(
    ("status", "method", "then"),
    [
        (301, "POST", "GET"),
        (302, "POST", "GET"),
        (303, "PUT", "GET"),
        (307, "POST", "POST"),
        (308, "PUT", "PUT"),
    ],
)
def test_redirects(server: Server, status: int, method: str, then: str):
    server.routes["/old"] = Answer(status, headers={"Location": "/new?x=1"})
    server.routes["/new"] = Answer(body=b"new")
    own = {"url": server.url + "/old", "method": method, "body": "data", "bearer_token": "t0k3n"}
    got = outputs(own)
    assert (got["body"], got["url"]) == ("new", server.url + "/new?x=1")
    second = server.seen[1]
    assert (second.method, second.body) == (then, b"data" if then == method else b"")
    assert second.headers["authorization"] == "Bearer t0k3n"


def test_an_upload_is_sent_again_to_the_new_place(server: Server, tmp_path: Path):
    (tmp_path / "f").write_bytes(b"content")
    server.routes["/old"] = Answer(307, headers={"Location": "/"})
    outputs({"url": server.url + "/old", "method": "POST", "upload_file": str(tmp_path / "f")})
    assert [b"content" in seen.body for seen in server.seen] == [True, True]


def test_another_origin_gets_no_credentials(server: Server):
    with Server() as other:
        server.routes["/"] = Answer(302, headers={"Location": other.url + "/", "Set-Cookie": "s=1"})
        own = {
            "url": server.url,
            "auth": ["user", "passw0rd"],
            "headers": {"X-Api-Key": "k", "Cookie": "c=1", "Accept": "a/b", "X-Mine": "m"},
        }
        outputs(own)
        headers = other.seen[0].headers
    assert headers["accept"] == "a/b"
    assert not {"authorization", "x-api-key", "x-mine"} & headers.keys()
    assert "c=1" not in headers.get("cookie", "")


def test_cookies_on_the_way(server: Server):
    server.routes["/login"] = Answer(302, headers={"Location": "/", "Set-Cookie": "s=1"})
    outputs({"url": server.url + "/login", "headers": {"Cookie": "mine=2"}})
    assert server.seen[1].headers["cookie"] == "mine=2; s=1"


def test_redirects_are_limited(server: Server):
    server.routes["/"] = Answer(302, headers={"Location": "/"})
    assert failure({"url": server.url, "max_redirects": 3}) == "URL error: more than 3 redirects"
    assert len(server.seen) == 4
    got = outputs({"url": server.url, "follow_redirects": False, "expected_status": 302})
    assert got["headers"]["Location"] == "/"


@pytest.mark.parametrize("location", ["ftp://host/", "file:///etc/passwd", "http://", "http://[::1"])
def test_redirects_to_what_is_no_url(server: Server, location: str):
    server.routes["/"] = Answer(302, headers={"Location": location})
    assert failure({"url": server.url}).startswith("URL error: ")


# ---------------------------------------------------------------------- the guard


def test_private_addresses_are_blocked(server: Server):
    own = {"url": server.url, "allow_private_urls": None}
    assert failure(own) == f"SSRF blocked: URL '{server.url}' targets blocked address 127.0.0.1" + ALLOWED
    assert not server.seen


def test_the_guard_can_be_opened_for_all(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(HTTPTask, "allow_private_urls_default", True)
    assert outputs({"url": server.url, "allow_private_urls": None})["body"] == "ok"
    assert "SSRF" in failure({"url": server.url, "allow_private_urls": False})


class Internet:
    """Names and public addresses that lead to a server of the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
        self.names: dict[str, list[list[str]]] = {}
        self.connected: list[str] = []
        connect = httpcore.SyncBackend.connect_tcp

        def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
            answers = self.names[host]
            answer = answers.pop(0) if len(answers) > 1 else answers[0]
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port)) for text in answer]

        def connect_tcp(backend: Any, host: str, port: int, *args: Any) -> Any:
            self.connected.append(host)
            monkeypatch.undo()  # the real connection may resolve again
            try:
                if host.startswith("198.41."):
                    raise httpcore.ConnectError("down")
                return connect(backend, "127.0.0.1", server.server_port, *args)
            finally:
                install()

        def install() -> None:
            monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
            monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect_tcp)

        install()


def test_the_checked_address_is_the_one_connected_to(server: Server, monkeypatch: pytest.MonkeyPatch):
    internet = Internet(monkeypatch, server)
    internet.names["rebinding.example"] = [["93.184.216.34"], ["127.0.0.1"]]
    own = {"url": "http://rebinding.example/", "allow_private_urls": False}
    assert outputs(own)["body"] == "ok"
    assert internet.connected == ["93.184.216.34"]
    assert server.seen[0].headers["host"] == "rebinding.example"
    assert "blocked address 127.0.0.1" in failure(own)
    assert internet.connected == ["93.184.216.34"]


def test_redirects_are_guarded(server: Server, monkeypatch: pytest.MonkeyPatch):
    internet = Internet(monkeypatch, server)
    internet.names = {"good.example": [["93.184.216.34"]], "evil.example": [["169.254.169.254"]]}
    server.routes["/"] = Answer(302, headers={"Location": "http://evil.example/latest/meta-data"})
    error = failure({"url": "http://good.example/", "allow_private_urls": False})
    expected = "URL 'http://evil.example/latest/meta-data' targets blocked address 169.254.169.254"
    assert error == f"SSRF blocked: {expected}{ALLOWED}"
    assert internet.connected == ["93.184.216.34"]


def test_the_next_address_is_tried(server: Server, monkeypatch: pytest.MonkeyPatch):
    internet = Internet(monkeypatch, server)
    internet.names["two.example"] = [["198.41.0.4", "93.184.216.34"]]
    assert outputs({"url": "http://two.example/", "allow_private_urls": False})["body"] == "ok"
    assert internet.connected == ["198.41.0.4", "93.184.216.34"]


# ---------------------------------------------------------------------- retries


def flaky(server: Server, failures: int, answer: Answer | None = None) -> None:
    """The first requests get ``answer``, or a closed connection; later ones succeed."""
    server.routes["/"] = lambda _: answer if len(server.seen) <= failures else Answer()


@pytest.mark.parametrize("answer", [Answer(503), Answer(502), None])
def test_retries(server: Server, answer: Answer | None):
    flaky(server, 2, answer)
    assert outputs({"url": server.url, "retries": 2, "retry_delay": 0})["body"] == "ok"
    assert len(server.seen) == 3


def test_retries_end(server: Server):
    server.routes["/"] = Answer(503)
    assert failure({"url": server.url, "retries": 2, "retry_delay": 0}) == "HTTP 503"
    assert len(server.seen) == 3


def test_what_is_not_retried(server: Server):
    server.routes["/"] = Answer(500)
    assert failure({"url": server.url, "retries": 5, "retry_delay": 0}) == "HTTP 500"
    assert len(server.seen) == 1
    assert (
        failure({"url": server.url, "retries": 1, "retry_delay": 0, "retry_on_status": [500]}) == "HTTP 500"
    )
    assert len(server.seen) == 3


@pytest.mark.parametrize("answer", [Answer(503), None])
@pytest.mark.parametrize(("method", "attempts"), [("POST", 1), ("PATCH", 1), ("PUT", 2), ("DELETE", 2)])
def test_only_idempotent_methods_if_asked(server: Server, answer: Answer | None, method: str, attempts: int):
    flaky(server, 1, answer)
    own = {"url": server.url, "retries": 1, "retry_delay": 0, "retry_non_idempotent": False, "method": method}
    assert (run(own).status is WorkflowStatus.SUCCEEDED) == (attempts == 2)
    assert len(server.seen) == attempts


def test_what_was_never_sent_is_always_retried(monkeypatch: pytest.MonkeyPatch, server: Server):
    internet = Internet(monkeypatch, server)
    internet.names["slow.example"] = [["198.41.0.4"], ["93.184.216.34"]]
    own = {"url": "http://slow.example/", "retries": 1, "retry_delay": 0, "retry_non_idempotent": False}
    assert outputs(own | {"method": "POST"})["body"] == "ok"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(
        "stabilize_celery.tasks.http.time.sleep", lambda wait: found.append(wait) if wait else None
    )
    monkeypatch.setattr("stabilize_celery.tasks.http.random.random", lambda: 0.0)
    return found


def test_the_waits_grow_up_to_ten_times_the_first(server: Server, waits: list[float]):
    server.routes["/"] = Answer(503)
    failure({"url": server.url, "retries": 6, "retry_delay": 1})
    assert waits == [1, 2, 4, 8, 10, 10]


def test_the_server_may_ask_for_a_longer_wait(server: Server, waits: list[float]):
    server.routes["/"] = Answer(503, headers={"retry-after": "5"})
    failure({"url": server.url, "retries": 1, "retry_delay": 1})
    server.routes["/"] = Answer(503, headers={"Retry-After": "5000"})
    failure({"url": server.url, "retries": 1, "retry_delay": 1})
    assert waits == [5, 10]


def test_nobody_listens():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/"
        result = run({"url": url})
    assert result.context["error"] == "URL error: [Errno 111] Connection refused"
    assert result.context["url"] == url


# ---------------------------------------------------------------------- time


def dribble(server: Server) -> Any:
    def handle(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not server.over.wait(0.02):
            handler.wfile.write(b"x")

    return handle


def test_the_timeout_is_for_the_whole_answer(server: Server):
    server.routes["/"] = dribble(server)
    assert failure({"url": server.url, "timeout": 0.3}) == "Request timed out after 0.3s"


def test_a_silent_server(server: Server):
    server.routes["/"] = lambda _: server.over.wait() and None
    assert failure({"url": server.url, "timeout": 0.2}) == "Request timed out after 0.2s"


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("reading", [True, False])
def test_an_interrupt_ends_the_request(
    server: Server, monkeypatch: pytest.MonkeyPatch, announced: bool, reading: bool
):
    if reading:  # the interrupt comes when it waits for data already
        monkeypatch.setattr(Network, "left", lambda *_: PATIENCE)
    task_run = TaskRun("w", "s", "t")

    def handle(handler: Any) -> None:
        length = b"Content-Length: 10\r\n" if announced else b""
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + length + b"\r\nabc")
        task_run.interrupt()
        server.over.wait(PATIENCE)

    server.routes["/"] = handle
    with running(task_run):
        result = run({"url": server.url, "timeout": PATIENCE * 10, "retries": 5, "continue_on_failure": True})
    assert (result.status, result.context["error"]) == (
        WorkflowStatus.TERMINAL,
        "HTTP request was interrupted",
    )
    assert len(server.seen) == 1


def test_an_interrupt_ends_the_wait_for_a_retry(server: Server):
    task_run = TaskRun("w", "s", "t")
    waiting = threading.Event()
    wait = task_run.cancelled.wait

    def watched(timeout: float | None = None) -> bool:
        if timeout:
            waiting.set()
        return wait(timeout)

    task_run.cancelled.wait = watched  # type: ignore[method-assign]
    server.routes["/"] = Answer(503)
    thread = threading.Thread(target=lambda: waiting.wait(PATIENCE) and task_run.interrupt())
    thread.start()
    with running(task_run):
        result = run({"url": server.url, "retries": 5, "retry_delay": 10_000})
    thread.join()
    assert result.context["error"] == "HTTP request was interrupted"


def test_the_engine_lets_all_attempts_run():
    timeout = HTTPTask().get_execution_timeout(stage_of({"url": "http://h", "timeout": 100, "retries": 3}))
    assert timeout is not None
    assert timeout.total_seconds() > 400
    assert HTTPTask().get_execution_timeout(stage_of({})) is None


# ---------------------------------------------------------------------- secrets


def test_secrets_are_masked_everywhere(server: Server, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    host = server.url.removeprefix("http://")

    def echo(handler: Any) -> Answer:
        text = handler.path + " " + str(handler.headers)
        return Answer(400, text.encode(), {"X-Echo": handler.headers["Authorization"]})

    server.routes["/s3cr3t"] = echo
    own = {
        "url": f"http://user:passw0rd@{host}/{{tok}}?t={{tok}}",
        "headers": {"X-Api-Key": "ap1k3y", "X-Other": "0th3r", "Cookie": "c00k13"},
        "tok": "s3cr3t",
        "secrets": ["tok", "X-Other"],
    }
    result = run(own)
    assert result.context["error"] == "HTTP 400"
    assert result.context["url"] == f"http://{host}/***?t=***"
    assert len(server.seen) == 1
    basic = base64.b64encode(b"user:passw0rd").decode()
    for secret in ("s3cr3t", "passw0rd", "ap1k3y", "0th3r", "c00k13", basic):
        assert secret not in str(result)
        assert secret not in caplog.text


def test_the_token_is_masked_without_being_named(server: Server):
    server.routes["/"] = lambda handler: Answer(200, str(handler.headers).encode())
    got = outputs({"url": server.url, "bearer_token": "{t}", "parse_json": True}, {"t": "t0k3n"})
    assert "t0k3n" not in str(got)
    assert "Bearer ***" in got["body"]


@pytest.mark.parametrize(
    "own",
    [
        {"url": "http://127.0.0.1:1/hunter2"},
        {"url": "http://hunter2.invalid/", "timeout": 5},
        {"url": "ftp://user:hunter2@host/"},
        {"url": "http://[hunter2/"},
        {"url": "http://h", "auth": "hunter2"},
        {"url": "http://h", "headers": {"Authorization": ["hunter2"]}},
        {"url": "http://127.0.0.1/hunter2", "allow_private_urls": False},
    ],
)
def test_errors_do_not_give_secrets_away(own: dict[str, Any]):
    result = run({**own, "k": "hunter2", "secrets": ["k"]})
    assert result.status is WorkflowStatus.TERMINAL
    assert "hunter2" not in str(result)


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("own", "error"),
    [
        ({}, "No 'url' specified in context"),
        ({"url": "http://h", "method": "FOO"}, "Unsupported method 'FOO'. Supported: ['DELETE', 'GET', "),
        ({"url": "ftp://h/"}, "unsupported scheme 'ftp'"),
        ({"url": "http://h", "proxy": "nohost", "allow_private_urls": True}, "option 'proxy': names no host"),
        ({"url": "/path"}, "unsupported scheme ''"),
        ({"url": "http://h", "timeout": 0}, "option 'timeout': Input should be greater than 0 (got 0)"),
        ({"url": "http://h", "upload_file": "/no/file"}, "Upload file not found"),
        ({"url": "http://h", "download_to": "/no/dir/file"}, "its directory does not exist"),
        ({"url": "http://h", "client_key": "k"}, "'client_key' needs 'client_cert'"),
        ({"url": "https://h", "ca_cert": "/no/file"}, "No such file"),
    ],
)
def test_options_that_make_no_sense(own: dict[str, Any], error: str):
    assert error in failure(own)


def test_upstream_outputs_do_not_configure(server: Server):
    inherited = {"url": "http://elsewhere.invalid/", "method": "DELETE", "expected_status": 500, "body": "b"}
    assert outputs({"url": server.url}, inherited)["body"] == "ok"
    assert (server.seen[0].method, server.seen[0].body) == ("GET", b"")


# ---------------------------------------------------------------------- what was told beside


def test_the_body_of_a_redirect_is_not_read(server: Server):
    def endless(handler: Any) -> None:
        handler.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /new\r\n\r\n")
        while not server.over.is_set():
            handler.wfile.write(b"x" * 1000)

    server.routes |= {"/": endless, "/new": Answer(body=b"new")}
    assert outputs({"url": server.url, "timeout": PATIENCE})["body"] == "new"


def test_what_the_stage_knows_is_hidden_in_a_failure(server: Server):
    server.routes["/"] = lambda handler: Answer(400, f"no {handler.path}".encode())
    own = {"url": server.url + "/?t={api_key}", "api_key": "s3cr3t", "continue_on_failure": True}
    result = run(own)
    assert result.status is WorkflowStatus.FAILED_CONTINUE
    assert result.outputs["body"] == "no /?t=***"
    assert "s3cr3t" not in str(result)


def test_a_placeholder_that_nothing_fills_is_warned_of(server: Server, caplog: pytest.LogCaptureFixture):
    server.routes["/%7Bid%7D"] = Answer()
    with caplog.at_level(logging.WARNING):
        run({"url": server.url + "/{id}", "headers": {"X": "{me}"}, "method": "POST", "body": '{"a": {b}}'})
    assert caplog.messages == [
        "stage s: option 'url': nothing fills {id}",
        "stage s: option 'headers': nothing fills {me}",
    ]
