"""Which addresses a workflow may reach: data from outside must not turn a worker into a way into its own network.

Names are resolved here, every address of the answer is checked, and the connection goes to one of the checked
addresses.  A name that answers differently the second time (DNS rebinding) is never asked a second time.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Under this prefix an IPv6 address carries an IPv4 address that a gateway forwards to (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
#: IPv4-compatible addresses (RFC 4291): deprecated, but some stacks still deliver them.
_COMPATIBLE = ipaddress.IPv6Network("::/96")
#: Of no use to anybody who means well, though not marked private everywhere.
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
    """Whether everybody on the Internet could reach it, also when it is wrapped in another kind of address."""
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
