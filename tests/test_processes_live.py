"""Peers as processes on loopback: killed, late, slow, behind, resumed, refused, and stopped."""

import csv
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest
from live import HEAVY, LOOPBACK, PATIENCE_S, SLACK, Live, Running

from p2pfl.recipe import recipe_of

DROPPED_WITHIN_S = 1.0 * SLACK
GONE_WITHIN_S = 2.0 * SLACK


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    with Live(tmp_path) as live:
        yield live


def peers(live: Live, names: str, **settings: Any) -> list[Running]:
    """One peer for each letter, in seats from 0, that begin when all are there."""
    shared = {"min_peers": len(names), "goal": (1.0 + len(names)) / 2, **settings}
    return [live.peer(name, seat=str(i), target=1.0 + i, **shared) for i, name in enumerate(names)]


def settled(processes: list[Running]) -> None:
    """Each ends by itself, and well."""
    for process in processes:
        assert process.code() == 0, process.told()


def logged(folder: Path, event: str) -> list[dict[str, Any]]:
    """The events of a kind in a run's folder."""
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [one for one in map(json.loads, lines) if one["event"] == event]


def only_complaint(process: Running) -> str:
    """The single line on standard error of a command that ended with status 2."""
    assert process.code() == 2, process.told()
    (line,) = process.err
    assert line.startswith("p2pfl: ")
    return line


# Killed, late, slow, behind, resumed


def test_peer_killed_in_mid_round_holds_nobody_up_and_the_ring_closes(live: Live) -> None:
    """Fault 1."""
    # The deadline is far off: it is not what ends the wait for the dead one, nor for the slow one before.
    work: dict[str, Any] = {"min_peers": 4, "rounds": 12, "steps": 4, "min_deadline_s": 20.0, "goal": 2.5}
    others = [
        live.peer(name, seat=seat, target=1.0 + int(seat), step_s=0.05, **work)
        for name, seat in (("a", "0"), ("b", "1"), ("d", "3"))
    ]
    _, *neighbors = others
    c = live.peer("c", seat="2", target=3.0, step_s=0.25, **work)  # a second to kill it in
    live.all_have([c], "StateChanged", state="training", round=3)
    killed = c.signal(signal.SIGKILL)
    live.all_have(others, "Result")
    settled(others)
    assert c.code() == -signal.SIGKILL
    assert c.rounds() == [0, 1, 2]

    for other in others:
        assert other.rounds() == list(range(12))
        times = [one["wall_time_s"] for one in other.of("RoundFinished")]
        assert max(times) <= median(times) + 3.0 * SLACK
        (gone,) = other.of("PeerGone", other=c.id)
        assert gone["reason"] == "dead"
        assert 0.0 < gone["at"] - killed < DROPPED_WITHIN_S
        first, second = other.of("ViewTaken")
        assert (first["members"], second["members"]) == (["a", "b", "c", "d"], ["a", "b", "d"])
        closed = [one for one in other.of("RoundFinished") if one["round"] >= second["round"]]
        assert {(one["neighbors"], one["missing"]) for one in closed} == {(2, 0)}
        assert closed[-1]["round"] == 11
    assert len({other.of("ViewTaken")[1]["round"] for other in others}) == 1
    for neighbor in neighbors:
        missed = [one["round"] for one in neighbor.of("RoundFinished") if one["missing"]]
        assert missed == [one["round"] for one in neighbor.of("ShareRejected", other=c.id)] != []
        assert sum(neighbor.of("Result")[0]["failures"].values()) == len(neighbor.of("ShareRejected"))


def test_late_peer_ends_with_the_network_and_as_good_as_the_others(live: Live) -> None:
    # On a ring, parts as uneven as these differ by more than the limit also without anybody late.
    work = ["--topology", "complete", "--rounds", "15", "--alpha", "0.3", "--min-peers", "3", "--epochs", "2"]
    others = [live.start(name, "--part", f"{i}/4", *work) for i, name in enumerate("abc", 1)]
    live.until("round 5 begins", lambda: others[0].said("round 4/15"), 3 * PATIENCE_S)
    late = live.start("d", "--part", "4/4")
    settled([*others, late])
    (started,) = logged(live.folder / "d", "Started")
    assert 5 <= started["round"] <= 13
    assert started["members"] == ["a", "b", "c", "d"]
    rounds = {name: [one["round"] for one in logged(live.folder / name, "RoundFinished")] for name in "abcd"}
    assert rounds["a"] == rounds["b"] == rounds["c"] == list(range(15))
    assert rounds["d"] == list(range(started["round"], 15))
    summaries = {name: json.loads((live.folder / name / "summary.json").read_text()) for name in "abcd"}
    accuracy = {name: summary["accuracy"]["mean"] for name, summary in summaries.items()}
    assert abs(accuracy["d"] - mean(accuracy[name] for name in "abc")) <= 0.02
    assert accuracy["d"] > 0.8


@pytest.mark.fault(45)
def test_ten_times_slower_peer_costs_the_others_no_pace_and_still_counts(live: Live) -> None:
    work: dict[str, Any] = {"rounds": 16, "steps": 20, "step_s": 0.02, "min_deadline_s": 0.5}
    even = peers(live, "efgh", network=f"{live.network}-even", **work)
    a, b, d = (live.peer(name, seat=str(i), target=1.0 + i, min_peers=4, **work) for i, name in enumerate("abd"))
    slow = live.peer("slow", seat="3", target=4.0, min_peers=4, **{**work, "step_s": 0.2})
    live.all_have([*even, a, b, d, slow], "Result", 2 * PATIENCE_S)
    settled([*even, a, b, d, slow])

    def steady_s(processes: list[Running]) -> float:
        finished = [one for process in processes for one in process.of("RoundFinished")]
        return median(one["wall_time_s"] for one in finished if one["round"] >= 8)

    assert max(one["train_s"] for one in slow.of("RoundFinished")) > 8 * 20 * 0.02  # it is slow
    assert steady_s([a, b, d]) <= steady_s(even) / 0.9
    steady = [one for one in slow.of("RoundFinished") if one["round"] >= 8]
    assert steady
    assert all(one["reduced"] and 1 <= one["steps"] < 20 for one in steady)
    for neighbor in (a, d):
        counted = [one for one in neighbor.of("ShareReceived", other=slow.id) if one["round"] >= 8]
        assert len(counted) >= 6


@pytest.mark.fault(46)
def test_peer_fifty_rounds_behind_catches_up_from_a_snapshot_and_resets_nobody(live: Live) -> None:
    work: dict[str, Any] = {"rounds": 150, "steps": 1, "step_s": 0.03, "out": str(live.folder)}
    *others, old = peers(live, "abcd", **work)
    live.until("round 5 at d", lambda: 5 in old.rounds())
    old.signal(signal.SIGTERM)
    assert old.code() == 0
    behind = old.of("Finished")[0]["round"]
    live.until("50 rounds more", lambda: max(others[0].rounds()) >= behind + 50)
    back = live.peer("d", seat="3", target=4.0, resume=True, **work)
    live.all_have([*others, back], "Result")
    settled([*others, back])

    assert back.id == old.id
    assert back.has("StateChanged", state="joining")
    (started,) = back.of("Started")
    assert started["round"] >= behind + 50
    assert back.rounds() == list(range(started["round"], 150))
    for other in others:
        assert other.rounds() == list(range(150))
        losses = [one["test_loss"] for one in other.of("RoundFinished")]
        assert max(losses[behind + 40 :]) < 0.25 * losses[0]  # nobody brought a model of the first rounds back
        assert [one["members"] for one in other.of("ViewTaken")] == [list("abcd"), list("abc"), list("abcd")]
        assert back.of("Result")[0]["round"] == other.of("Result")[0]["round"] == 150


@pytest.mark.parametrize("first_to_stop", ["abc", "a", "c"])
def test_whole_network_stopped_and_resumed_goes_on_where_it_was(live: Live, first_to_stop: str) -> None:
    """Whoever stopped first has an older checkpoint, and begins with a snapshot of the others'."""
    work: dict[str, Any] = {"rounds": 24, "steps": 2, "step_s": 0.05, "out": str(live.folder)}
    before = peers(live, "abc", **work)
    live.until("round 4", lambda: all(4 in peer.rounds() for peer in before))
    early = [peer for peer in before if peer.name in first_to_stop]
    rest = [peer for peer in before if peer not in early]
    for peer in early:
        peer.signal(signal.SIGTERM)
    live.until("the others go on", lambda: all(6 in peer.rounds() for peer in rest))
    for peer in rest:
        peer.signal(signal.SIGTERM)
    settled(before)
    reached = max(peer.of("Finished")[0]["round"] for peer in before)
    assert 5 <= reached < 22

    after = peers(live, "abc", resume=True, **work)
    live.all_have(after, "Result")
    settled(after)
    for old, new in zip(before, after, strict=True):
        assert new.id == old.id
        assert new.of("Listening")[0]["seat"] == old.of("Listening")[0]["seat"]
        (started,) = new.of("Started")
        assert reached - 1 <= started["round"] <= reached + 2
        assert started["at"] - new.of("Listening")[0]["at"] < 5.0 * SLACK
        assert new.rounds() == list(range(started["round"], 24))
        assert new.of("RoundFinished")[0]["test_loss"] < old.of("RoundFinished")[0]["test_loss"]


@pytest.mark.parametrize("topology", ["one-peer-exponential", "random-matching"])
def test_schedule_survives_a_kill_in_mid_round(live: Live, topology: str) -> None:
    """Fault 1, where neighbors change every round."""
    schedule = recipe_of({"topology": topology, "seed": 2}).schedule(4)
    work: dict[str, Any] = {"rounds": 24, "steps": 2, "step_s": 0.05, "min_deadline_s": 20.0, "seed": 2}
    a, b, c, d = processes = peers(live, "abcd", topology=topology, **work)
    live.until("round 6", lambda: all(6 in peer.rounds() for peer in processes))
    c.signal(signal.SIGKILL)
    others = [a, b, d]
    live.all_have(others, "Result")
    settled(others)
    for position, other in ((0, a), (1, b), (3, d)):
        assert other.rounds() == list(range(24))
        first, second = other.of("ViewTaken")
        assert first["topology"].startswith(topology)  # with its seed, where it draws
        assert second["topology"] == first["topology"]
        assert (first["members"], second["members"]) == (["a", "b", "c", "d"], ["a", "b", "d"])
        for one in other.of("RoundFinished")[:6]:
            assert (one["neighbors"], one["missing"]) == (len(schedule.at(one["round"]).sources(position)), 0)
        assert all(one["missing"] == 0 for one in other.of("RoundFinished") if one["round"] >= second["round"])
    assert len({other.of("ViewTaken")[1]["round"] for other in others}) == 1


def test_model_bytes_follow_from_rounds_and_edges_and_control_is_small(live: Live) -> None:
    work: dict[str, Any] = {"rounds": 10, "steps": 1, "step_s": 0.05, "ballast": 250_000, "min_deadline_s": 20.0}
    ring = peers(live, "abcd", network=f"{live.network}-ring", **work)
    complete = peers(live, "efgh", network=f"{live.network}-complete", topology="complete", **work)
    live.all_have([*ring, *complete], "Result")
    settled([*ring, *complete])

    def total(processes: list[Running], figure: str) -> int:
        return sum(one[figure] for process in processes for one in process.of("RoundFinished"))

    framed = ring[0].of("ShareReceived")[0]["bytes"]
    assert 1_000_004 < framed < 1_000_400
    for processes, edges in ((ring, 8), (complete, 12)):
        assert [one for process in processes for one in process.of("ShareRejected")] == []
        received = total(processes, "bytes_received")
        assert received == pytest.approx(10 * edges * framed, rel=0.02)
        assert total(processes, "bytes_sent") <= received
        control = total(processes, "control_bytes_received")
        assert 0 < control < 0.01 * received
        shares = [one["bytes"] for process in processes for one in process.of("ShareReceived")]
        assert sum(shares) == received
    assert 12 * total(ring, "bytes_received") == pytest.approx(8 * total(complete, "bytes_received"), rel=0.02)


# Refused, told apart, warned


def test_second_process_with_the_same_part_is_refused_and_told_which(live: Live) -> None:
    first = live.start("alice", "--part", "1/2")
    live.until("alice waits", lambda: first.said("alice waits in network"))
    second = live.start("bob", "--part", "1/2")
    assert only_complaint(second) == "p2pfl: part 1 is taken by alice already; choose another --part"
    first.signal(signal.SIGTERM)
    assert first.code() == 0


def test_two_peers_of_one_name_are_told_apart_by_a_suffix(live: Live) -> None:
    work = ["--name", "alice", "--rounds", "1", "--steps", "1", "--json"]
    both = [live.start(f"{i}", "--part", f"{i}/2", *work) for i in (1, 2)]
    settled(both)
    for process in both:
        names = json.loads("\n".join(process.out))["members"]
        assert len(set(names)) == 2
        assert [name.partition("-")[0] for name in names] == ["alice", "alice"]
        assert all(len(name) == len("alice-") + 4 for name in names)
    for number in (1, 2):
        with (live.folder / str(number) / "edges.csv").open() as file:
            assert all(row["from"] != row["to"] for row in csv.DictReader(file))


def test_two_peers_with_the_same_data_are_warned(live: Live) -> None:
    both = [live.start(name, "--rounds", "1", "--steps", "1") for name in ("alice", "bob")]
    settled(both)
    warning = "trains on the same data as this peer; give each its own with --part I/N or --data"
    for process, other in zip(both, ("bob", "alice"), strict=True):
        (line,) = [line for line in process.out if "same data" in line]
        assert line == f"{process.name}: {other} {warning}"


@pytest.mark.parametrize(("first", "second"), [("1/2", "2/2"), ("2/2", "1/2")])
def test_conflicting_flag_ends_one_of_the_two_with_both_values(live: Live, first: str, second: str) -> None:
    """In the lobby it is the higher seat that yields, whoever came first."""
    work = ["--min-peers", "2", "--rounds", "3", "--steps", "1"]
    one = live.start("one", "--part", first, "--topology", "ring", *work)
    live.until("it waits", lambda: one.said("one waits in network"))
    two = live.start("two", "--part", second, "--topology", "complete", *work)
    stays, yields = (one, two) if first == "1/2" else (two, one)
    mine, theirs = ("complete", "ring") if yields is two else ("ring", "complete")
    text = only_complaint(yields)
    assert f"{stays.name} asked for topology={theirs}, you asked for topology={mine}" in text
    assert "leave out --topology" in text
    stays.signal(signal.SIGTERM)
    assert stays.code() == 0


def test_second_machine_without_flags_adopts_what_the_first_was_told(live: Live) -> None:
    work = ["--rounds", "2", "--steps", "3", "--lr", "0.05", "--topology", "complete", "--model", "logistic"]
    first = live.start("first", "--part", "2/2", *work)
    live.until("it waits", lambda: first.said("first waits in network"))
    second = live.start("second", "--part", "1/2")
    settled([first, second])
    assert (live.folder / "first" / "recipe.toml").read_text() == (live.folder / "second" / "recipe.toml").read_text()
    (started,) = logged(live.folder / "second", "Started")
    asked = {
        "topology": "complete",
        "rounds": 2,
        "steps": 3,
        "lr": 0.05,
        "model": "logistic",
    }
    assert asked.items() <= started["settings"].items()  # and the defaults that stand beside them


def test_conflict_with_a_run_under_way_names_both_values(live: Live) -> None:
    work = ["--data", "live:row_one", "--model", "live:quick", "--steps", "10", "--min-peers", "1", "--rounds", "0"]
    first = live.start("first", *work, "--topology", "ring")
    live.until("it trains", lambda: first.said("round 2"))
    second = live.start("second", "--data", "live:row_two", "--model", "live:quick", "--topology", "complete")
    text = only_complaint(second)
    assert f"network '{live.network}' runs with topology=ring, you asked for topology=complete" in text
    first.signal(signal.SIGTERM)
    assert first.code() == 0


def test_nobody_found_in_time_is_one_line_and_status_2(live: Live) -> None:
    text = only_complaint(live.start("alone", "--wait", "0.5"))
    mend = "start p2pfl on another machine, or give --peer HOST:PORT; p2pfl doctor says what may be in the way"
    assert text == f"p2pfl: no peer was found within 0.5 s; {mend}"


def test_port_in_use_is_one_line_and_status_2(live: Live) -> None:
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = only_complaint(live.start("alone", "--port", str(port)))
    assert text == f"p2pfl: port {port} is in use; choose another --port, or leave it out"


# Stopped


@pytest.mark.fault(19)
def test_stop_in_the_middle_of_an_upload_is_quick_and_counts_as_left(live: Live) -> None:
    work = ["--data", "live:row_one", "--model", "live:heavy", "--steps", "1", "--rounds", "0", "--part", "1/2"]
    sender = live.start("sender", *work)
    reader = live.peer("reader", seat="1", target=2.0, ballast=HEAVY, slow_reader=True)
    live.all_have([reader], "Reading")
    stopped = sender.signal(signal.SIGTERM)
    assert sender.code(GONE_WITHIN_S) == 0
    live.all_have([reader], "PeerGone")
    (gone,) = reader.of("PeerGone")
    assert gone["reason"] == "left"
    assert gone["at"] - stopped < GONE_WITHIN_S
    assert not logged(live.folder / "sender", "ShareSent")  # the fault: it was in the middle
    model = live.folder / "sender" / "models" / "sender.safetensors"
    assert model.stat().st_size > 4 * HEAVY
    reader.signal(signal.SIGTERM)
    assert reader.code() == 0
    assert not reader.has("ShareReceived")


def test_second_stop_quits_at_once(live: Live) -> None:
    both = [
        live.start(name, "--data", f"live:row_{name}", "--model", "live:endless", "--steps", "2")
        for name in ("one", "two")
    ]
    one, two = both
    live.until("both train", lambda: all(process.said("round 1 begins") for process in both))
    one.signal(signal.SIGTERM)
    live.until("goodbye", lambda: one.said("leaving:") and two.said("one has left"), GONE_WITHIN_S)
    assert not one.ended  # the step under way goes on
    one.signal(signal.SIGTERM)
    assert one.code(1.0 * SLACK) == 130


def test_interrupt_while_waiting_ends_well(live: Live) -> None:
    waiting = live.start("alone", "--data", "live:row_one", "--model", "live:quick", "--min-peers", "3", fork=False)
    other = live.peer("other", seat="other", target=2.0)
    live.until("they met", lambda: other.has("PeerJoined") and waiting.said("found other"))
    waiting.signal(signal.SIGINT)
    assert waiting.code(GONE_WITHIN_S) == 0
    live.all_have([other], "PeerGone", reason="left")
    assert (live.folder / "alone" / "models" / "alone.safetensors").exists()
    assert not waiting.err


def test_interrupt_while_training_saves_the_model_and_says_goodbye(live: Live) -> None:
    model = ["--model", "live:quick", "--steps", "10", "--rounds", "0"]
    one, two = (live.start(name, "--data", f"live:row_{name}", *model) for name in ("one", "two"))
    live.until("three rounds", lambda: one.said("round 3  ") and two.said("round 3  "))
    one.signal(signal.SIGINT)
    assert one.code(GONE_WITHIN_S) == 0
    live.until("goodbye", lambda: two.said("one has left"))
    summary = json.loads((live.folder / "one" / "summary.json").read_text())
    assert summary["rounds"] >= 3
    assert Path(summary["model"]).stat().st_size > 0
    assert logged(live.folder / "one", "Finished")[0]["reason"] == "stopped"
    two.signal(signal.SIGINT)
    assert two.code(GONE_WITHIN_S) == 0
    for process in (one, two):
        assert not process.err
