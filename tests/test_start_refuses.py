"""What `p2pfl start` refuses, it refuses before it touches a key or reads data; what it tells once, it tells once."""

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from p2pfl import home
from p2pfl.cli import start
from p2pfl.cli.app import main
from p2pfl.network.interfaces import insecure_warning
from p2pfl.network_key import NetworkKey

Run = Callable[..., tuple[int, str, str]]
TOKEN = NetworkKey("home", bytes(range(32))).token


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `p2pfl …` in an empty folder and return exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["p2pfl", *arguments])
        try:
            main()
            status = 0
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        return status, *capfd.readouterr()

    return run


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--metrics", "foo:bar:1"], "--metrics 'foo:bar:1' is not of the form [HOST:]PORT"),
        (["--metrics", "198.51.100.7:9464"], "metrics cannot be shown at 198.51.100.7:9464"),
        (["--peer", "nonsense"], "--peer: 'nonsense' is not of the form host:port, as 192.168.1.20:7470"),
        (["--log-json", "gone/log"], "--log-json gone/log: No such file or directory; choose another file"),
        (["--interface", "nope0"], "no network interface 'nope0' here"),
        (["--init", "gone.safetensors"], "there is no file gone.safetensors; check the path"),
        (["--resume", "--out", "gone"], "there is no checkpoint in gone; start without --resume"),
    ],
)
def test_what_cannot_be_is_refused_before_a_key_is_touched(
    run: Run, tmp_path: Path, arguments: list[str], says: str
) -> None:
    (tmp_path / "key").write_text(TOKEN)
    (tmp_path / "key").chmod(0o600)
    status, out, err = run("start", "--join", "key", *arguments)
    assert (status, out) == (2, "")  # nothing was said of the data
    assert says in err
    assert err.count("\n") == 1
    assert home.networks() == []
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("home", "p2pfl")) == ["key"]


def test_a_port_of_metrics_that_is_in_use_is_told_before_the_data_is_read(run: Run) -> None:
    home.create_network("home")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        status, out, err = run("start", "--metrics", str(taken.getsockname()[1]), "--data", "no such data")
    assert (status, out) == (2, "")
    assert "metrics cannot be shown there" in err


def test_a_warning_names_to_whom_a_peer_without_encryption_is_open() -> None:
    assert insecure_warning(("127.0.0.1", "::1")).endswith("and every process of this machine can take part")
    assert insecure_warning(("10.0.0.1", "fe80::1%eth0")).endswith(
        "and whoever reaches 10.0.0.1 or fe80::1%eth0 can take part"
    )
    assert insecure_warning(("0.0.0.0",)).endswith("and whoever reaches this machine can take part")
    assert insecure_warning(()).endswith("and whoever reaches this machine can take part")


@pytest.mark.parametrize(
    ("data", "target", "part", "hosts", "typed"),
    [
        ("mnist10k", None, None, None, "--join key --data mnist10k"),
        ("mnist10k", None, (1, 3), None, "--join key --data mnist10k --part 2/3"),
        ("mnist10k", None, (3, 3), None, "--join key --data mnist10k --part I/3"),
        ("my rows.csv", "price", (1, 2), None, "--join key --data 'my rows.csv' --target price --part 2/2"),
        ("rows.csv", "price", None, None, "--join key --data ITS-OWN-DATA --target price"),
        ("mnist10k", None, None, ("127.0.0.1",), "--network home --insecure --data mnist10k"),
        ("mnist10k", None, None, ("10.0.0.1",), "--network home --insecure --interface ITS-ADDRESS --data mnist10k"),
    ],
)
def test_what_to_type_on_the_next_machine_is_the_whole_command(
    data: str, target: str | None, part: tuple[int, int] | None, hosts: tuple[str, ...] | None, typed: str
) -> None:
    warning = insecure_warning(hosts) if hosts else ""
    assert start._again("home", data, target, part, warning) == f"p2pfl start {typed}"


ALONE = ("--min-peers", "1", "--steps", "1", "--device", "cpu", "--out", "run", "--part", "1/40")


def test_without_encryption_it_is_said_once_and_to_whom_also_with_the_log(run: Run) -> None:
    status, out, err = run("start", "--insecure", "--network", "n-once", *ALONE, "--rounds", "1", "-v", "--json")
    assert status == 0, err
    assert err.count("nothing is encrypted") == 1
    assert "INSECURE: nothing is encrypted, and every process of this machine can take part." in err
    assert json.loads(out)["encrypted"] is False
    told = [json.loads(line) for line in Path("run/events.jsonl").read_text().splitlines()]
    assert [one["text"] for one in told if one["event"] == "Warned"] == [insecure_warning(("127.0.0.1",))]


def test_a_resumed_run_says_with_which_round_it_goes_on_and_from_which_file(run: Run) -> None:
    home.create_network("home")
    here = ("--name", "ann", "--interface", "127.0.0.1", *ALONE)
    status, _, err = run("start", *here, "--rounds", "2")
    assert status == 0, err
    status, out, err = run("start", *here, "--rounds", "3", "--resume")
    assert status == 0, err
    assert "ann goes on with round 3, from run/checkpoints/ann.safetensors" in out.replace("\n", " ")
