"""Which addresses may be dialled: public ones, unless a target says `allow_private`.

Looked at when the connection is made, on the address that is dialled: a name cannot be changed
in between (DNS rebinding), and an address written into the URL is looked at too.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

_METADATA = frozenset({"fd00:ec2::254", "168.63.129.16", "169.254.169.254", "100.100.100.200"})
_EMBEDDING = (  # networks that carry an IPv4 address, and how far from the right it stands
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (ipaddress.IPv6Network("::/96"), 0),  # IPv4-compatible
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4
)


class AddressRefused(OSError):
    """Every address of a name is private, loopback, link-local or otherwise not public."""


def public(address: str) -> bool:
    """Whether an IP address is one of the open internet's."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return public(str(ip.ipv4_mapped))
        for network, shift in _EMBEDDING:
            if ip in network:
                inner = ipaddress.IPv4Address((int(ip) >> shift) & 0xFFFFFFFF)
                return public(str(inner))
        if ip.is_site_local or ip.teredo is not None:
            return False
    return ip.is_global and not ip.is_multicast and not ip.is_reserved and str(ip) not in _METADATA


def refuse_private(found: Sequence[ResolveResult]) -> list[ResolveResult]:
    """The public ones.

    Raises:
        AddressRefused: there is none.
    """
    kept = [address for address in found if public(address["host"])]
    if not kept:
        raise AddressRefused(None, "no public address")
    return kept


class PublicResolver(AbstractResolver):
    """Names to public addresses; the system's resolver, in a thread."""

    def __init__(self, resolver: AbstractResolver | None = None) -> None:
        self._resolver = resolver or ThreadedResolver(loop=asyncio.get_running_loop())

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return refuse_private(await self._resolver.resolve(host, port, family))

    async def close(self) -> None:
        await self._resolver.close()
