"""Which port and which addresses the HTTP transport takes. The numbers are those of the list of faults."""

import socket
from contextlib import ExitStack, suppress

import pytest
from raw_ends import PLAIN, Wire
from test_transport import Host, hosts, run

from p2pfl.errors import NetworkError
from p2pfl.network.discovery import split_address
from p2pfl.network.http import DEFAULT_PORT, HttpTransport, fetch_status
from p2pfl.network.transport import body_of


@pytest.mark.fault(31)
def test_next_port_is_taken_where_one_is_in_use(wire: Wire) -> None:
    """31"""

    async def scene() -> None:
        async with hosts(wire.http(port=None), 3) as some:
            ports = [split_address(host.address)[1] for host in some]
            assert ports == sorted(set(ports))
            assert ports[0] >= DEFAULT_PORT
            for host in some:
                host.bodies["who"] = body_of(memoryview(host.address.encode()))
            for host in some:
                into = bytearray(len(host.address))
                await some[0].transport.fetch(host.address, "who", "me", memoryview(into))
                assert into.decode() == host.address

    run(scene())


@pytest.mark.fault(31)
def test_any_port_is_taken_where_all_the_usual_ones_are_in_use() -> None:
    """31"""

    async def scene() -> None:
        with ExitStack() as stack:
            for port in range(DEFAULT_PORT, DEFAULT_PORT + 30):
                taken = stack.enter_context(socket.socket())
                with suppress(OSError):  # by somebody else: as well
                    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    taken.bind(("127.0.0.1", port))
                    taken.listen()
            async with hosts(PLAIN.http(port=None), 1) as (host,):
                assert split_address(host.address)[1] not in range(DEFAULT_PORT, DEFAULT_PORT + 30)
                await PLAIN.lives(host)

    run(scene())


@pytest.mark.fault(31)
def test_fixed_port_in_use_is_an_error_that_says_so() -> None:
    """31"""

    async def scene() -> None:
        async with hosts(PLAIN.http(), 1) as (host,):
            port = split_address(host.address)[1]
            second = HttpTransport(("127.0.0.1",), port)
            with pytest.raises(NetworkError, match=rf"port {port} is in use; choose another --port"):
                async with second.serving(host.service()):
                    pass
            await PLAIN.lives(host)

    run(scene())


@pytest.mark.parametrize(("hosts_given", "match"), [((), "no address"), (("192.0.2.1",), "192.0.2.1")])
def test_address_that_is_not_here_is_an_error_that_says_so(hosts_given: tuple[str, ...], match: str) -> None:
    async def scene() -> None:
        nowhere = HttpTransport(hosts_given, 0)
        with pytest.raises(NetworkError, match=match):
            async with nowhere.serving(Host(nowhere).service()):
                pass

    run(scene())


def test_all_hosts_get_the_same_port() -> None:
    async def scene() -> None:
        transport = HttpTransport(("127.0.0.1", "127.0.0.2"), 0)
        async with transport.serving(Host(transport).service()):
            first, second = map(split_address, transport.addresses)
            assert first[0] != second[0]
            assert first[1] == second[1] == transport.port
            for address in transport.addresses:
                assert await fetch_status(address) == b"{}"

    run(scene())
