"""Addresses: taken ones are refused in words, shared ones may be shared."""

import errno
import socket

import pytest

from gateway.server.listen import PortTaken, bind


def listening(port: int) -> socket.socket:
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    one.bind(("127.0.0.1", port))
    one.listen()
    return one


def test_a_shared_port_is_ours_to_share_and_nobody_elses() -> None:
    (held,), port = bind("127.0.0.1", 0, shared=True)
    with held, listening(port), listening(port):
        for shared in (True, False):
            with pytest.raises(PortTaken, match=f"127.0.0.1:{port} is in use: stop what"):
                bind("127.0.0.1", port, shared=shared)


def test_a_name_with_two_addresses_has_one_port() -> None:
    sockets, port = bind("localhost", 0)
    assert {one.getsockname()[1] for one in sockets} == {port}
    for one in sockets:
        one.close()


def test_what_is_no_address_of_this_machine_is_told() -> None:
    with pytest.raises(PortTaken, match=r"203\.0\.113\.1 is no address of this machine") as told:
        bind("203.0.113.1", 8080)
    assert told.value.errno == errno.EADDRNOTAVAIL
