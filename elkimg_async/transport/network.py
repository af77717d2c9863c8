"""Network addresses and sockets: which addresses are public, and TCP keep-alive."""

import ipaddress
import socket
from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from aiohttp.abc import ResolveResult

# IPv6 networks whose addresses embed an IPv4 address, possibly a private one: compatible, NAT64,
# Teredo, 6to4.
_TUNNELS = [
    ipaddress.IPv6Network(network)
    for network in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
]


def is_public(host: str) -> bool:
    """Return whether an address is public; a host name counts as public."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0].strip("[]"))
    except ValueError:
        return True
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif any(address in tunnel for tunnel in _TUNNELS):
            return False
    return address.is_global and not address.is_multicast


class PublicResolver(aiohttp.ThreadedResolver):
    """Resolver that fails for a host name with an address that is not public."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> "list[ResolveResult]":
        """Resolve a host name.

        Raises:
            OSError: If the name is unknown or one of its addresses is private.
        """
        found = await super().resolve(host, port, family)
        if not all(is_public(result["host"]) for result in found):
            raise OSError(None, "it resolves to a private address")
        return found


def keep_alive_socket(address: Any) -> socket.socket:
    """Create a socket that detects a lost peer even while nothing is sent for minutes."""
    family, kind, protocol = address[:3]
    created = socket.socket(family=family, type=kind, proto=protocol)
    created.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            created.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return created
