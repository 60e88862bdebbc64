"""What the doctor prints as a mend can be typed as it stands, and what is no fault is no problem."""

import os
import re
import shlex
import socket
from pathlib import Path

import pytest
import typer

from p2pfl import home
from p2pfl.cli.app import app
from p2pfl.doctor.examination import elsewhere
from p2pfl.doctor.findings import Finding
from p2pfl.doctor.machine import judge_exposed, judge_folder, judge_ports, others_reach
from p2pfl.doctor.multicast import Heard, judge_heard
from p2pfl.doctor.nics import Nic
from p2pfl.doctor.others import Answer, judge_answers, judge_tags
from p2pfl.network.discovery import Candidate

on_posix = pytest.mark.skipif(os.name != "posix", reason="rights are kept in lists there")
ETH = Nic("eth0", ("10.0.0.1",))
SEVERAL: tuple[Finding, ...] = (
    *judge_tags([Candidate("p" * 26, "t2", ())], "home", {"t1": "home"}, {}),
    *judge_tags([Candidate("p" * 26, "t2", ())], None, {}, {}),
    *judge_tags([Candidate("p" * 52, "open", ())], None, {}, {}),
    *judge_tags([], "home", {}, {}),
    *judge_answers([Answer("10.0.0.2:7470", tcp="open", why="of another network")], ()),
)


def test_every_command_of_ours_in_a_mend_has_what_it_needs() -> None:
    command = typer.main.get_command(app)
    lines = re.findall(r"p2pfl ([a-z]+(?: [^,;:`(]+)?)", "; ".join(one.mend for one in SEVERAL))
    typed = [line.split(" on both")[0].split(" takes ")[0].split() for line in lines]
    assert ["network", "join", "--replace", "FILE"] in typed
    assert ["network", "create", "home"] in typed
    for words in typed:
        group, rest = command, words
        while hasattr(group, "commands"):
            group, rest = group.commands[rest[0]], rest[1:]
        group.make_context("p2pfl", list(rest))  # raises where an argument is missing, or an option unknown


def test_peers_without_encryption_are_told_from_those_whose_key_is_not_here() -> None:
    [hidden] = judge_tags([Candidate("p" * 26, "t2", ())], None, {}, {})
    [open_] = judge_tags([Candidate("p" * 52, "open", ())], None, {}, {})
    assert (hidden.level, open_.level) == ("note", "note")
    assert hidden.text == "1 of a network whose key is not on this machine"
    assert open_.text == "1 of a network without encryption"


def test_a_lan_where_nobody_else_is_is_no_problem() -> None:
    [finding] = judge_heard((ETH,), {"eth0": Heard(own=True)}, 0)
    assert finding.level == "note"
    assert finding.mend.startswith("if peers run elsewhere: name a peer by --peer HOST:PORT")


def test_a_peer_of_this_machine_is_not_elsewhere_whatever_address_it_tells() -> None:
    nic = Nic("eth0", ("10.0.0.1", "fd00::1", "fe80::1"))
    here = [Answer(one, tcp="open") for one in ("10.0.0.1:1", "[fd00::1]:1", "[fe80::1%eth0]:1")]
    there = [Answer("[fe80::2%eth0]:1", tcp="open")]
    assert elsewhere([*here, *there, Answer("10.0.0.9:1")], (nic,)) == there


def test_a_port_in_use_needs_no_mend() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        [finding] = judge_ports((taken.getsockname()[1], 0), "127.0.0.1")
    assert (finding.level, finding.mend) == ("note", "")


@on_posix
def test_rights_are_mended_by_a_command_that_works_whatever_the_folder_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "Application Support; p2pfl"
    monkeypatch.setenv("P2PFL_HOME", str(top))
    home.create_network("home")
    folder, key = top / "networks" / "home", home.key_path("home")
    key.chmod(0o644)
    folder.chmod(0o777)
    top.chmod(0o777)
    findings = list(dict.fromkeys([*judge_folder(top), *judge_exposed(home.exposed("home"))]))
    assert sorted(one.place for one in findings) == sorted(map(str, (top, folder, key)))  # each once
    for one in findings:
        words = shlex.split(one.mend)
        assert words[0] == "chmod"
        Path(words[2]).chmod(int(words[1], 8))
    assert [*judge_folder(top), *judge_exposed(home.exposed("home"))] == []


@on_posix
def test_a_file_that_others_cannot_come_to_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("P2PFL_HOME", str(tmp_path / "closed"))
    home.create_network("home")
    home.key_path("home").chmod(0o644)
    assert not others_reach(home.key_path("home"))
    assert others_reach(Path("/etc/hostname"))
    [finding] = judge_exposed(home.exposed("home"))
    assert (finding.level, finding.code) == ("note", "exposed key")
