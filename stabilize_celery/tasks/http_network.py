"""The connections of one HTTP request: guarded, over at a deadline, and closed at once when the run is interrupted."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

from stabilize_celery.tasks.ssrf import resolve

_quiet: ContextVar[bool] = ContextVar("stabilize_http_quiet", default=False)


def _not_quiet(_: logging.LogRecord) -> bool:
    return not _quiet.get()


# At level DEBUG httpcore logs the headers of every response, and cookies and echoed tokens with them.
for _name in ("connection", "http11", "proxy"):
    logging.getLogger(f"httpcore.{_name}").addFilter(_not_quiet)


@contextlib.contextmanager
def no_wire_log() -> Iterator[None]:
    """Keep httpcore's own log lines of this thread's requests out of the log while the block runs."""
    token = _quiet.set(True)
    try:
        yield
    finally:
        _quiet.reset(token)


class Network(httpcore.NetworkBackend):
    """Connects to checked addresses only; everything together ends at the deadline.

    Time limits of single reads do not help against a server that sends one byte now and then, so each operation gets
    what is left until the deadline.

    Args:
        seconds: until the deadline.
        allow_private: whether addresses that are not public may be connected to.
    """

    def __init__(self, seconds: float, allow_private: bool) -> None:
        self._deadline = time.monotonic() + seconds
        self._allow_private = allow_private
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._closed = False

    def left(self, error: type[Exception]) -> float:
        """Seconds that are left; raises ``error`` when there are none."""
        left = self._deadline - time.monotonic()
        if left <= 0 or self._closed:
            raise error("the deadline has passed")
        return left

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Resolve, check and connect; the addresses are tried one after the other.

        Raises:
            SsrfBlockedError: an address is not public.
            httpcore.ConnectError: none could be connected to.
        """
        try:
            addresses = resolve(host, port, self._allow_private)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        problem: Exception = httpcore.ConnectError("no address")
        for address in addresses:
            try:
                stream = httpcore.SyncBackend().connect_tcp(
                    address, port, self.left(httpcore.ConnectTimeout), local_address, socket_options
                )
            except httpcore.ConnectError as error:
                problem = error
                continue
            self._keep(stream)
            return _Stream(stream, self)
        raise problem

    def _keep(self, stream: httpcore.NetworkStream) -> None:
        with self._lock:
            self._sockets.append(stream.get_extra_info("socket"))
            closed = self._closed
        if closed:
            self.interrupt()

    def interrupt(self) -> None:
        """End every connection, from another thread: whoever waits for data gets an end of file."""
        with self._lock:
            self._closed = True
            sockets = list(self._sockets)
        for connection in sockets:
            # Below TLS: a TLS goodbye could block, and must not be sent from two threads.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _Stream(httpcore.NetworkStream):
    """A connection whose operations all end at the deadline."""

    def __init__(self, stream: httpcore.NetworkStream, network: Network) -> None:
        self._stream = stream
        self._network = network

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._network.left(httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._network.left(httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left = self._network.left(httpcore.ConnectTimeout)
        stream = self._stream.start_tls(ssl_context, server_hostname, left)
        self._network._keep(stream)
        return _Stream(stream, self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Transport:
    """Sends requests over a pool of connections.

    ``httpx.Client`` is not used because it logs every URL, whatever secret is in it, and takes proxies and passwords
    from the environment.
    """

    def __init__(self, network: Network, tls: ssl.SSLContext, proxy: str | None) -> None:
        if proxy is None:
            self._pool = httpcore.ConnectionPool(ssl_context=tls, network_backend=network)
        else:
            url = httpx.URL(proxy)
            self._pool = httpcore.HTTPProxy(
                proxy_url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=b"/"),
                proxy_auth=(url.username, url.password) if url.username else None,
                ssl_context=tls,
                network_backend=network,
            )

    def send(self, request: httpx.Request) -> httpx.Response:
        """The response, whose body has not been read yet.

        Raises:
            httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError: it did not work out.
        """
        url = request.url
        response = self._pool.handle_request(
            httpcore.Request(
                method=request.method,
                url=httpcore.URL(
                    scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
                ),
                headers=request.headers.raw,
                content=request.stream,
            )
        )
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(response.stream), request=request
        )

    def close(self) -> None:
        """Close every connection."""
        self._pool.close()


class _Body(httpx.SyncByteStream):
    """A response body that is read as it arrives."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        yield from self._stream

    def close(self) -> None:
        self._stream.close()
