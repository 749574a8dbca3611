"""Which addresses a workflow may reach: data from outside must not turn a worker into a way into its own network.

Names are resolved here, every address of the answer is checked, and the connection goes to one of the checked
addresses.  A name that answers differently the second time (DNS rebinding) is never asked a second time.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import httpcore
import httpx

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Under this prefix an IPv6 address carries an IPv4 address that a gateway forwards to (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: IPv4-compatible addresses (RFC 4291): deprecated, but some stacks still deliver them.
_COMPATIBLE = ipaddress.IPv6Network("::/96")
#: Of no use to a well-meant request, though not marked private everywhere.
_ALSO_BLOCKED = (
    ipaddress.IPv4Network("192.0.0.0/24"),  # protocol assignments
    ipaddress.IPv4Network("192.88.99.0/24"),  # 6to4 relays
    ipaddress.IPv6Network("fec0::/10"),  # site-local
    ipaddress.IPv6Network("64:ff9b:1::/48"),  # local-use NAT64
)


class SsrfBlockedError(Exception):
    """A request was about to go to an address that is not public."""

    def __init__(self, address: str) -> None:
        super().__init__(f"blocked address {address}")
        self.address = address


def is_public(address: IPAddress) -> bool:
    """Whether it is reachable from the whole Internet, also when it is wrapped in another kind of address."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if any(address.version == net.version and address in net for net in _ALSO_BLOCKED):
        return False
    if not address.is_global or address.is_multicast or address.is_unspecified:
        return False
    return all(is_public(inner) for inner in _carried(address))


def _carried(address: IPAddress) -> Iterator[IPAddress]:
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.sixtofour is not None:
        yield address.sixtofour
    if address.teredo is not None:
        yield from address.teredo
    if address in _COMPATIBLE or address in _NAT64:
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def resolve(host: str, port: int, allow_private: bool) -> list[str]:
    """The addresses of a host, in the order to try them.

    Raises:
        SsrfBlockedError: one of them is not public, and ``allow_private`` is false.
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private:
        for text in addresses:
            if not is_public(ipaddress.ip_address(text)):
                raise SsrfBlockedError(text)
    return addresses


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
        """End every connection, from another thread: a thread that waits for data gets an end of file."""
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


class Transport(httpx.HTTPTransport):
    """Sends the requests of an ``httpx.Client`` over a network of our own; nothing comes from the environment."""

    def __init__(self, network: Network, tls: ssl.SSLContext, proxy: str | None) -> None:
        super().__init__(verify=tls, trust_env=False, proxy=proxy)
        # httpx has no argument for it; without the attribute nothing may be sent: it would not be checked.
        if not hasattr(self._pool, "_network_backend"):
            raise RuntimeError(
                f"httpx {httpx.__version__} connects in an unknown way; use an earlier release"
            )
        self._pool._network_backend = network
