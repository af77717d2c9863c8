"""Where a connection leads: which addresses are public, and the sockets to them."""

import ipaddress
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver, ResolveResult

# IPv6 that carries an IPv4 address, any one: compatible, NAT64, Teredo, 6to4.
_TUNNELS = [
    ipaddress.IPv6Network(network)
    for network in ("::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16")
]


def is_public(host: str) -> bool:
    """Whether an address is one of the internet; a name that is no address counts as one."""
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


def public_resolver() -> "AbstractResolver":
    """A resolver that refuses a name which leads to an address that is not public."""
    import aiohttp

    class PublicResolver(aiohttp.ThreadedResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list["ResolveResult"]:
            found = await super().resolve(host, port, family)
            if not all(is_public(result["host"]) for result in found):
                raise OSError(None, "it leads to a private address")
            return found

    return PublicResolver()


def kept_alive_socket(address: Any) -> socket.socket:
    """A socket that notices a peer that is gone, though nothing is sent for minutes."""
    family, kind, protocol = address[:3]
    made = socket.socket(family=family, type=kind, proto=protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
