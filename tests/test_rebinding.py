"""A web page that lets its own name lead to this machine reads neither the status nor the metrics."""

import asyncio
import http.client

import pytest
from prometheus_client import CollectorRegistry
from test_tls import Host, credentials, host
from test_transport import run

from p2pfl.network.discovery import split_address
from p2pfl.network.http import fetch_status
from p2pfl.network.rebinding import is_of_this_host
from p2pfl.telemetry.listener import shown


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (None, True),
        ("192.168.1.20:7470", True),
        ("[fe80::1%eth0]:7470", True),
        ("[::1]", True),
        ("localhost:9464", True),
        ("p2pfl", True),
        ("alice", True),
        ("Alice.Home.Lan:7470", True),
        ("alice.local", True),
        ("page.example", False),
        ("alice.page.example:7470", False),
        ("127.0.0.1.page.example", False),
        ("page.example.", False),
        ("127.0.0.1:80@page.example", False),
        ("[::1]page.example", False),
        ("a" * 300, False),
    ],
)
def test_names_that_a_stranger_can_own_are_not_of_this_host(asked: str | None, answered: bool) -> None:
    assert is_of_this_host(asked, "alice.home.lan") is answered


def ask(address: str, path: str, name: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*split_address(address), timeout=5)
    try:
        connection.request("GET", path, headers={"Host": name})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_metrics_are_shown_to_no_web_page() -> None:
    with shown(CollectorRegistry(), "127.0.0.1", 0) as address:
        assert ask(address, "/metrics", address)[0] == 200
        assert ask(address, "/metrics", "page.example")[0] == 421


def test_the_status_in_the_clear_is_shown_to_no_web_page_and_to_peers_by_whatever_name() -> None:
    async def scene() -> None:
        a: Host = host(None)
        async with a.transport.serving(a.service()):
            assert await asyncio.to_thread(ask, a.address, "/v1/status", a.address) == (200, b"{}")
            assert (await asyncio.to_thread(ask, a.address, "/v1/status", "page.example:7470"))[0] == 421
            assert [turned.reason for turned in a.turned] == ["from a web page"]
            port = split_address(a.address)[1]
            assert await fetch_status(f"localhost:{port}") == b"{}"

    run(scene())


def test_an_encrypted_port_needs_no_such_check() -> None:
    async def scene() -> None:
        a = host(credentials(1))
        async with a.transport.serving(a.service()):
            assert await fetch_status(a.address, credentials=credentials(2)) == b"{}"

    run(scene())
