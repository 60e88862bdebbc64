"""The files of a run: written as it goes, read back, and never a reason for the run to end."""

import csv
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import torch
from torch import nn

import p2pfl
from p2pfl.cli import app
from p2pfl.errors import DataError, RecipeError
from p2pfl.events import (
    Finished,
    Listening,
    Refusal,
    RoundFinished,
    RunEvent,
    ShareReceived,
    ShareRejected,
    ShareSent,
    Started,
    Warned,
)
from p2pfl.home import create_network
from p2pfl.layout import layout_of
from p2pfl.local import LocalNetwork
from p2pfl.model_files import ModelFacts, save_model
from p2pfl.recipe import recipe_of
from p2pfl.sinks import METRICS, RunFiles, tee

COLUMNS = (
    "round,step,peer,steps,wall_time_s,simulated_time_s,train_loss,test_loss,test_accuracy,consensus_distance,"
    "neighbor_distance,neighbors,bytes_sent,bytes_received,train_s,wait_s,mix_s"
)


def listening(peer: str, name: str) -> Listening:
    return Listening(peer=peer, name=name, seat=name, addresses=("127.0.0.1:7470",))


def finished(peer: str, round: int, **more: object) -> RoundFinished:
    return msgspec.structs.replace(
        RoundFinished(peer=peer, round=round, steps=10, neighbors=2, missing=0, bytes_sent=100, bytes_received=90),
        **more,
    )


STARTED = Started(peer="a", settings={"topology": "ring", "rounds": 2, "lr": 0.5}, round=0, members=("alice", "bob"))
EVENTS: tuple[RunEvent, ...] = (
    listening("a", "alice"),
    listening("b", "bob"),
    STARTED,
    ShareSent(peer="a", round=0, other="b", bytes=50),
    ShareReceived(peer="b", round=0, other="a", bytes=50),
    ShareRejected(peer="b", round=0, other="c", reason="late"),
    finished("a", 0, test_accuracy=0.5, metrics={"mae": 1.25}),
    finished("b", 0, train_loss=0.123456789, metrics={"mae": 2.5}),
    finished("a", 1, metrics={"mae": 1.0}),
    Finished(peer="a", round=1, reason="rounds"),
)


def written(folder: Path, *events: RunEvent) -> RunFiles:
    """The files after these events; a warning fails the test."""
    files = RunFiles(folder, pytest.fail)
    files.open()
    for event in events:
        files(event)
    files.close()
    return files


@contextmanager
def limited_to(size: int) -> Iterator[None]:
    """No file of this process may grow beyond so many bytes: a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


# Written


def test_metrics_have_the_columns_of_the_design_and_the_learners_own_behind(tmp_path: Path) -> None:
    written(tmp_path, *EVENTS)
    assert ",".join(METRICS) == COLUMNS
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines == [
        f"{COLUMNS},mae",
        "0,10,alice,10,0,,,,0.5,,,2,100,90,0,0,0,1.25",
        "0,10,bob,10,0,,0.123457,,,,,2,100,90,0,0,0,2.5",
        "1,20,alice,10,0,,,,,,,2,100,90,0,0,0,1",
    ]


def test_a_share_that_both_ends_tell_of_is_one_edge(tmp_path: Path) -> None:
    written(tmp_path, *EVENTS)
    assert (tmp_path / "edges.csv").read_text() == "round,from,to,bytes\n0,alice,bob,50\n"


def test_events_and_recipe_read_back(tmp_path: Path) -> None:
    written(tmp_path, *EVENTS)
    run = p2pfl.load_run(tmp_path)
    assert run.events == EVENTS
    assert run.recipe.network == recipe_of(STARTED.settings)
    assert run.recipe.lr == 0.5


def test_figures_are_summed_up(tmp_path: Path) -> None:
    files = written(tmp_path, *EVENTS)
    assert files.failures == {"late": 1}
    assert (files.bytes_sent, files.bytes_received) == (300, 270)
    assert files.last["a"].round == 1


def test_what_is_sent_after_a_peers_last_round_counts(tmp_path: Path) -> None:
    files = written(tmp_path, *EVENTS, ShareSent(peer="a", round=1, other="b", bytes=50))
    assert files.bytes_sent == 350


def test_partition_and_summary_read_back(tmp_path: Path) -> None:
    files = written(tmp_path, *EVENTS)
    files.write_partition([("alice", "cat", 3), ("alice", "dog, wet", 0)])
    files.write_summary({"peers": 2, "accuracy": None})
    run = p2pfl.load_run(tmp_path)
    assert run.partition.to_dict("records") == [
        {"peer": "alice", "label": "cat", "count": 3},
        {"peer": "alice", "label": "dog, wet", "count": 0},
    ]
    assert run.summary == {"peers": 2, "accuracy": None}


def test_names_that_stand_twice_are_told_apart(tmp_path: Path) -> None:
    twins = (
        listening("aaaaa", "alice"),
        listening("bbbbb", "alice"),
        STARTED,
        finished("aaaaa", 0),
        finished("bbbbb", 0),
    )
    written(tmp_path, *twins)
    assert list(p2pfl.load_run(tmp_path).metrics["peer"]) == ["alice-aaaa", "alice-bbbb"]


def test_a_second_part_of_a_run_goes_on_in_the_same_files(tmp_path: Path) -> None:
    written(tmp_path, *EVENTS)
    written(tmp_path, listening("a", "alice"), finished("a", 2, metrics={"mae": 1.0}))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        assert [(row["round"], row["peer"]) for row in csv.DictReader(file)][-1] == ("2", "alice")
    assert len(p2pfl.load_run(tmp_path).events) == len(EVENTS) + 2


def test_a_run_that_never_began_leaves_no_files(tmp_path: Path) -> None:
    written(tmp_path, listening("a", "alice"), Warned(peer="a", text="nobody here"))
    assert list(tmp_path.iterdir()) == []


def test_a_flood_of_refusals_is_few_lines_with_their_counts(tmp_path: Path) -> None:
    flood = (Refusal(peer="a", what="connection", reason="no TLS", remote=f"10.0.0.9:{n}") for n in range(1000))
    written(tmp_path, STARTED, *flood)
    events = p2pfl.load_run(tmp_path).events
    assert [event.times for event in events if isinstance(event, Refusal)] == [1, 10, 100, 1000]


def test_a_resumed_run_that_never_begins_keeps_its_files(tmp_path: Path) -> None:
    written(tmp_path, *EVENTS)
    written(tmp_path, listening("a", "alice"))
    assert len(p2pfl.load_run(tmp_path).events) == len(EVENTS) + 1


def test_tee_hands_each_event_to_all() -> None:
    seen: list[tuple[str, RunEvent]] = []
    tee(lambda event: seen.append(("one", event)), lambda event: seen.append(("two", event)))(STARTED)
    assert seen == [("one", STARTED), ("two", STARTED)]


# Read


def test_a_peer_may_have_any_name(tmp_path: Path) -> None:
    names = ["7", "nan", "None", "a,b", 'the "one"', "ünï"]
    events: list[RunEvent] = [STARTED]
    for number, name in enumerate(names):
        events += [listening(str(number), name), finished(str(number), 0)]
    written(tmp_path, *events)
    metrics = p2pfl.load_run(tmp_path).metrics
    assert list(metrics["peer"]) == names
    assert metrics["train_loss"].isna().all()


def test_a_folder_without_a_run_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no run: it has no events\.jsonl"):
        p2pfl.load_run(tmp_path)


def test_a_missing_part_is_told(tmp_path: Path) -> None:
    written(tmp_path, *EVENTS)
    with pytest.raises(DataError, match=r"has no summary.json: No such file"):
        p2pfl.load_run(tmp_path).summary  # noqa: B018


@pytest.mark.parametrize("part", ["summary", "recipe", "metrics", "events"])
def test_a_damaged_part_is_told_by_name(tmp_path: Path, part: str) -> None:
    files = written(tmp_path, *EVENTS)
    files.write_summary({})
    suffix = {"summary": ".json", "recipe": ".toml", "metrics": ".csv", "events": ".jsonl"}[part]
    (tmp_path / f"{part}{suffix}").write_text("" if part == "metrics" else "{[\n")
    with pytest.raises(DataError, match=f"{part}{suffix} is (empty or )?damaged"):
        getattr(p2pfl.load_run(tmp_path), part)


def test_a_recipe_of_another_version_is_told(tmp_path: Path) -> None:
    written(tmp_path, *EVENTS)
    (tmp_path / "recipe.toml").write_text("invented_later = 1\n")
    with pytest.raises(RecipeError, match="invented_later"):
        p2pfl.load_run(tmp_path).recipe  # noqa: B018


def test_the_line_in_which_a_run_was_killed_is_left_out(tmp_path: Path) -> None:
    written(tmp_path, *EVENTS)
    file = tmp_path / "events.jsonl"
    file.write_bytes(file.read_bytes()[:-10])
    assert p2pfl.load_run(tmp_path).events == EVENTS[:-1]


def test_the_models_of_a_run_are_found_by_name(tmp_path: Path) -> None:
    written(tmp_path, *EVENTS)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    vector = torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])
    facts = ModelFacts(model="logistic", input_shape=(3,), outputs=2)
    save_model(tmp_path / "models" / "bob.safetensors", vector, layout_of(model), facts)
    run = p2pfl.load_run(tmp_path)
    assert run.peers == ("bob",)
    assert torch.equal(run.model("bob")(torch.ones(1, 3)), model(torch.ones(1, 3)))


# A disk that fails


def full_disk(folder: Path, size: int) -> tuple[RunFiles, list[str]]:
    """A long run on a disk that is full after so many bytes a file."""
    told: list[str] = []
    files = RunFiles(folder, told.append)
    with limited_to(size):
        files.open()
        for event in EVENTS[:3]:
            files(event)
        for round in range(400):
            files(finished("a", round))
        files.close()
    return files, told


@pytest.mark.parametrize("size", [0, 100, 5000, 9000])
def test_a_full_disk_costs_the_files_and_is_told_once(tmp_path: Path, size: int) -> None:
    files, told = full_disk(tmp_path, size)
    assert len(told) == 1
    assert "end here" in told[0]
    assert "File too large" in told[0]
    assert "the run goes on" in told[0]
    assert files.bytes_sent == 400 * 100
    assert files.last["a"].round == 399


def test_a_disk_with_room_enough_is_not_told(tmp_path: Path) -> None:
    assert full_disk(tmp_path, 1 << 20)[1] == []


def test_a_folder_that_cannot_be_written_to_is_an_os_error_and_the_events_still_count(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").mkdir()
    files = RunFiles(tmp_path, pytest.fail)
    with pytest.raises(OSError, match=r"metrics\.csv"):
        files.open()
    for event in EVENTS:
        files(event)
    files.close()
    assert files.bytes_sent == 300


def test_a_network_goes_on_when_its_disk_is_full(tmp_path: Path) -> None:
    warnings: list[str] = []
    rounds = 5

    def sink(event: RunEvent) -> None:
        if isinstance(event, Warned):
            warnings.append(event.text)
        elif isinstance(event, Started) and not full:  # before, a peer that cannot keep its identity does not start
            full.append(disk.enter_context(limited_to(60)))

    full: list[None] = []
    network = LocalNetwork(topology="ring", steps=1, sinks=(sink,))
    with ExitStack() as disk:
        for name in ("alice", "bob"):
            examples = (torch.ones(4, 2), torch.zeros(4, dtype=torch.int64))
            network.add(name, nn.Linear(2, 2), examples, examples, out=tmp_path, device="cpu")
        results = network.run(rounds)
    assert [len(result.history) for result in results.values()] == [rounds, rounds]
    assert any("the checkpoint of round" in text and "training goes on" in text for text in warnings)
    assert sum("the model was not saved" in text for text in warnings) == 2
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []  # no torn file


@pytest.mark.skipif(sys.platform != "linux", reason="nothing can be written to /proc")
def test_demo_and_start_go_on_where_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--rounds", "1", "--steps", "1", "--out", "/proc/1")
    create_network("home")
    monkeypatch.setenv("COLUMNS", "400")
    for command in (
        ("demo", "--peers", "2", "--no-baselines", *small),
        ("start", "--min-peers", "1", "--interface", "127.0.0.1", "--device", "cpu", *small),
    ):
        monkeypatch.setattr(sys, "argv", ["p2pfl", *command])
        with suppress(SystemExit):
            app.main()
        out, err = capsys.readouterr()
        assert err == ""
        assert "the run goes on" in out
        assert "the model was not saved" in out
        assert "accuracy" in out
