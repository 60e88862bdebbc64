"""`simulate`: a run from a recipe, its references, files, and going on where it was stopped."""

import signal
import threading
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from loop_engine import LoopEngine
from test_run_files import limited_to
from torch import nn

import p2pfl
from p2pfl.errors import RecipeError, TrainingError, UsageError
from p2pfl.events import RoundFinished
from p2pfl.graphs.topology import Topology
from p2pfl.recipe import Recipe, to_toml
from p2pfl.simulation.engines import ENGINES, choose, table
from p2pfl.simulation.record import Moment
from p2pfl.simulation.resolve import resolve
from p2pfl.simulation.simulated_run import SimulatedRun
from p2pfl.sinks import write_summary

SMALL: dict[str, Any] = {"peers": 4, "model": "logistic", "samples": 40, "test_samples": 100, "rounds": 3, "workers": 1}
KEYS = {
    "peers",
    "rounds",
    "topology",
    "algorithm",
    "seed",
    "wall_s",
    "accuracy",
    "alone",
    "pooled",
    "consensus_distance",
    "bytes_sent",
    "bytes_received",
    "failures",
}


def simulate(**more: Any) -> SimulatedRun:
    return p2pfl.simulate(**{**SMALL, "engine": LoopEngine(), **more})


def test_a_run_has_tables_models_and_the_summary_of_live_runs(tmp_path: Path) -> None:
    run = simulate(out=tmp_path, alpha=0.3)
    assert set(run.summary) > KEYS
    assert (len(run.metrics), len(run.rounds), len(run.edges), len(run.partition)) == (12, 3, 24, 40)
    assert run.vectors.shape == (4, 7850)
    assert run.summary["accuracy"]["mean"] == pytest.approx(run.rounds["test_accuracy"].iloc[-1])
    assert run.summary["accuracy"]["worst"] <= run.summary["accuracy"]["mean"]
    assert run.summary["bytes_sent"] == run.edges["bytes"].sum()
    assert run.summary["heterogeneity"]["total_variation"] > 0.3
    assert (run.summary["stopped"], run.summary["failures"]) == (False, {"late": 1})


def test_the_files_say_the_same(tmp_path: Path) -> None:
    run = simulate(out=tmp_path)
    read = p2pfl.load_run(tmp_path)
    assert read.recipe == run.recipe
    assert read.summary == run.summary
    assert list(read.metrics.columns) == list(run.metrics.columns)
    assert read.metrics["test_accuracy"].tolist() == pytest.approx(run.metrics["test_accuracy"].tolist(), rel=1e-5)
    assert read.edges.astype(str).equals(run.edges.astype(str))
    assert read.partition.equals(run.partition)
    assert read.peers == ("0", "1", "2", "3", "mean")
    with torch.no_grad():
        for peer in (None, 2, "2"):
            ours = run.model(peer)
            theirs = read.model("mean" if peer is None else "2")
            assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert torch.allclose(run.mean_vector, run.vectors.mean(dim=0))


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = simulate()
    assert list(tmp_path.iterdir()) == []
    assert run.folder is None
    assert len(run.metrics) == 12


def test_models_of_many_peers_are_written_when_asked_for(tmp_path: Path) -> None:
    def models(name: str, **more: Any) -> set[str]:
        simulate(out=tmp_path / name, rounds=1, samples=2, **more)
        return {path.stem for path in (tmp_path / name / "models").iterdir()}

    assert models("many", peers=17) == {"mean"}
    assert len(models("all", peers=17, save_models=True)) == 18
    assert models("none", save_models=False) == {"mean"}


def test_a_recipe_comes_as_a_value_a_file_settings_or_keywords(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text(to_toml(Recipe(**SMALL)))
    runs = [
        p2pfl.simulate(Recipe(**SMALL), engine=LoopEngine()),
        p2pfl.simulate(file, engine=LoopEngine()),
        p2pfl.simulate(str(file), rounds=3, engine=LoopEngine()),
        p2pfl.simulate(SMALL, engine=LoopEngine()),
        simulate(),
    ]
    assert len({run.recipe.fingerprint for run in runs}) == 1
    assert all(torch.equal(run.vectors, runs[0].vectors) for run in runs)
    assert p2pfl.simulate(file, rounds=1, engine=LoopEngine()).summary["rounds"] == 1


def test_epochs_that_are_asked_for_stand_over_steps_of_the_recipe() -> None:
    recipe = Recipe(**SMALL, steps=1)
    assert p2pfl.simulate(recipe, engine=LoopEngine()).metrics["steps"].unique().tolist() == [1]
    assert p2pfl.simulate(recipe, epochs=2, engine=LoopEngine()).metrics["steps"].unique().tolist() == [4]


def test_references_stand_beside_it(tmp_path: Path) -> None:
    run = p2pfl.simulate(**SMALL, alpha=0.1, out=tmp_path, references=["alone", "pooled", "fedavg"])
    assert set(run.references) == {"alone", "pooled", "fedavg"}
    assert set(run.summary["alone"]) == set(run.summary["fedavg"]) == {"mean", "worst"}
    assert set(run.summary["pooled"]) == {"mean"}
    assert run.summary["alone"]["mean"] < run.summary["pooled"]["mean"]
    assert run.references["fedavg"].summary["consensus_distance"] < 1e-9
    assert p2pfl.load_run(tmp_path).summary == run.summary
    alone = p2pfl.load_run(tmp_path / run.summary["references"]["alone"])
    assert (alone.recipe.algorithm, alone.metrics["peer"].nunique(), len(alone.edges)) == ("alone", 4, 0)
    assert p2pfl.load_run(tmp_path / "references" / "pooled").metrics["peer"].unique().tolist() == ["pooled"]


def test_quadratics_come_near_their_optimum() -> None:
    run = p2pfl.simulate(
        data="quadratic:dim=3,noise=0", peers=6, topology="complete", rounds=60, lr=0.2, workers=1, engine=LoopEngine()
    )
    assert run.summary["accuracy"] is None
    assert run.summary["loss"]["mean"] == pytest.approx(run.summary["optimum"], rel=1e-4)
    assert run.summary["mean_model"]["loss"] is None  # the plain engine does not evaluate it


def test_own_model_data_loss_and_graph() -> None:
    inputs = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    targets = inputs @ torch.tensor([[1.0], [-2.0], [0.5]])
    run = p2pfl.simulate(
        model=nn.Linear(3, 1),
        train=(inputs, targets),
        test=(inputs, targets),
        loss=nn.functional.l1_loss,
        topology=nx.path_graph(3),
        peers=3,
        rounds=40,
        epochs=5,
        lr=0.05,
        engine=LoopEngine(),
    )
    assert run.summary["loss"]["mean"] < 0.2
    model = run.model()
    assert isinstance(model, nn.Linear)
    assert model.weight.flatten().tolist() == pytest.approx([1.0, -2.0, 0.5], abs=0.2)


def test_progress_comes_after_every_round_of_every_run() -> None:
    moments: list[Moment] = []
    p2pfl.simulate(**SMALL, references=["alone"], progress=moments.append)
    assert [(m.run, m.round) for m in moments] == [("", 1), ("", 2), ("", 3), ("alone", 1), ("alone", 2), ("alone", 3)]


# Stopping and going on


def test_a_run_that_goes_on_ends_with_the_bits_of_one_that_never_stopped(tmp_path: Path) -> None:
    whole = simulate(rounds=5)
    rounds = iter((False, True))  # asked no further
    stopped = simulate(rounds=5, out=tmp_path, stopped=lambda: next(rounds))
    assert (stopped.summary["stopped"], stopped.summary["rounds"], len(stopped.metrics)) == (True, 2, 8)
    assert p2pfl.load_run(tmp_path).summary["stopped"]
    resumed = p2pfl.simulate(out=tmp_path, resume=True, engine=LoopEngine())
    assert torch.equal(resumed.vectors, whole.vectors)
    assert (resumed.summary["stopped"], resumed.summary["rounds"]) == (False, 5)
    assert resumed.summary["bytes_sent"] == whole.summary["bytes_sent"]
    assert resumed.summary["steps"] == whole.summary["steps"]
    assert resumed.summary["failures"] == {"late": 1}
    assert len(resumed.edges) == len(whole.edges)
    columns = ["round", "step", "peer", "steps", "neighbors", "bytes_sent"]
    assert resumed.metrics[columns].astype(str).equals(whole.metrics[columns].astype(str))
    read = p2pfl.load_run(tmp_path)
    assert read.metrics[columns].astype(str).equals(whole.metrics[columns].astype(str))


def test_a_finished_run_goes_on_with_more_rounds_only(tmp_path: Path) -> None:
    simulate(out=tmp_path)
    with pytest.raises(UsageError, match="has all its 3 rounds; ask for more rounds to go on"):
        p2pfl.simulate(out=tmp_path, resume=True, engine=LoopEngine())
    with pytest.raises(RecipeError, match=r"has alpha = 0.0, not 0.5"):
        p2pfl.simulate(out=tmp_path, resume=True, rounds=5, alpha=0.5, engine=LoopEngine())
    more = p2pfl.simulate(out=tmp_path, resume=True, rounds=5, engine=LoopEngine())
    assert torch.equal(more.vectors, simulate(rounds=5).vectors)


def test_references_are_run_again_for_more_rounds(tmp_path: Path) -> None:
    simulate(out=tmp_path, references=["alone"])
    more = p2pfl.simulate(out=tmp_path, resume=True, rounds=5, references=["alone"], engine=LoopEngine())
    assert more.references["alone"].summary["rounds"] == 5
    assert more.summary["alone"] == more.references["alone"].summary["accuracy"]
    without = p2pfl.simulate(out=tmp_path, resume=True, rounds=6, engine=LoopEngine())
    assert without.summary["alone"] is None


def test_references_that_were_stopped_are_run_when_it_goes_on(tmp_path: Path) -> None:
    moments: list[Moment] = []
    begun = simulate(
        out=tmp_path, references=["alone"], progress=moments.append, stopped=lambda: bool(moments and moments[-1].run)
    )
    assert (begun.summary["stopped"], begun.summary["alone"]) == (False, None)
    ended = p2pfl.simulate(out=tmp_path, resume=True, references=["alone"])
    assert ended.summary["alone"] == ended.references["alone"].summary["accuracy"]
    assert torch.equal(ended.vectors, begun.vectors)
    assert torch.equal(ended.mean_vector, begun.mean_vector)
    assert len(ended.metrics) == 12
    assert p2pfl.load_run(tmp_path).summary == ended.summary
    with pytest.raises(UsageError, match="has all its 3 rounds"):
        p2pfl.simulate(out=tmp_path, resume=True, references=["alone"])


def test_a_run_does_not_go_on_with_other_examples_or_edges(tmp_path: Path) -> None:
    lines = [f"{i % 7},{i % 5},{i % 2}" for i in range(60)]
    file = tmp_path / "data.csv"
    file.write_text("\n".join(["a,b,label", *lines]))
    of_file = {"data": str(file), "target": "label", "samples": 5, "test_samples": 0}
    simulate(out=tmp_path / "run", **of_file)
    file.write_text("\n".join(["a,b,label", *reversed(lines)]))
    with pytest.raises(RecipeError, match="has other training examples than there are now: put back what it had"):
        p2pfl.simulate(out=tmp_path / "run", resume=True, rounds=5, engine=LoopEngine())
    pairs = ((0, 1), (1, 0), (2, 3), (3, 2), (0, 2), (2, 0))
    weighted, other = (
        Topology(
            "own",
            4,
            ((0, 1), (2, 3), (0, 2)),
            weights=[
                *((i, j, weight) for i, j in pairs),
                *((i, i, 1 - weight * (2 if i in (0, 2) else 1)) for i in range(4)),
            ],
        )
        for weight in (0.25, 0.5)
    )
    simulate(out=tmp_path / "own", topology=weighted)
    with pytest.raises(RecipeError, match="has other edges or weights"):
        simulate(out=tmp_path / "own", topology=other, resume=True, rounds=5)


def test_a_folder_under_way_is_not_written_by_another_run(tmp_path: Path) -> None:
    refused: list[str] = []

    def second(round: int) -> None:
        with pytest.raises(UsageError) as error:
            simulate(out=tmp_path, resume=True)
        refused.append(str(error.value))

    simulate(out=tmp_path, rounds=1, engine=LoopEngine(between=second))
    assert refused == [f"{tmp_path} is being written by another run: wait for its end, or give another out"]
    simulate(out=tmp_path, resume=True, rounds=2)  # it is let go at the end


def test_a_summary_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_summary(tmp_path, {"rounds": 1})
    with pytest.raises(TypeError):
        write_summary(tmp_path, {"rounds": object()})
    with limited_to(0), pytest.raises(OSError, match="File too large"):
        write_summary(tmp_path, {"rounds": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_bytes() == b'{\n  "rounds": 1\n}\n'


def test_a_run_in_which_nobody_is_left_says_so() -> None:
    run = p2pfl.simulate(
        **SMALL | {"rounds": 9}, engine="event", churn="crash@0.05=0;crash@0.05=1;crash@0.05=2;crash@0.05=3"
    )
    done = run.summary["rounds"]
    assert run.summary["ended_early"] == f"nobody was left after round {done} of 9"
    assert (done < 9, run.summary["stopped"]) == (True, False)
    assert simulate().summary["ended_early"] is None


def test_events_of_a_run_that_goes_on_stand_once_and_in_time(tmp_path: Path) -> None:
    recipe: dict[str, Any] = {**SMALL, "rounds": 6, "engine": "event", "out": tmp_path}
    rounds = iter((False, False, True))
    p2pfl.simulate(**recipe, stopped=lambda: next(rounds))
    p2pfl.simulate(**recipe, resume=True)
    finished = [event for event in p2pfl.load_run(tmp_path).events if isinstance(event, RoundFinished)]
    assert len({(event.peer, event.round) for event in finished}) == len(finished) == 4 * 6
    times = [event.time_s for event in finished if event.peer == finished[0].peer]
    assert times == sorted(set(times))


def test_the_first_interrupt_ends_after_the_round_and_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    engine = LoopEngine(between=lambda round: signal.raise_signal(signal.SIGINT) if round == 1 else None)
    run = simulate(rounds=5, engine=engine, out=tmp_path, say=said.append, references=["alone"])
    assert (run.summary["rounds"], run.summary["stopped"], run.summary["alone"]) == (2, True, None)
    assert said[-1] == "stopping after this round; what is done is kept (again to quit at once)"
    assert signal.getsignal(signal.SIGINT) is before
    assert len(p2pfl.load_run(tmp_path).metrics) == 8


def test_the_second_interrupt_ends_at_once_and_leaves_whole_rounds(tmp_path: Path) -> None:
    def twice(round: int) -> None:
        if round == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        simulate(rounds=5, engine=LoopEngine(between=twice), out=tmp_path)
    assert p2pfl.load_run(tmp_path).metrics["round"].tolist() == [0] * 4 + [1] * 4
    resumed = p2pfl.simulate(out=tmp_path, resume=True, engine=LoopEngine())
    assert torch.equal(resumed.vectors, simulate(rounds=5).vectors)


def test_other_threads_leave_signals_alone() -> None:
    runs: list[SimulatedRun] = []
    thread = threading.Thread(target=lambda: runs.append(simulate()))
    thread.start()
    thread.join()
    assert len(runs) == 1


def test_a_folder_with_a_run_is_not_written_over(tmp_path: Path) -> None:
    simulate(out=tmp_path)
    with pytest.raises(UsageError, match="holds a run already; give another out, or resume"):
        simulate(out=tmp_path)


def test_training_that_fails_closes_the_files(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="lower --lr"):
        simulate(out=tmp_path, lr=1e38, rounds=9)
    assert (tmp_path / "metrics.csv").exists()
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"references": ["alon"]}, "there is no reference 'alon'; there are alone, pooled, fedavg"),
        ({"roundz": 3}, "unknown field `roundz`; did you mean 'rounds'?"),
        ({"resume": True}, "resume needs out: the folder of the run to go on with"),
        ({"resume": True, "out": "nowhere"}, "nowhere holds no run to go on with"),
        ({"engine": "fast"}, "engine: there is no 'fast'; there are auto, event, matrix, scalars, ray"),
        ({"engine": LoopEngine(refuses="too large")}, "engine LoopEngine cannot run this: too large"),
        ({"model": "own"}, "this recipe had Python objects for model or data: give model= or train= again"),
        ({"engine": "event", "algorithm": "fedavg"}, "engine event cannot run this: fedavg is no algorithm of live"),
    ],
)
def test_what_cannot_be_says_the_mend(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as refused:
        p2pfl.simulate(**{**SMALL, **settings})
    assert says in str(refused.value)


def test_a_peer_that_is_not_there_has_no_model() -> None:
    with pytest.raises(UsageError, match="there is no peer 'alice'; they are 0 to 3, None is their average"):
        simulate().model("alice")


# The engine


def choice(**settings: Any) -> tuple[str, str]:
    return choose(resolve(Recipe(**{**SMALL, **settings})))[1:]


def test_auto_takes_matrix_unless_the_world_is_asked_for() -> None:
    assert choice() == ("matrix", "the fastest, and nothing asks for virtual time")
    assert choice(loss_rate=0.1) == ("event", "loss_rate needs virtual time")
    assert choice(latency="0.5", churn="crash:rate=.01") == ("event", "latency and churn need virtual time")
    assert choice(engine="event") == ("event", "asked for")
    assert choice(engine="matrix") == ("matrix", "asked for")


def test_the_table_of_engines_has_all_that_a_recipe_can_name() -> None:
    assert {*ENGINES, "scalars"} == {row["engine"] for row in table()}
    assert set(ENGINES) == {"event", "matrix", "ray"}
    assert all(all(row.values()) for row in table())
