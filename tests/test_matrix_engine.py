"""The matrix engine does what a learner a peer and the mixing kernel do, on every path, in any number of processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from loop_engine import LoopEngine
from torch import nn

from p2pfl.errors import P2pflError, TrainingError
from p2pfl.graphs.mixing import mixing_weights
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.layout import layout_of
from p2pfl.learning.examples import Data, Examples, assemble
from p2pfl.learning.learner import GENERATOR, Loss
from p2pfl.recipe import Recipe
from p2pfl.simulation.engine import Begin, Ending, RoundReport
from p2pfl.simulation.matrix import MatrixEngine
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.steppers import best_path

PATHS = ("stacked", "dense", "vectorized", "learners")
SIZES = (14, 9, 11, 8, 5, 13)  # examples of each peer: batches of 4 end in smaller ones of every size


class Book:
    """A keeper that keeps everything, and does something at each report."""

    def __init__(
        self, at_report: Callable[[RoundReport], None] = lambda report: None, stop_after: int = 1 << 30
    ) -> None:
        self.reports: list[RoundReport] = []
        self.kept: dict[int, torch.Tensor] = {}
        self.said: list[str] = []
        self._at_report = at_report
        self._stop_after = stop_after

    def report(self, report: RoundReport) -> None:
        self.reports.append(report)
        self._at_report(report)

    def keep(self, round: int, vectors: Callable[[], torch.Tensor]) -> None:
        self.kept[round] = vectors()

    def warn(self, text: str) -> None:
        self.said.append(text)

    @property
    def stopped(self) -> bool:
        return len(self.reports) >= self._stop_after


def classes() -> Data:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 256, (80, 3, 4), dtype=np.uint8)
    return assemble("tiny", (x[:60], rng.integers(0, 3, 60)), (x[60:], rng.integers(0, 3, 20)))


def numbers(outputs: int = 2) -> Data:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 5)).astype(np.float32)
    y = rng.normal(size=(80, outputs))
    return assemble("numbers", (x[:60], y[:60]), (x[60:], y[60:]))


def mlp(inputs: int = 12, outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, 7), nn.ReLU(), nn.Linear(7, outputs))


def problem(
    model: Callable[[], nn.Module] = mlp,
    data: Data | None = None,
    *,
    sizes: tuple[int, ...] = SIZES,
    schedule: Schedule | None = None,
    loss: Loss | None = None,
    **settings: Any,
) -> Problem:
    data = data or classes()
    n = len(sizes)
    recipe = Recipe(
        **{"peers": n, "rounds": 20, "batch_size": 4, "dtype": "float64", "seed": 5, "workers": 1, **settings}
    )
    rng = np.random.default_rng(3)
    parts = tuple(np.sort(rng.choice(60, size, replace=False)) for size in sizes)
    ring = Topology("ring", n, tuple((i, (i + 1) % n) for i in range(n)) if n > 2 else ())

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(9)
            return model().to(torch.float64 if recipe.dtype == "float64" else torch.float32)

    names = tuple(map(str, range(n)))
    return Problem(recipe, data, parts, data.test, schedule or Schedule.of(ring), build, loss, names)


def run(given: Problem, path: str | None = None, begin: Begin | None = None, **book: Any) -> tuple[Ending, Book]:
    keeper = Book(**book)
    return MatrixEngine(path).run(given, keeper, begin or Begin(0)), keeper


def reference(given: Problem) -> tuple[torch.Tensor, Book]:
    keeper = Book()
    return LoopEngine().run(given, keeper, Begin(0)).vectors, keeper


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


@pytest.mark.parametrize("path", PATHS)
def test_twenty_rounds_agree_with_a_learner_a_peer_to_1e_10_in_float64(path: str) -> None:
    given = problem()
    wanted, plain = reference(given)
    ending, book = run(given, path)
    assert ending.facts["path"] == path
    assert gap(wanted, given_start(given)) > 0.1  # it went somewhere
    assert gap(ending.vectors, wanted) < 1e-10
    for mine, theirs in zip(book.reports, plain.reports, strict=True):
        assert (mine.steps == theirs.steps).all()
        np.testing.assert_allclose(mine.train_loss, theirs.train_loss, rtol=1e-9)
        assert mine.test_loss is not None
        assert theirs.test_loss is not None
        np.testing.assert_allclose(mine.test_loss, theirs.test_loss, rtol=1e-9)
        np.testing.assert_array_equal(mine.test_accuracy, theirs.test_accuracy)  # type: ignore[arg-type]  # both are there
        assert mine.consensus_distance == pytest.approx(theirs.consensus_distance, rel=1e-8)
        assert mine.norm == pytest.approx(theirs.norm, rel=1e-10)
        np.testing.assert_array_equal(mine.bytes_sent, theirs.bytes_sent)
        np.testing.assert_array_equal(mine.bytes_received, theirs.bytes_received)
        assert sorted(map(tuple, mine.arcs)) == sorted(map(tuple, theirs.arcs))


def given_start(given: Problem) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in given.build().parameters()])


@pytest.mark.parametrize("path", PATHS)
def test_a_round_agrees_with_a_learner_a_peer_to_1e_6_in_float32(path: str) -> None:
    given = problem(rounds=1, dtype="float32")
    ending, _ = run(given, path)
    assert ending.vectors.dtype == torch.float32
    assert gap(ending.vectors, reference(given)[0]) < 1e-6


@pytest.mark.parametrize(
    ("model", "data", "settings"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), None, {}),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3, bias=False)), None, {"epochs": 2}),
        (
            lambda: nn.Sequential(
                nn.Flatten(), nn.Linear(12, 8, bias=False), nn.Tanh(), nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()),
                nn.Linear(8, 9), nn.Linear(9, 3, bias=False),
            ),
            None,
            {"steps": 7},
        ),
        (lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2)), numbers(), {"lr": 0.02}),
        (lambda: nn.Sequential(nn.Linear(5, 1)), numbers(1), {"steps": 1, "batch_size": 64}),
    ],
    ids=["logistic", "no-bias-two-epochs", "deep-seven-steps", "regression", "one-step-of-all"],
)  # fmt: skip
def test_the_dense_path_takes_every_such_network_and_agrees(
    model: Callable[[], nn.Module], data: Data | None, settings: dict[str, Any]
) -> None:
    given = problem(model, data, rounds=5, **settings)
    ending, book = run(given)
    assert (ending.facts["path"], book.said) == ("dense", [])
    wanted, plain = reference(given)
    assert gap(ending.vectors, wanted) < 1e-11
    np.testing.assert_allclose(book.reports[-1].train_loss, plain.reports[-1].train_loss, rtol=1e-9)


@pytest.mark.parametrize("data", [classes(), numbers()], ids=["bytes", "numbers"])
@pytest.mark.parametrize("path", ["stacked", "dense"])
def test_inputs_that_are_too_large_to_prepare_are_gathered_to_the_same_bits(
    data: Data, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, outputs = (12, 3) if data.task == "classification" else (5, 2)
    given = problem(lambda: mlp(inputs, outputs), data, rounds=3, dtype="float32")
    prepared, _ = run(given, path)
    monkeypatch.setattr("p2pfl.simulation.batches._PREPARED_BYTES", 0)
    assert torch.equal(run(given, path)[0].vectors, prepared.vectors)


def own_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(output, target, label_smoothing=0.1)


def frozen() -> nn.Module:
    model = mlp()
    model[1].weight.requires_grad_(False)  # type: ignore[index, union-attr, operator]  # a Sequential's Linear
    return model


class Tied(nn.Module):
    """One matrix used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 12)
        self.last = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.inner(self.inner(x.flatten(1)).relu()))  # type: ignore[no-any-return]  # a module's call


@pytest.mark.parametrize(
    ("model", "loss", "why"),
    [
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)), None, "a Conv2d"),
        (frozen, None, "parameters that are not trained"),
        (Tied, None, "a Tied"),
        (mlp, own_loss, "a loss of one's own"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.LayerNorm(4), nn.Linear(4, 3)), None, "a LayerNorm"),
    ],
)
def test_any_other_module_is_vectorized_and_agrees(model: Callable[[], nn.Module], loss: Loss | None, why: str) -> None:
    given = problem(model, loss=loss, rounds=6)
    ending, book = run(given)
    assert (ending.facts["path"], ending.facts["why"], book.said) == ("vectorized", why, [])
    assert gap(ending.vectors, reference(given)[0]) < 1e-10


def test_parameters_that_are_not_trained_stay() -> None:
    given = problem(frozen, rounds=3, schedule=Schedule.of(Topology("none", 6, ())))
    first = layout_of(given.build()).tensors[0]
    size = int(np.prod(first[1]))
    ending, _ = run(given)
    assert (ending.vectors[:, :size] == given_start(given)[:size]).all()
    assert (ending.vectors[:, size:] != given_start(given)[size:]).any()


class Counting(nn.Module):
    """Counts its calls in a buffer of whole numbers, which stays local."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(12, 3)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls += 1
        return self.last(x.flatten(1)) * (1 + self.calls % 2)  # type: ignore[no-any-return]  # a module's call


class Assigning(Counting):
    """The same with a new tensor each time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls = self.calls + 1
        return self.last(x.flatten(1))  # type: ignore[no-any-return]  # a module's call


class Peeking(nn.Module):
    """Takes a way that depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.last(x.flatten(1))
        return y if float(y.sum()) > 0 else 2 * y  # type: ignore[no-any-return]  # a module's call


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.Dropout(0.5), nn.Linear(9, 3)), "draws at random"),
        (Counting, "a buffer changes in training"),
        (Assigning, "buffer 'calls' changes in training"),
        (Peeking, "vmap"),
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_what_cannot_be_vectorized_is_trained_by_learners_with_a_word_of_why(
    model: Callable[[], nn.Module], why: str, workers: int
) -> None:
    given = problem(model, rounds=4, workers=workers)
    ending, book = run(given)
    assert ending.facts["path"] == "learners"
    assert len(book.said) == 1
    assert book.said[0].startswith("the model is trained peer by peer, which is slower: ")
    assert why in book.said[0]
    assert gap(ending.vectors, reference(given)[0]) < 1e-11


def test_hooks_keep_a_module_off_the_dense_path() -> None:
    def hooked() -> nn.Module:
        model = mlp()
        model.register_forward_hook(lambda module, inputs, output: 2 * output)
        return model

    given = problem(hooked, rounds=2)
    ending, _ = run(given)
    assert (ending.facts["path"], ending.facts["why"]) == ("vectorized", "hooks")
    assert gap(ending.vectors, reference(given)[0]) < 1e-11


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_any_number_of_workers_gives_the_same_bits_and_reports(path: str, dtype: str) -> None:
    one, alone = run(problem(rounds=3, dtype=dtype), path)
    three, crowd = run(problem(rounds=3, dtype=dtype, workers=3), path)
    assert (one.facts["workers"], three.facts["workers"]) == (1, 3)
    assert torch.equal(one.vectors, three.vectors)
    for a, b in zip(alone.reports, crowd.reports, strict=True):
        for name in ("train_loss", "neighbor_distance", "test_loss", "test_accuracy"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert (a.mean_loss, a.mean_accuracy) == (b.mean_loss, b.mean_accuracy)
        assert a.consensus_distance == pytest.approx(b.consensus_distance)


@pytest.mark.parametrize("graph", [nx.complete_graph(25), nx.complete_graph(12), nx.cycle_graph(12)])
def test_dense_mixing_has_the_same_bits_with_any_number_of_workers(graph: "nx.Graph[int]") -> None:
    schedule = Schedule.of(Topology.from_networkx(graph, "dense"))
    sizes = tuple(4 + node % 3 for node in graph)
    (one, alone), *others = (
        run(problem(sizes=sizes, schedule=schedule, rounds=2, dtype="float32", workers=workers))
        for workers in (1, 2, 3)
    )
    for ending, crowd in others:
        assert torch.equal(one.vectors, ending.vectors)
        for a, b in zip(alone.reports, crowd.reports, strict=True):
            np.testing.assert_array_equal(a.neighbor_distance, b.neighbor_distance)


@pytest.mark.parametrize(("path", "workers"), [("dense", 1), ("learners", 1), ("dense", 2)])
def test_others_of_this_process_may_draw_while_a_run_goes_on(path: str, workers: int) -> None:
    free: list[bool] = []

    def draw() -> None:
        free.append(GENERATOR.acquire(blocking=False))
        if free[-1]:
            GENERATOR.release()

    def at_report(report: RoundReport) -> None:
        other = threading.Thread(target=draw)
        other.start()
        other.join()

    run(problem(rounds=2, workers=workers), path, at_report=at_report)
    assert free == [True, True]


def test_inputs_need_not_lie_in_one_piece() -> None:
    data = classes()
    turned = replace(data, train=Examples(data.train.inputs.transpose(2, 3), data.train.targets))
    assert not turned.train.inputs.is_contiguous()
    whole = replace(data, train=Examples(turned.train.inputs.contiguous(), data.train.targets))
    for path in PATHS:
        ours, theirs = (run(problem(data=one, rounds=1, dtype="float32"), path)[0].vectors for one in (turned, whole))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("path", PATHS)
def test_a_run_that_goes_on_is_the_run_that_never_stopped(path: str) -> None:
    given = problem(rounds=6, dtype="float32")
    whole, book = run(given, path)
    assert sorted(book.kept) == [0, 1, 2, 3, 4, 5]
    rest, later = run(given, path, Begin(3, book.kept[3]))
    assert torch.equal(rest.vectors, whole.vectors)
    assert [report.round for report in later.reports] == [3, 4, 5]


def test_it_ends_after_the_round_in_which_the_keeper_says_stop() -> None:
    given = problem(rounds=6, evaluate_every=6)
    ending, book = run(given, stop_after=2)  # in the third
    assert (ending.round, len(book.reports)) == (3, 3)
    assert torch.equal(ending.vectors, run(given)[1].kept[3])
    assert [report.evaluated for report in book.reports] == [False, False, True]  # its figures are those of its end


def test_the_report_is_what_the_formulas_say() -> None:
    given = problem(rounds=1, schedule=Schedule.of(Topology.from_networkx(nx.star_graph(5), "star")))
    ending, book = run(given)
    (report,) = book.reports
    x = ending.vectors.numpy()
    mean = x.mean(axis=0)
    assert report.consensus_distance == pytest.approx(((x - mean) ** 2).sum(axis=1).mean(), rel=1e-12)
    assert report.norm == pytest.approx(np.linalg.norm(mean), rel=1e-12)
    size = layout_of(given.build()).framed_bytes
    assert report.share_bytes == size
    assert report.neighbors.tolist() == [5, 1, 1, 1, 1, 1]
    assert report.bytes_sent.tolist() == [5 * size, size, size, size, size, size]
    assert report.present.all()
    trained, _ = run(problem(rounds=1, algorithm="alone"))  # the same before mixing
    y = trained.vectors.numpy()
    apart = ((y[1:] - y[0]) ** 2).sum(axis=1)
    np.testing.assert_allclose(report.neighbor_distance, [apart.mean(), *apart], rtol=1e-10)


def test_evaluations_come_at_their_rounds_and_at_the_last() -> None:
    _, book = run(problem(rounds=5, evaluate_every=2))
    assert [report.evaluated for report in book.reports] == [False, True, False, True, True]
    assert book.reports[0].test_accuracy is None
    assert book.reports[0].mean_loss is None


def test_the_averaged_model_is_evaluated_too() -> None:
    given = problem(rounds=2)
    ending, book = run(given)
    module = given.build()
    nn.utils.vector_to_parameters(ending.vectors.mean(dim=0), module.parameters())
    assert given.test is not None
    inputs, targets = given.test.batch(torch.arange(20))
    with torch.no_grad():
        output = module(inputs.double())
    assert book.reports[-1].mean_loss == pytest.approx(float(nn.functional.cross_entropy(output, targets)), rel=1e-12)
    assert book.reports[-1].mean_accuracy == float((output.argmax(1) == targets).double().mean())


@pytest.mark.parametrize("workers", [1, 2])
def test_alone_nobody_shares_and_fedavg_gives_everybody_the_exact_average(workers: int) -> None:
    alone, lonely = run(problem(rounds=1, algorithm="alone", workers=workers))
    fedavg, level = run(problem(rounds=1, algorithm="fedavg", workers=workers))
    assert gap(fedavg.vectors, alone.vectors.mean(dim=0).expand_as(fedavg.vectors)) < 1e-15
    assert level.reports[0].consensus_distance < 1e-30
    for report in (*lonely.reports, *level.reports):
        assert (len(report.arcs), report.bytes_sent.sum(), report.neighbors.sum()) == (0, 0, 0)
        assert np.isnan(report.neighbor_distance).all()
    given = problem(rounds=4, algorithm="alone")
    assert gap(run(given)[0].vectors, reference(given)[0]) < 1e-12


def test_one_peer_trains_by_itself() -> None:
    given = problem(rounds=3, sizes=(30,), algorithm="pooled")
    assert gap(run(given)[0].vectors, reference(given)[0]) < 1e-12


@pytest.mark.parametrize("workers", [1, 2])
def test_each_round_mixes_by_its_own_topology(workers: int) -> None:
    pairs = [Topology("even", 6, ((0, 1), (2, 3), (4, 5))), Topology("odd", 6, ((1, 2), (3, 4), (0, 5)))]
    drawn = [Topology("some", 6, ((0, round + 1),)) for round in range(5)]
    for schedule in (Schedule("pairs", 6, 2, pairs.__getitem__), Schedule("drawn", 6, None, drawn.__getitem__)):
        given = problem(rounds=5, schedule=schedule, workers=workers)
        ending, book = run(given)
        assert gap(ending.vectors, reference(given)[0]) < 1e-12
        for round, report in enumerate(book.reports):
            assert report.arcs.tolist() == [list(arc) for arc in schedule.at(round).arcs]


def test_weights_are_those_of_live_peers() -> None:
    topology = Topology.from_networkx(nx.path_graph(6), "path")
    given = problem(rounds=1, schedule=Schedule.of(topology))
    y = run(problem(rounds=1, algorithm="alone"))[0].vectors
    wanted = [sum(w * y[j] for j, w in mixing_weights(topology, i).items()) for i in range(6)]
    assert gap(run(given)[0].vectors, torch.stack(wanted)) < 1e-15  # type: ignore[arg-type]  # no sum is empty


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("path", PATHS)
def test_a_loss_that_is_not_finite_ends_the_run(path: str, workers: int) -> None:
    given = problem(lambda: nn.Sequential(nn.Linear(5, 2)), numbers(), lr=1e12, workers=workers)
    with pytest.raises(TrainingError, match=r"the training loss.* became (nan|inf) in round \d+; lower --lr"):
        run(given, path)
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_ends_the_run() -> None:
    def kill(report: RoundReport) -> None:
        child = multiprocessing.active_children()[0]
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"a worker process of the simulation ended with signal 9; .*workers = 1"):
        run(problem(workers=2), at_report=kill)
    assert multiprocessing.active_children() == []


def test_an_error_of_a_users_own_module_is_told_with_its_place() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(12, 3)
            self.calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls > 20:
                raise KeyError("too often")
            return self.last(x.flatten(1))  # type: ignore[no-any-return]  # a module's call

    with pytest.raises(P2pflError, match=r"KeyError: 'too often' \(.*test_matrix_engine.py, line \d+\)"):
        run(problem(Late, workers=2), "learners")


def test_ctrl_c_leaves_no_worker() -> None:
    def interrupt(report: RoundReport) -> None:
        assert len(multiprocessing.active_children()) == 2
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(problem(workers=2), at_report=interrupt)
    assert multiprocessing.active_children() == []


ORPHANS = """
import os, sys
sys.path[:0] = [{tests!r}]
from test_matrix_engine import problem, run
import multiprocessing

def tell(report):
    if report.round == 0:
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        sys.stdin.read()

run(problem(workers=2), at_report=tell)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_of_a_killed_run_leave_too() -> None:
    program = ORPHANS.format(tests=os.path.dirname(__file__))  # noqa: PTH120  # a path for another program's text
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        line = parent.stdout.readline()
        if not line:
            pytest.fail(parent.stderr.read())
        assert len(line.split()) == 2
        parent.kill()
        # The workers hold the other ends of these: they end when the last worker does.
        assert parent.stdout.read() == ""
        assert parent.stderr.read() == ""


def test_what_it_cannot_run_it_says_with_the_mend() -> None:
    engine = MatrixEngine()
    assert engine.objection(problem()) == ""
    assert "loss_rate is 0.1: take the event engine" in engine.objection(problem(loss_rate=0.1))
    assert "churn is leave@7=2: take the event engine" in engine.objection(problem(churn="leave@7=2"))
    assert "peer 1 has no examples" in engine.objection(problem(sizes=(3, 0, 3)))
    assert "no device 'tpu'" in engine.objection(problem(device="tpu"))


def test_small_work_is_done_without_workers() -> None:
    assert run(problem(rounds=2, workers=0))[0].facts["workers"] == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("path", PATHS)
def test_on_a_gpu_it_agrees(path: str) -> None:
    given = problem(rounds=5, device="cuda")
    assert gap(run(given, path)[0].vectors, reference(problem(rounds=5))[0]) < 1e-9


def test_the_best_path_is_told_with_why_no_better_one() -> None:
    cpu = torch.device("cpu")
    assert best_path(problem(), torch.float64, cpu) == ("dense", "")
    assert best_path(problem(Tied), torch.float64, cpu) == ("vectorized", "a Tied")
