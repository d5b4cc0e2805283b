"""Sockets that are bound before anybody serves from them, and what to say where that fails."""

import errno
import socket
from collections.abc import Iterator


class PortTaken(OSError):
    """An address cannot be listened on; the message is for the person who started us."""


def refused(error: OSError, host: str, port: int) -> PortTaken:
    """The same failure in words."""
    where = f"{host}:{port}"
    words = {
        errno.EADDRINUSE: f"{where} is in use: stop what listens there, or choose another port.",
        errno.EACCES: f"{where} may not be listened on by this user: choose a port above 1023.",
        errno.EADDRNOTAVAIL: f"{host} is no address of this machine.",
    }
    return PortTaken(error.errno, words.get(error.errno or 0, f"{where} cannot be listened on."))


def bind(host: str, port: int, *, shared: bool = False) -> tuple[list[socket.socket], int]:
    """A socket for each address of `host`, and the port they have (one that is free for 0).

    Nobody else may have the port, not even somebody who would share it; `shared` lets others of
    this user bind it from then on (SO_REUSEPORT).

    Raises:
        PortTaken: says what is wrong with the address.
    """
    try:
        sockets, port = _bind(host, port, shared=False)
        if shared:
            _close(sockets)
            sockets, port = _bind(host, port, shared=True)
    except OSError as error:
        raise refused(error, host, port) from None
    return sockets, port


def _bind(host: str, port: int, *, shared: bool) -> tuple[list[socket.socket], int]:
    made: list[socket.socket] = []
    try:
        for family, address in _addresses(host):
            one = socket.socket(family, socket.SOCK_STREAM)
            made.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            one.bind((address, port))
            one.settimeout(0)
            port = int(one.getsockname()[1])
    except OSError:
        _close(made)
        raise
    return made, port


def _addresses(host: str) -> Iterator[tuple[int, str]]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    yield from dict.fromkeys((row[0], str(row[4][0])) for row in found)


def _close(sockets: list[socket.socket]) -> None:
    for one in sockets:
        one.close()
