"""What is kept of a simulation: rows as live peers write them, quick, and never a reason for the run to end."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
import torch

from p2pfl.analysis.runs import Run, load_run
from p2pfl.errors import DataError, RecipeError, UsageError
from p2pfl.events import Finished, RoundFinished, Started, Warned
from p2pfl.layout import layout_of
from p2pfl.recipe import Recipe, run_recipe_of
from p2pfl.simulation import checkpoints
from p2pfl.simulation.engine import RoundReport
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.record import Moment, Record
from p2pfl.simulation.resolve import resolve
from p2pfl.simulation.rows import edge_tails, metrics_text, with_round
from p2pfl.sinks import METRICS

N = 3
NOTHING = np.full(N, np.nan)
ARCS = np.array([[0, 1], [1, 0], [1, 2]])


def problem(**settings: Any) -> Problem:
    return resolve(run_recipe_of({"peers": N, "model": "logistic", "samples": 5, "topology": "chain", **settings}))


def report(round: int, **more: Any) -> RoundReport:
    facts: dict[str, Any] = {
        "present": np.ones(N, dtype=bool),
        "steps": np.array([2, 2, 3]),
        "train_loss": np.array([1.5, 0.25, np.nan]),
        "neighbors": np.array([1, 2, 1]),
        "neighbor_distance": NOTHING,
        "arcs": ARCS,
        "share_bytes": 100,
        "bytes_sent": np.array([100, 200, 0]),
        "bytes_received": np.array([100, 100, 100]),
        "consensus_distance": 0.25,
        "norm": 2.0,
        "wall_s": 0.5,
        "train_s": np.full(N, 0.125),
        "wait_s": NOTHING,
        "mix_s": NOTHING,
        "simulated_time_s": np.array([1.0, 1.5, 2.0]) + round,
        "evaluated": True,
        "test_loss": np.array([1.0, 2.0, 3.0]),
        "test_accuracy": np.array([0.5, 0.25, 0.75]),
        "mean_accuracy": 0.8,
        "mean_loss": 0.4,
    }
    return RoundReport(round=round, **{**facts, **more})


def recorded(folder: Path | None, *reports: RoundReport, **settings: Any) -> Record:
    resolved = problem(**settings)
    record = Record(resolved, layout_of(resolved.build()), folder=folder)
    record.open()
    for one in reports:
        record.report(one)
    record.close("rounds")
    return record


def test_metrics_have_a_row_a_peer_and_round_with_the_columns_of_live_runs(tmp_path: Path) -> None:
    recorded(tmp_path, report(0), report(1))
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == ",".join(METRICS)
    assert lines[1] == "0,2,0,2,0.5,1,1.5,1,0.5,0.25,,1,100,100,0.125,,"
    assert lines[3] == "0,3,2,3,0.5,2,,3,0.75,0.25,,1,0,100,0.125,,"
    assert lines[6] == "1,6,2,3,0.5,3,,3,0.75,0.25,,1,0,100,0.125,,"
    assert len(lines) == 7


def test_rounds_have_a_row_a_round(tmp_path: Path) -> None:
    recorded(tmp_path, report(0), report(1, evaluated=False))
    rounds = pd.read_csv(tmp_path / "rounds.csv")
    first, second = rounds.to_dict("records")
    assert first["steps"] == 7
    assert (first["test_accuracy"], first["worst_accuracy"], first["mean_model_accuracy"]) == (0.5, 0.25, 0.8)
    assert (first["train_loss"], first["consensus_distance"], first["relative_distance"]) == (0.875, 0.25, 0.25)
    assert (first["bytes_sent"], first["simulated_time_s"]) == (300, 2.0)
    assert np.isnan(second["test_accuracy"])


def test_edges_have_a_row_a_share_in_every_round(tmp_path: Path) -> None:
    recorded(tmp_path, report(0), report(1), report(2, arcs=np.array([[2, 0]]), share_bytes=7))
    assert (tmp_path / "edges.csv").read_text() == (
        "round,from,to,bytes\n0,0,1,100\n0,1,0,100\n0,1,2,100\n1,0,1,100\n1,1,0,100\n1,1,2,100\n2,2,0,7\n"
    )


def test_a_round_without_shares_leaves_edges_alone(tmp_path: Path) -> None:
    recorded(tmp_path, report(0, arcs=np.empty((0, 2), dtype=np.int64)))
    assert (tmp_path / "edges.csv").read_text() == "round,from,to,bytes\n"


def test_who_was_not_there_has_no_row_and_counts_nowhere(tmp_path: Path) -> None:
    record = recorded(tmp_path, report(0, present=np.array([True, False, True])), report(1))
    peers = load_run(tmp_path).metrics.groupby("round")["peer"].apply(list).to_dict()
    assert peers == {0: ["0", "2"], 1: ["0", "1", "2"]}
    assert record.rounds[0]["test_accuracy"] == 0.625
    steps = load_run(tmp_path).metrics
    assert steps[(steps["peer"] == "1")]["step"].tolist() == [2]


def test_the_learners_own_metrics_stand_behind(tmp_path: Path) -> None:
    recorded(tmp_path, report(0, metrics={"mae": np.array([1.0, 2.0, 3.0])}))
    frame = load_run(tmp_path).metrics
    assert frame.columns[-1] == "mae"
    assert frame["mae"].tolist() == [1.0, 2.0, 3.0]


def test_columns_of_metrics_are_those_of_the_data_whatever_the_first_round_has(tmp_path: Path) -> None:
    numbers = {"data": "quadratic:dim=2", "model": "mlp"}
    record = recorded(
        tmp_path, report(0, evaluated=False), report(1, metrics={"mae": np.array([1.0, 2.0, 3.0])}), **numbers
    )
    assert record.extra == ("mae",)
    read = pd.read_csv(tmp_path / "metrics.csv")
    assert read["mae"].dropna().tolist() == [1.0, 2.0, 3.0]


def test_names_that_csv_would_break_are_quoted() -> None:
    cells = {"round": 0, "steps": 1}
    text = metrics_text(cells, ['"a,b"'], ())
    assert text.startswith('0,,"a,b",1,')
    assert with_round(3, edge_tails(np.array([[0, 1]]), ['"a,b"', "c"], 9)) == '3,"a,b",c,9\n'


def test_the_files_read_back_as_a_run(tmp_path: Path) -> None:
    resolved = recorded(tmp_path, report(0)).problem
    run = load_run(tmp_path)
    assert run.recipe == resolved.recipe
    assert run.partition.groupby("peer")["count"].sum().to_dict() == {"0": 5, "1": 5, "2": 5}
    started, finished = run.events
    assert isinstance(started, Started)
    assert started.members == ("0", "1", "2")
    assert finished == Finished(peer="simulation", round=1, reason="rounds")


def test_events_of_an_engine_are_written_as_they_are(tmp_path: Path) -> None:
    resolved = problem()
    record = Record(resolved, layout_of(resolved.build()), folder=tmp_path)
    record.open()
    event = RoundFinished(peer="peer1", round=0, steps=1, neighbors=2, missing=0, time_s=1.5)
    record.take(event)
    record.close()
    assert Run(tmp_path).events[1] == event


def test_without_a_folder_everything_is_kept_in_memory() -> None:
    record = recorded(None, report(0), report(1))
    assert (len(record.rounds), len(record.metrics), len(record.edges)) == (2, 2, 2)
    assert record.edges[0][1] is record.edges[1][1]


def test_moments_tell_how_far_it_is() -> None:
    moments: list[Moment] = []
    resolved = problem(rounds=4)
    record = Record(resolved, layout_of(resolved.build()), progress=moments.append, name="alone")
    record.open()
    record.report(report(0))
    record.report(report(1, evaluated=False))
    assert [(m.run, m.round, m.rounds, m.accuracy, m.worst) for m in moments] == [
        ("alone", 1, 4, 0.5, 0.25),
        ("alone", 2, 4, 0.5, 0.25),
    ]
    assert moments[1].left_s == pytest.approx(2 * (moments[1].elapsed_s - moments[0].elapsed_s))


def test_a_warning_is_told_once_and_written(tmp_path: Path) -> None:
    told: list[str] = []
    resolved = problem()
    record = Record(resolved, layout_of(resolved.build()), folder=tmp_path, warn=told.append)
    record.open()
    record.warn("slow")
    record.warn("slow")
    record.close()
    assert told == ["slow"]
    assert [event for event in Run(tmp_path).events if isinstance(event, Warned)] == [
        Warned(peer="simulation", text="slow")
    ]


def test_a_disk_that_fails_costs_the_files_and_not_the_run(tmp_path: Path) -> None:
    told: list[str] = []
    resolved = problem()
    record = Record(resolved, layout_of(resolved.build()), folder=tmp_path, warn=told.append)
    record.open()
    (tmp_path / "checkpoints").write_text("in the way")
    record.report(report(0))
    record.save(1, torch.zeros(N, 7850))
    record.report(report(1))
    record.close("rounds")
    assert len(told) == 1
    assert told[0].startswith(f"the files in {tmp_path} end here: ")
    assert len(record.rounds) == 2
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 4


def test_stopping_is_asked_for_by_either_side() -> None:
    resolved = problem()
    layout = layout_of(resolved.build())
    asked = [False]
    record = Record(resolved, layout, stopped=lambda: asked[0])
    assert not record.stopped
    asked[0] = True
    assert record.stopped
    other = Record(resolved, layout)
    other.stop()
    assert other.stopped


# Checkpoints


def saved(folder: Path, round: int, **settings: Any) -> Problem:
    resolved = problem(**settings)
    record = Record(resolved, layout_of(resolved.build()), folder=folder)
    record.open()
    for each in range(3):
        record.report(report(each))
    record.save(round, torch.arange(N * 7850, dtype=torch.float32).view(N, 7850))
    record.close("stopped")
    return resolved


def test_a_checkpoint_reads_back_and_rows_from_it_on_are_cut(tmp_path: Path) -> None:
    resolved = saved(tmp_path, 2)
    layout = layout_of(resolved.build())
    begin = checkpoints.read(tmp_path, resolved.recipe, layout, N)
    assert begin.round == 2
    assert begin.vectors is not None
    assert torch.equal(begin.vectors, torch.arange(N * 7850, dtype=torch.float32).view(N, 7850))
    checkpoints.cut_back(tmp_path, 2)
    run = load_run(tmp_path)
    assert (run.metrics["round"].max(), run.edges["round"].max()) == (1, 1)
    steps, figures = checkpoints.so_far(tmp_path, 2, resolved.names)
    assert steps.tolist() == [4, 4, 6]
    assert figures == {"wall_s": 1.0, "bytes_sent": 600, "bytes_received": 600, "steps": 14, "simulated_s": 3.0}


def test_half_a_line_at_which_a_process_was_killed_is_cut(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    for name in ("metrics.csv", "events.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write("2,7")
    checkpoints.cut_back(tmp_path, 9)
    run = load_run(tmp_path)
    assert (len(run.metrics), len(run.events)) == (9, 2)


def test_a_killed_run_without_a_checkpoint_begins_at_its_beginning(tmp_path: Path) -> None:
    resolved = recorded(tmp_path, report(0)).problem
    assert checkpoints.read(tmp_path, resolved.recipe, layout_of(resolved.build()), N).round == 0


def test_another_recipe_does_not_go_on_but_more_rounds_and_another_engine_do(tmp_path: Path) -> None:
    recipe = saved(tmp_path, 2).recipe
    layout = layout_of(problem().build())

    def read(**changed: Any) -> int:
        return checkpoints.read(tmp_path, msgspec.structs.replace(recipe, **changed), layout, N).round

    assert read(rounds=99, engine="event", workers=2) == 2
    with pytest.raises(RecipeError, match=r"has patience = 3.0, not 9.0"):
        read(patience=9.0)  # which would decide in virtual time who is late
    with pytest.raises(RecipeError, match=r"has lr = 0.1, not 0.2: go on with its own, or begin anew"):
        read(lr=0.2)
    with pytest.raises(UsageError, match="has all its 2 rounds; ask for more rounds"):
        read(rounds=2)
    with pytest.raises(UsageError, match="holds no run to go on with"):
        checkpoints.read(tmp_path / "none", Recipe(), layout, N)


def test_damaged_tables_are_told(tmp_path: Path) -> None:
    resolved = saved(tmp_path, 2)
    (tmp_path / "rounds.csv").write_text("")
    with pytest.raises(DataError, match="has damaged tables"):
        checkpoints.so_far(tmp_path, 2, resolved.names)
