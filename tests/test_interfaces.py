"""The addresses of this machine: what is listened on, what is told to others, and in what order."""

from ipaddress import ip_network

import pytest
from test_discovery import LOOPBACK

from p2pfl.errors import UsageError
from p2pfl.network.interfaces import (
    Interface,
    dialable,
    has_ipv6,
    interfaces,
    listening_hosts,
    local_addresses,
    nearest,
    ranked,
    scoped,
)


def test_addresses_are_ordered_by_how_likely_others_reach_them() -> None:
    lo, docker = Interface("lo", (LOOPBACK,)), Interface("docker0", ("172.17.0.1",))
    wifi, wired = Interface("wlan0", ("192.168.1.7",)), Interface("eth0", ("10.0.0.7", "10.0.0.8"))
    lone = Interface("eth1", ("169.254.3.4",))
    assert ranked([lo, docker, lone, wired, wifi], {"192.168.1.7"}) == (wifi, wired, lone, docker, lo)
    assert ranked([docker, wired, wifi], ()) == (wired, wifi, docker)


def test_loopback_is_told_only_when_nothing_else_is_up() -> None:
    lo, wired = Interface("lo", (LOOPBACK,)), Interface("eth0", ("10.0.0.7", "10.0.0.8"))
    assert dialable([lo, wired]) == ("10.0.0.7", "10.0.0.8")
    assert dialable([lo]) == (LOOPBACK,)
    assert dialable([]) == ()


def test_addresses_of_a_link_alone_are_told_last_and_without_their_scope() -> None:
    wired = Interface("eth0", ("10.0.0.7", "fd77::7", "fe80::7%eth0"))
    wifi = Interface("wlan0", ("10.1.0.7", "fe80::8%wlan0"))
    assert dialable([wired, wifi]) == ("10.0.0.7", "fd77::7", "10.1.0.7", "fe80::7", "fe80::8")


def test_addresses_of_a_link_alone_get_the_scopes_of_this_machine() -> None:
    wired = Interface("eth0", ("10.0.0.7", "fe80::7%eth0"))
    wifi, lo = Interface("wlan0", ("fe80::8%wlan0",)), Interface("lo", (LOOPBACK, "::1"))
    up = (wired, wifi, lo)
    assert scoped("fe80::9", up) == ("fe80::9%eth0", "fe80::9%wlan0")
    assert scoped("fe80::9%wlan0", up) == ("fe80::9%wlan0", "fe80::9%eth0")
    assert scoped("fe80::9%other", up) == ("fe80::9%eth0", "fe80::9%wlan0")
    assert scoped("fe80::9", (lo,)) == ()
    assert scoped("10.0.0.9", up) == ("10.0.0.9",)
    assert scoped("fd77::9", up) == ("fd77::9",)
    assert scoped("host.example", up) == ("host.example",)


def test_another_machines_addresses_are_ordered_by_how_near_they_are() -> None:
    up = (
        Interface("eth0", ("192.168.1.7", "fe80::7%eth0"), (ip_network("192.168.1.0/24"), ip_network("fe80::/64"))),
        Interface("docker0", ("172.17.0.1",), (ip_network("172.17.0.0/16"),)),
        Interface("lo", (LOOPBACK, "::1"), (ip_network("127.0.0.0/8"), ip_network("::1/128"))),
    )
    hosts = ["172.17.0.1", "10.5.0.1", "192.168.1.9", "fd77::9", "fe80::9"]
    assert nearest(hosts, up) == ("192.168.1.9", "10.5.0.1", "fd77::9", "fe80::9", "172.17.0.1")
    assert nearest(hosts, ()) == ("172.17.0.1", "10.5.0.1", "192.168.1.9", "fd77::9", "fe80::9")


def test_all_of_the_machine_or_one_interface_is_listened_on() -> None:
    assert listening_hosts() == (("0.0.0.0", "::") if has_ipv6() else ("0.0.0.0",))
    assert listening_hosts(LOOPBACK) == (LOOPBACK,)
    loopback = next(one for one in interfaces() if one.loopback)
    assert listening_hosts(loopback.name) == loopback.addresses


def test_an_interface_is_chosen_by_name_or_address() -> None:
    loopback = next(one for one in interfaces() if one.loopback)
    assert local_addresses(loopback.name) == loopback.addresses
    assert local_addresses(LOOPBACK) == (LOOPBACK,)
    assert local_addresses() == dialable(interfaces())


def test_unknown_interface_is_refused_and_the_known_ones_listed() -> None:
    with pytest.raises(UsageError, match=r"no network interface 'no-such0' here; .*\(127\.0\.0\.1[,)]"):
        local_addresses("no-such0")
