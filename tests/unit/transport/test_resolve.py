"""Which addresses are dialled without `allow_private`."""

import asyncio
import socket

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.transport.resolve import AddressRefused, PublicResolver, public


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255",
        "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.100.100.200", "168.63.129.16",
        "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1",
        "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "::127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:db8::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2", "not an address", "",
    ],
)  # fmt: skip
def test_this_is_not_public(address: str) -> None:
    assert not public(address)


@pytest.mark.parametrize(
    "address", ["1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700:4700::1111", "::ffff:8.8.8.8"]
)
def test_this_is_public(address: str) -> None:
    assert public(address)


class Fixed(AbstractResolver):
    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=a, port=port, family=family, proto=0, flags=0)
            for a in self._addresses
        ]

    async def close(self) -> None:
        pass


def test_a_name_gives_its_public_addresses_only() -> None:
    resolver = PublicResolver(Fixed("10.0.0.1", "8.8.8.8", "::1"))
    found = asyncio.run(resolver.resolve("rebound.example", 443))
    assert [address["host"] for address in found] == ["8.8.8.8"]


def test_a_name_with_private_addresses_only_is_refused() -> None:
    with pytest.raises(AddressRefused):
        asyncio.run(PublicResolver(Fixed("10.0.0.1")).resolve("inside.example", 443))


async def test_the_systems_resolver_is_asked_off_the_loop() -> None:
    with pytest.raises(AddressRefused):
        await PublicResolver().resolve("localhost", 80)
