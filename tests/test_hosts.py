"""Peers on hosts of their own, on one LAN: found by mDNS, without it, late, and killed."""

import csv
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live import PATIENCE_S, SLACK, Live, Running
from namespaces import Host, lan, namespaces_available

pytestmark = [
    pytest.mark.namespaces,
    pytest.mark.skipif(namespaces_available() is not None, reason=str(namespaces_available())),
]

DROPPED_WITHIN_S = 1.0 * SLACK
UP_WITHIN_S = 15.0 * SLACK
WORK: dict[str, Any] = {"rounds": 8, "steps": 4, "step_s": 0.05}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with Live(tmp_path) as live:
        yield live


def peer(live: Live, host: Host, seat: int, **settings: Any) -> Running:
    """A peer of three, unless `settings` say otherwise."""
    return live.peer("abc"[seat], host, seat=str(seat), target=1.0 + seat, **{"min_peers": 3, **WORK, **settings})


def trained_together(live: Live, peers: list[Running]) -> None:
    """They end well, and no share of any round was lost or refused."""
    live.all_have(peers, "Result", 2 * PATIENCE_S)
    for one in peers:
        assert one.code() == 0
        assert one.rounds() == list(range(WORK["rounds"]))
        assert not one.of("ShareRejected")
        assert {(done["neighbors"], done["missing"]) for done in one.of("RoundFinished")} == {(len(peers) - 1, 0)}


def test_three_hosts_train_together_by_mdns_alone(live: Live) -> None:
    work = ["--rounds", "3", "--steps", "20", "--min-peers", "3", "--wait", "60", "--json"]
    names = ["alice", "bob", "carol"]
    with lan(3) as hosts:
        commands = [
            live.start(name, "--part", f"{i}/3", *work, host=host)
            for i, (name, host) in enumerate(zip(names, hosts, strict=True), 1)
        ]
        for command in commands:
            assert command.code(2 * PATIENCE_S) == 0, command.told()
        recipes = set()
        for command, host in zip(commands, hosts, strict=True):
            folder = live.folder / command.name
            summary = json.loads((folder / "summary.json").read_text())
            assert json.loads("\n".join(command.out)) == summary
            assert (summary["members"], summary["rounds"], summary["failures"]) == (names, 3, {})
            assert summary["bytes_received"] == summary["bytes_sent"] > 0
            assert summary["accuracy"]["mean"] > 0.5
            events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
            (listening,) = [one for one in events if one["event"] == "Listening"]
            assert listening["addresses"][0] == f"{host.address}:7470"  # of IPv6 there may be one, too
            others = {one["name"] for one in events if one["event"] == "PeerJoined"}
            assert others == set(names) - {command.name}
            with (folder / "metrics.csv").open() as file:
                assert [row["round"] for row in csv.DictReader(file)] == ["0", "1", "2"]
            with (folder / "edges.csv").open() as file:
                edges = [(row["round"], row["from"], row["to"]) for row in csv.DictReader(file)]
            received = [edge for edge in edges if edge[2] == command.name]
            assert len(received) == len(set(received)) == 3 * 2
            with (folder / "partition.csv").open() as file:
                assert len(list(csv.DictReader(file))) == 10
            assert Path(summary["model"]).stat().st_size > 400_000
            recipes.add((folder / "recipe.toml").read_text())
        assert len(recipes) == 1


@pytest.mark.fault(6)
def test_one_address_is_enough_where_multicast_is_blocked(live: Live) -> None:
    with lan(3) as hosts:
        for host in hosts:
            host.multicast("off")
        a = peer(live, hosts[0], 0)
        live.all_have([a], "Listening")
        alone = peer(live, hosts[2], 2, wait_s=2.0)
        b = peer(live, hosts[1], 1, peers=(a.address,))
        live.all_have([alone], "Failed")  # the fault: without an address it finds nobody
        assert alone.of("Failed")[0]["text"].startswith("no peer was found within 2 s")
        assert alone.code() == 0
        live.all_have([a, b], "PeerJoined")
        c = peer(live, hosts[2], 2, peers=(b.address,))  # of `a` it learns from `b`
        trained_together(live, [a, b, c])
        for one in (a, b, c):
            assert {joined["other"] for joined in one.of("PeerJoined")} == {a.id, b.id, c.id} - {one.id}
        assert not a.has("PeerJoined", other=alone.id)


@pytest.mark.fault(7)
def test_host_started_with_its_network_down_warns_and_takes_part_once_up(live: Live) -> None:
    with lan(2) as (here, there):
        there.link("down")
        a, b = (peer(live, host, seat, min_peers=2) for seat, host in enumerate((here, there)))
        live.all_have([a, b], "Listening")
        live.all_have([b], "Warned")
        assert "no network interface is up" in b.of("Warned")[0]["text"]
        assert not a.has("PeerJoined")  # the fault: they are apart
        there.link("up")
        live.all_have([a, b], "Started", UP_WITHIN_S)
        trained_together(live, [a, b])
        assert len(b.of("Warned")) == 1


@pytest.mark.fault(1)
def test_host_whose_peer_is_killed_is_dropped_within_a_second(live: Live) -> None:
    with lan(3) as hosts:
        a, b = (peer(live, host, seat) for seat, host in enumerate(hosts[:2]))
        c = peer(live, hosts[2], 2, step_s=0.25)  # a second to kill it in
        live.all_have([c], "StateChanged", state="training", round=3)
        killed = c.signal(signal.SIGKILL)
        live.all_have([a, b], "Result")
        assert c.code() == -signal.SIGKILL
        for one in (a, b):
            assert one.code() == 0
            assert one.rounds() == list(range(WORK["rounds"]))
            (gone,) = one.of("PeerGone")
            assert (gone["other"], gone["reason"]) == (c.id, "dead")
            assert 0.0 < gone["at"] - killed < DROPPED_WITHIN_S
            assert one.of("ViewTaken")[-1]["members"] == ["a", "b"]
            assert sum(one.of("Result")[0]["failures"].values()) == len(one.of("ShareRejected", other=c.id)) > 0
