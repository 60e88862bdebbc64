"""Tables of the command line on narrow terminals."""

import io

import pytest
from rich.console import Console

from p2pfl.cli import doctor, peers
from p2pfl.cli.peers import Seen
from p2pfl.doctor.examination import Examination
from p2pfl.doctor.multicast import Heard
from p2pfl.doctor.nics import Nic
from p2pfl.doctor.others import Answer

LONG = "2001:db8:1234:5678:9abc:def0:1234:5678"


def narrow(width: int) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=width, highlight=False), out


@pytest.mark.parametrize("width", [30, 60, 80, 120])
def test_an_address_is_never_broken_in_the_list_of_peers(width: int) -> None:
    console, out = narrow(width)
    addresses = ("10.0.0.1:7470", f"[{LONG}]:7470", "[fe80::fc:ff:fe00:1%eth0]:7470")
    peers._print([Seen("ann", "a" * 52, addresses, "home", "mlp", 3, "training", True, True)], console)
    assert all(address in out.getvalue() for address in addresses)
    assert sum("7470" in line for line in out.getvalue().splitlines()) == 3
    assert all(word in out.getvalue() for word in ("aaaaaaaa", "yes"))


@pytest.mark.parametrize("width", [30, 60, 80, 120])
def test_an_address_is_never_broken_by_the_doctor(width: int) -> None:
    console, out = narrow(width)
    nic = Nic("eth0", ("10.0.0.1", LONG, "fe80::fc:ff:fe00:1"))
    answer = Answer(f"[{LONG}]:7470", "p" * 26, "tag", "open", why="of another network, or its key was changed")
    doctor._print(Examination((nic,), {"eth0": Heard(own=True)}, (), (answer,), ()), console)
    assert all(address in out.getvalue() for address in (*nic.addresses, answer.address))


def test_a_table_that_fits_is_as_wide_as_the_terminal() -> None:
    console, out = narrow(80)
    peers._print([Seen("ann", "a" * 52, ("10.0.0.1:7470",), "home", "mlp", 3, "training", True, True)], console)
    assert max(map(len, out.getvalue().splitlines())) <= 80
