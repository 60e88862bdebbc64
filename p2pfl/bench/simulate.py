"""How fast simulations run: the matrix engine against plain loops over modules, its growth, and the event engine."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from p2pfl.bench.children import peak_mb, reset_peak, resident_mb
from p2pfl.errors import P2pflError
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.learning.data import load_data
from p2pfl.learning.models import build_model
from p2pfl.recipe import Recipe
from p2pfl.simulation.engine import Begin, Engine, RoundReport
from p2pfl.simulation.matrix import MatrixEngine
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.workers import cores, one_thread

if TYPE_CHECKING:
    from p2pfl.learning.examples import Data

_WARM_UP = 1  # rounds left out: first touches of memory
_LOOK_S = 0.02
_MB = 1e6


@dataclass(frozen=True)
class Sizes:
    """How large the measurements are. The names of the figures tell the whole ones."""

    peers: int = 256
    many: int = 4096
    samples: int = 600
    rounds: int = 5
    many_rounds: int = 3
    turns: int = 5
    event_peers: int = 1000
    event_rounds: int = 100


QUICK = Sizes(peers=8, many=16, samples=64, rounds=2, many_rounds=2, turns=1, event_peers=16, event_rounds=3)


def measure(sizes: Sizes) -> dict[str, Any]:
    """Everything that `p2pfl bench simulate` shows; what is compared takes turns, medians over these."""
    data = load_data("mnist10k")
    with one_thread():
        return {
            "workers": cores(),
            "mlp_256": _against_loop(_problem(data, "mlp:hidden=100", sizes.peers, sizes), sizes),
            "logistic_256": _against_loop(_problem(data, "logistic", sizes.peers, sizes), sizes),
            "growth": _growth(data, sizes),
            "event_1000": _child("event", sizes.event_peers, sizes.event_rounds),
        }


def _problem(data: "Data", model: str, peers: int, sizes: Sizes) -> Problem:
    """A ring of peers with so many examples each, drawn with repetition; nothing is evaluated."""
    rng = np.random.default_rng(0)
    parts = tuple(np.sort(rng.integers(0, len(data.train), sizes.samples)) for _ in range(peers))
    ring = Topology("ring", peers, tuple((i, (i + 1) % peers) for i in range(peers)))
    recipe = Recipe(
        peers=peers,
        model=model,
        rounds=sizes.rounds if peers == sizes.peers else sizes.many_rounds,
        samples=sizes.samples,
        batch_size=32,
        workers=cores(),
    )

    def build() -> nn.Module:
        return build_model(model, data.input_shape, data.outputs)

    return Problem(recipe, data, parts, None, Schedule.of(ring), build, None, tuple(map(str, range(peers))))


# Steps a second


def _against_loop(problem: Problem, sizes: Sizes) -> dict[str, Any]:
    plain, bare = _PlainLoop(problem), _BareLoop(problem)
    ways: Mapping[str, Callable[[], float]] = {
        "steps_per_s": lambda: _steps_per_s(MatrixEngine(), problem),
        "loop_steps_per_s": plain.steps_per_s,
        "bare_loop_steps_per_s": bare.steps_per_s,
        "vmap_steps_per_s": lambda: _steps_per_s(MatrixEngine("vectorized"), problem),
    }
    turns = [{name: way() for name, way in ways.items()} for _ in range(sizes.turns)]
    figures: dict[str, Any] = {name: statistics.median(turn[name] for turn in turns) for name in ways}
    for name, over, under in (
        ("ratio", "steps_per_s", "loop_steps_per_s"),
        ("bare_ratio", "steps_per_s", "bare_loop_steps_per_s"),
        ("vmap_ratio", "vmap_steps_per_s", "loop_steps_per_s"),
    ):
        ratios = sorted(turn[over] / turn[under] for turn in turns)
        figures |= {name: statistics.median(ratios), f"{name}_by_turn": ratios}
    return figures


def _steps_per_s(engine: Engine, problem: Problem) -> float:
    """Over whole rounds: training, mixing, and what a round's report is made of."""
    reports = _reports(engine, problem)[_WARM_UP:]
    return float(sum(report.steps.sum() for report in reports) / sum(report.wall_s for report in reports))


def _reports(engine: Engine, problem: Problem) -> list[RoundReport]:
    keeper = _Keeper()
    engine.run(problem, keeper, Begin(0))
    return keeper.reports


class _Keeper:
    """Keeps the reports."""

    stopped = False

    def __init__(self) -> None:
        self.reports: list[RoundReport] = []

    def report(self, report: RoundReport) -> None:
        self.reports.append(report)

    def keep(self, round: int, vectors: Callable[[], torch.Tensor]) -> None:
        return

    def warn(self, text: str) -> None:
        return


class _Loop:
    """A module a peer, trained one after the other by one thread; each is mixed with its two neighbors on the ring."""

    def __init__(self, problem: Problem) -> None:
        self._modules = [problem.build() for _ in range(problem.peers)]
        self._inputs, self._targets = problem.data.train.batch(torch.arange(len(problem.data.train)))
        self._parts = [torch.from_numpy(part) for part in problem.parts]
        self._recipe = problem.recipe

    def steps_per_s(self) -> float:
        """Of a round: training and mixing."""
        begun = time.perf_counter()
        steps = sum(self._train(peer) for peer in range(len(self._modules)))
        self._mix()
        return steps / (time.perf_counter() - begun)

    def _train(self, peer: int) -> int:
        """Train a peer for an epoch; its steps."""
        raise NotImplementedError

    def _mix(self) -> None:
        before = [[parameter.detach().clone() for parameter in module.parameters()] for module in self._modules]
        with torch.no_grad():
            for i, module in enumerate(self._modules):
                sides = zip(before[i - 1], before[(i + 1) % len(before)], strict=True)
                for parameter, (left, right) in zip(module.parameters(), sides, strict=True):
                    parameter.add_(left).add_(right).mul_(1 / 3)


class _PlainLoop(_Loop):
    """As such loops are written: `torch.optim.SGD` and examples of its own for each peer, indexed batch by batch."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self._optimizers = [torch.optim.SGD(module.parameters(), lr=self._recipe.lr) for module in self._modules]
        self._examples = [(self._inputs[part], self._targets[part]) for part in self._parts]
        self.steps_per_s()

    def _train(self, peer: int) -> int:
        module, optimizer, (inputs, targets) = self._modules[peer], self._optimizers[peer], self._examples[peer]
        order, size = torch.randperm(len(inputs)), self._recipe.batch_size
        starts = range(0, len(order), size)
        for begin in starts:
            batch = order[begin : begin + size]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(module(inputs[batch]), targets[batch])
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotations there
            optimizer.step()
        return len(starts)


class _BareLoop(_Loop):
    """As such loops run fastest.

    Inputs are shared by all, a peer's examples are gathered once an epoch, SGD is written out (`torch.optim` costs
    more), and gradients are handed over instead of added to old ones.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        self.steps_per_s()

    def _train(self, peer: int) -> int:
        module, part, size = self._modules[peer], self._parts[peer], self._recipe.batch_size
        order = part[torch.randperm(len(part))]
        parameters = list(module.parameters())
        batches = list(
            zip(torch.split(self._inputs[order], size), torch.split(self._targets[order], size), strict=True)
        )
        for inputs, targets in batches:
            loss = nn.functional.cross_entropy(module(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotations there
            with torch.no_grad():
                for parameter in parameters:
                    assert parameter.grad is not None
                    parameter.add_(parameter.grad, alpha=-self._recipe.lr)
                    parameter.grad = None
        return len(batches)


# Growth and memory


def _growth(data: "Data", sizes: Sizes) -> dict[str, Any]:
    few, many = (_problem(data, "logistic", peers, sizes) for peers in (sizes.peers, sizes.many))
    turns = [{peers.peers: _s_per_peer(peers) for peers in (few, many)} for _ in range(sizes.turns)]
    ratios = sorted(turn[many.peers] / turn[few.peers] for turn in turns)
    parameters = sum(parameter.numel() * 4 for parameter in many.build().parameters()) * many.peers
    held = (data.train, data.test)
    examples = sum(tensor.nbytes for part in held for tensor in (part.inputs, part.targets))
    return {
        "s_per_peer_256": statistics.median(turn[few.peers] for turn in turns),
        "s_per_peer_4096": statistics.median(turn[many.peers] for turn in turns),
        "ratio": statistics.median(ratios),
        "ratio_by_turn": ratios,
        "peak_mb": _child("memory", many.peers, sizes.samples)["peak_mb"],
        "budget_mb": (4 * parameters + examples + sum(part.nbytes for part in many.parts)) / _MB,
    }


def _s_per_peer(problem: Problem) -> float:
    return statistics.median(report.wall_s for report in _reports(MatrixEngine(), problem)[_WARM_UP:]) / problem.peers


def _memory(peers: int, samples: int) -> dict[str, Any]:
    """In a process of its own, which is looked at from outside."""
    # What a first call imports or sets up is no growth.
    small = Sizes(peers=4, many=4, samples=40, rounds=1, many_rounds=1)
    _reports(MatrixEngine(), _problem(load_data("mnist10k"), "logistic", 4, small))
    print(json.dumps({"ready": True}), flush=True)
    sys.stdin.readline()
    data = load_data("mnist10k")
    _reports(MatrixEngine(), _problem(data, "logistic", peers, Sizes(samples=samples, many_rounds=2, rounds=2)))
    return {}


def _event(peers: int, rounds: int) -> dict[str, Any]:
    """In a process of its own: peers on scikit-learn's digits on the event engine, one step of 16 a round."""
    from p2pfl.simulation.event import EventEngine
    from p2pfl.simulation.resolve import resolve

    recipe = Recipe(
        peers=peers,
        rounds=rounds,
        data="digits",
        samples=32,
        model="mlp:hidden=32",
        batch_size=16,
        steps=1,
        topology="ring",
        engine="event",
        evaluate_every=rounds,
    )
    problem = resolve(recipe)
    reset_peak()
    begun = time.perf_counter()
    reports = _reports(EventEngine(), problem)
    wall_s = time.perf_counter() - begun
    return {"wall_s": wall_s, "peak_mb": peak_mb() * 1.048576, "rounds": len(reports)}


def child(name: str, *arguments: str) -> None:
    """What a process of a measurement does: prints one object at its end."""
    torch.set_num_threads(1)
    print(json.dumps({"memory": _memory, "event": _event}[name](*map(int, arguments))), flush=True)


def _child(name: str, *arguments: int) -> dict[str, Any]:
    """Measure in a fresh process, which may fork workers of its own.

    Where the process says it is ready, the memory of it and its workers is watched from there on: `peak_mb` is the most
    they held together beyond that, pages that they share counted once.
    """
    program = f"from p2pfl.bench.simulate import child; child({name!r}, *{[str(value) for value in arguments]!r})"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdin is not None
            figures = json.loads(process.stdout.readline() or "{}")
            if figures.pop("ready", False):
                before = most = _held_mb(process.pid)
                process.stdin.write("\n")
                process.stdin.flush()
                while process.poll() is None:
                    most = max(most, _held_mb(process.pid))
                    time.sleep(_LOOK_S)  # between looks: no counter keeps the peak of several processes together
                figures = json.loads(process.stdout.readline() or "null")
                if figures is not None:
                    figures["peak_mb"] = most - before
        except BaseException:
            process.kill()
            raise
    if process.returncode or figures is None:
        raise P2pflError("a process of the measurement died; see its message above")
    return dict(figures)


def _held_mb(pid: int) -> float:
    """What a process and its children hold, pages that several share counted once; this one's where nobody tells.

    Pages of files are left out: libraries, whose share depends on who else on this machine has them open.
    """
    root = Path(f"/proc/{pid}")
    if not Path("/proc/self/smaps_rollup").exists():
        return resident_mb()
    try:
        children = [int(text) for text in (root / f"task/{pid}/children").read_text().split()]
        rollup = (root / "smaps_rollup").read_text()
        kinds = [line.split() for line in rollup.splitlines() if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
    except OSError:  # it has ended meanwhile
        return 0.0
    return sum(int(kind[1]) for kind in kinds) * 1024 / _MB + sum(map(_held_mb, children))
