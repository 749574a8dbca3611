from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stabilize_celery.models.status import WorkflowStatus
from stabilize_celery.tasks.http import HTTPTask
from stabilize_celery.tasks.result import TaskResult
from tests.unit.tasks.helpers import stage_of
from tests.unit.tasks.http_server import Answer, Server

trustme = pytest.importorskip("trustme")


@pytest.fixture(scope="module")
def authority() -> Any:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: Any, tmp_path: Path) -> str:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


@pytest.fixture
def names() -> list[str]:
    return []


@pytest.fixture
def server(authority: Any, names: list[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("service.example").configure_cert(context)
    context.sni_callback = lambda _, name, __: names.append(name)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_OPTIONAL
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **options: Any) -> Any:
        return real("127.0.0.1" if host.endswith(".example") else host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with Server(context) as running_server:
        yield running_server


def run(server: Server, host: str = "service.example", **options: Any) -> TaskResult:
    url = f"https://{host}:{server.server_port}/"
    return HTTPTask().execute(stage_of({"url": url, "allow_private_urls": True, **options}))


def test_name_and_certificate_are_those_of_the_url(server: Server, ca_file: str, names: list[str]):
    result = run(server, ca_cert=ca_file)
    assert result.status is WorkflowStatus.SUCCEEDED, result.context
    assert result.outputs["body"] == "ok"
    assert names == ["service.example"]
    assert server.seen[0].headers["host"] == f"service.example:{server.server_port}"


def test_an_unknown_authority_is_refused_and_not_retried(server: Server, names: list[str]):
    result = run(server, retries=3, retry_delay=0)
    assert "CERTIFICATE_VERIFY_FAILED" in result.context["error"]
    assert not server.seen
    assert len(names) == 1


def test_another_name_is_refused(server: Server, ca_file: str):
    assert "CERTIFICATE_VERIFY_FAILED" in run(server, "other.example", ca_cert=ca_file).context["error"]
    assert not server.seen


def test_verification_can_be_switched_off(server: Server):
    assert run(server, "other.example", verify_ssl=False).status is WorkflowStatus.SUCCEEDED


@pytest.mark.parametrize("separate", [True, False])
def test_client_certificate(server: Server, authority: Any, ca_file: str, tmp_path: Path, separate: bool):
    def whoami(handler: Any) -> Answer:
        certificate = handler.connection.getpeercert()
        return Answer(body=str(certificate.get("subjectAltName")).encode() if certificate else b"nobody")

    server.routes["/"] = whoami
    mine = authority.issue_cert("client@users.example")
    both, key, chain = (str(tmp_path / name) for name in ("both.pem", "key.pem", "chain.pem"))
    mine.private_key_and_cert_chain_pem.write_to_path(both)
    mine.private_key_pem.write_to_path(key)
    mine.cert_chain_pems[0].write_to_path(chain)
    files = {"client_cert": chain, "client_key": key} if separate else {"client_cert": both}
    assert "client@users.example" in run(server, ca_cert=ca_file, **files).outputs["body"]
    assert run(server, ca_cert=ca_file).outputs["body"] == "nobody"


def test_a_redirect_from_http_is_verified_too(server: Server, ca_file: str):
    with Server() as plain:
        plain.routes["/"] = Answer(
            302, headers={"Location": f"https://service.example:{server.server_port}/"}
        )
        base = {"url": plain.url, "allow_private_urls": True}
        result = HTTPTask().execute(stage_of(base))
        assert "CERTIFICATE_VERIFY_FAILED" in result.context["error"]
        assert HTTPTask().execute(stage_of({**base, "ca_cert": ca_file})).outputs["body"] == "ok"


def test_a_silent_handshake_ends_at_the_deadline():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
        own = {"url": url, "allow_private_urls": True, "timeout": 0.2}
        assert HTTPTask().execute(stage_of(own)).context["error"] == "Request timed out after 0.2s"
