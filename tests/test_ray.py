"""Simulations on a real Ray cluster of two nodes on this machine: the numbers of the matrix engine."""

import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from p2pfl.errors import NetworkError, TrainingError, UsageError
from p2pfl.recipe import Recipe
from p2pfl.simulation.engine import Begin, Ending, Engine, Keeper, RoundReport
from p2pfl.simulation.jobs import Row, job_of, run_job
from p2pfl.simulation.matrix import MatrixEngine
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.ray_cluster import cluster
from p2pfl.simulation.ray_engine import RayEngine, spread_over
from p2pfl.simulation.ray_sweep import run_on_ray
from p2pfl.simulation.resolve import resolve
from p2pfl.simulation.shard import piece_of

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'p2pfl[ray]'")
pytestmark = [
    # Ray's own: it leaves pipes and log files of the processes it started for the garbage collector to close.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


EXACT = (
    "steps",
    "train_loss",
    "neighbors",
    "neighbor_distance",
    "bytes_sent",
    "bytes_received",
    "arcs",
    "evaluated",
    "test_loss",
    "test_accuracy",
)


@dataclass
class Kept:
    """A keeper that remembers."""

    stop_after: int = 1000
    reports: list[RoundReport] = field(default_factory=list)
    checkpoints: dict[int, torch.Tensor] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def report(self, report: RoundReport) -> None:
        self.reports.append(report)

    def keep(self, round: int, vectors: Callable[[], torch.Tensor]) -> None:
        self.checkpoints[round] = vectors()

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @property
    def stopped(self) -> bool:
        return len(self.reports) >= self.stop_after


def own_model(normed: bool = False) -> nn.Module:
    """A small classifier: dense, or with a layer that the hand-written backward pass does not cover."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle = [nn.Linear(8, 6), nn.LayerNorm(6) if normed else nn.ReLU()]
        return nn.Sequential(*middle, nn.Linear(6, 3))


def problem(normed: bool = False, **settings: object) -> Problem:
    """Seven peers with parts of several sizes."""
    generator = torch.Generator().manual_seed(1)
    inputs, labels = torch.randn(150, 8, generator=generator), torch.randint(3, (150,), generator=generator)
    inputs[torch.arange(150), labels] += 2
    recipe = Recipe(peers=7, rounds=3, batch_size=4, topology="ring", alpha=2.0, workers=2)
    recipe = msgspec.structs.replace(recipe, **settings)
    test = (inputs[120:], labels[120:])
    return resolve(recipe, model=own_model(normed), train=(inputs[:120], labels[:120]), test=test)


def run(engine: Engine, given: Problem, keeper: Kept | None = None, begin: Begin | None = None) -> tuple[Ending, Kept]:
    """A run, and what the keeper saw of it."""
    keeper = keeper or Kept()
    assert engine.objection(given) == ""
    return engine.run(given, keeper, begin or Begin(0)), keeper


class Here:
    """What the engine asks of Ray, done at once in this process: as many variants as one likes in no time."""

    def __init__(self, cores: int) -> None:
        self._cores = cores

    def remote(self, **_: object) -> "Callable[[type], Here.Maker]":
        return Here.Maker

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": float(self._cores)}

    def nodes(self) -> list[dict[str, object]]:
        return [{"NodeID": "here", "Alive": True}]

    def put(self, value: object) -> object:
        return value

    def get(self, value: object) -> object:
        return value

    def wait(self, promises: list[object], **_: object) -> tuple[list[object], list[object]]:
        return promises, []

    class Maker:
        def __init__(self, kind: type) -> None:
            self._kind = kind

        def remote(self, *arguments: object) -> "Here.Actor":
            return Here.Actor(self._kind(*arguments))

    class Actor:
        def __init__(self, actor: object) -> None:
            self._actor = actor

        def __getattr__(self, method: str) -> "Here.Method":
            return Here.Method(getattr(self._actor, method))

    class Method:
        def __init__(self, method: Callable[..., object]) -> None:
            self.remote = method


class InShards:
    """The Ray engine over shards in this process."""

    def __init__(self, cores: int) -> None:
        self._cores = cores

    def objection(self, problem: Problem) -> str:
        return MatrixEngine().objection(problem)

    def run(self, problem: Problem, keeper: Keeper, begin: Begin) -> Ending:
        return spread_over(Here(self._cores), [], problem, keeper, begin)


def check_same(engine: Engine, given: Problem) -> Ending:
    """An engine's run has the matrix engine's bits, and its sums over all peers but for rounding."""
    there, seen = run(engine, given)
    here, known = run(MatrixEngine(), given)
    assert torch.equal(there.vectors, here.vectors)
    assert there.round == here.round == given.recipe.rounds
    assert there.facts["path"] == here.facts["path"]
    for mine, theirs in zip(seen.reports, known.reports, strict=True):
        for exact in EXACT:
            np.testing.assert_array_equal(getattr(mine, exact), getattr(theirs, exact), err_msg=exact)
        for rounded in ("consensus_distance", "norm", "mean_loss", "mean_accuracy"):
            ours, others = (np.array(getattr(one, rounded), dtype=float) for one in (mine, theirs))
            np.testing.assert_allclose(ours, others, rtol=1e-5, atol=1e-12, err_msg=rounded)
    assert seen.checkpoints.keys() == known.checkpoints.keys()
    for round, vectors in known.checkpoints.items():
        assert torch.equal(seen.checkpoints[round], vectors)
    return there


@pytest.mark.parametrize(
    ("normed", "settings"),
    [
        (False, {}),
        (False, {"dtype": "float64", "topology": "random-regular:k=3,seed=1", "peers": 8}),
        (True, {"dtype": "float64", "peers": 20, "samples": 6}),
        (True, {"peers": 13, "topology": "random-matching", "evaluate_every": 2}),
        (False, {"topology": "one-peer-exponential", "peers": 8, "rounds": 7}),
        (False, {"algorithm": "alone"}),
        (False, {"peers": 1}),
    ],
)
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_shards_have_the_bits_of_one_array(normed: bool, settings: dict[str, object], shards: int) -> None:
    given = problem(normed, workers=0, **settings)
    ending = check_same(InShards(shards), given)
    assert ending.facts["workers"] == min(shards, given.peers)


@pytest.mark.parametrize("settings", [{"topology": "complete", "peers": 12}, {"algorithm": "fedavg"}])
def test_where_all_hear_all_only_rounding_differs(settings: dict[str, object]) -> None:
    given = problem(dtype="float64", **settings)
    there, seen = run(InShards(3), given)
    here, known = run(MatrixEngine(), given)
    torch.testing.assert_close(there.vectors, here.vectors, rtol=1e-12, atol=1e-12)
    for mine, theirs in zip(seen.reports, known.reports, strict=True):
        np.testing.assert_allclose(mine.neighbor_distance, theirs.neighbor_distance, rtol=1e-9, atol=1e-20)


def test_only_rows_that_are_heard_elsewhere_cross() -> None:
    ending, _ = run(InShards(2), problem())
    assert ending.facts["rows_crossing"] == 4  # two at each of the two cuts of the ring
    alone, _ = run(InShards(2), problem(algorithm="alone"))
    assert alone.facts["rows_crossing"] == 0


def test_a_shard_holds_the_examples_of_its_own_peers_only() -> None:
    given = problem()
    module = given.build()
    pieces = [piece_of(given, blocks, "dense", module) for blocks in ([[0, 1], [2]], [[3], [4, 5, 6]])]
    assert [piece.peers for piece in pieces] == [(0, 1, 2), (3, 4, 5, 6)]
    assert sum(len(piece.data.train) for piece in pieces) == 120
    for piece in pieces:
        for peer in piece.peers:
            mine, whole = piece.data.train.inputs[piece.parts[peer]], given.examples(peer).inputs
            assert torch.equal(mine, whole)


def test_a_run_stops_where_asked_and_goes_on_as_if_it_had_not() -> None:
    given = problem()
    whole, _ = run(InShards(2), given)
    first, seen = run(InShards(2), given, Kept(stop_after=1))  # in the second round
    assert (first.round, len(seen.reports)) == (2, 2)
    second, _ = run(InShards(3), given, begin=Begin(2, first.vectors))
    assert torch.equal(second.vectors, whole.vectors)


def test_a_loss_that_is_not_finite_is_told_with_its_peer() -> None:
    with pytest.raises(TrainingError, match=r"the training loss of peer \d became (nan|inf) in round \d; lower --lr"):
        run(InShards(2), problem(lr=1e30))


def test_what_it_cannot_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert RayEngine().objection(problem(device="cuda")) == (
        "its actors compute on the CPU, and device is cuda: set device = cpu"
    )
    assert "take the event engine" in RayEngine().objection(problem(loss_rate=0.1))
    monkeypatch.setitem(sys.modules, "ray", None)
    mend = "Ray is not installed: pip install 'p2pfl[ray]'"
    assert RayEngine().objection(problem()).startswith(mend)
    with pytest.raises(UsageError, match=re.escape(mend)), cluster():
        pass


@needs_ray
def test_no_cluster_at_the_address_is_told_at_once() -> None:
    with pytest.raises(NetworkError, match=r"no Ray cluster at 127\.0\.0\.1:1: .*refused.*; start one with"):
        run(RayEngine("127.0.0.1:1"), problem())


@needs_ray
def test_what_was_started_is_stopped_and_all_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with cluster(cpus=1) as there:
        assert there.cluster_resources()["CPU"] == 1
        with cluster(cpus=4) as same:  # a connection that is there is used
            assert same.cluster_resources()["CPU"] == 1
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of two nodes with one core each, without a dashboard; this process is connected to it throughout."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        node = {"num_cpus": 1, "object_store_memory": 100_000_000}
        nodes = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
        try:
            nodes.add_node(**node)
            nodes.wait_for_nodes()
            with cluster(nodes.address):
                yield nodes.address
        finally:
            nodes.shutdown()


@needs_ray
def test_actors_on_two_nodes_have_the_bits_of_the_matrix_engine(address: str) -> None:
    ending = check_same(RayEngine(address), problem(topology="random-matching", peers=8))
    assert (ending.facts["workers"], ending.facts["nodes"]) == (2, 2)
    assert 0 < ending.facts["rows_crossing"] <= 8


@needs_ray
def test_a_sweep_of_two_runs(address: str, tmp_path: Path) -> None:
    jobs = [job_of(Recipe(data="digits", peers=4, rounds=1, topology=name), tmp_path) for name in ("ring", "star")]
    rows: dict[str, Row] = {}
    run_on_ray(jobs, run_job, address, lambda job, row: rows.update({job.folder: row}))
    for job in jobs:
        assert rows[job.folder]["error"] is None
        assert rows[job.folder]["summary"]["accuracy"] == run_job(job)["summary"]["accuracy"]
    assert {row["summary"]["topology"] for row in rows.values()} == {"ring", "star"}


def where(job: int) -> tuple[int, str]:
    """The square of the job, and the node it ran on."""
    import ray

    if job < 0:
        raise TrainingError(f"job {job} went wrong")
    if job > 99:
        raise ValueError("too many")
    return job * job, ray.get_runtime_context().get_node_id()


@needs_ray
def test_tasks_run_on_both_nodes_and_errors_come_out_as_themselves(address: str) -> None:
    outcomes: dict[int, tuple[int, str]] = {}
    run_on_ray(range(6), where, address, outcomes.__setitem__)
    assert {job: square for job, (square, _) in outcomes.items()} == {job: job * job for job in range(6)}
    with pytest.raises(TrainingError, match=r"^job -1 went wrong$"):
        run_on_ray([-1, *range(10, 20)], where, address, outcomes.__setitem__)
    with pytest.raises(NetworkError, match=r"^a task on Ray failed with ValueError: too many$"):
        run_on_ray([100], where, address, outcomes.__setitem__)
    assert set(outcomes) <= {*range(6), *range(10, 20)}
