"""Facts of the event engine: the bits of live peers, and what faults do in virtual time."""

import asyncio
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from p2pfl.errors import RecipeError, TrainingError
from p2pfl.events import RoundFinished, RunEvent, ShareReceived, ShareRejected, Started, ViewTaken
from p2pfl.learning.data import data_of
from p2pfl.local import LocalNetwork
from p2pfl.network.discovery import MemoryDiscovery, MemoryLan
from p2pfl.network.http import HttpTransport
from p2pfl.partition import iid
from p2pfl.peer import Peer, Result
from p2pfl.protocol.joining import RETRY_S
from p2pfl.recipe import Recipe
from p2pfl.simulation.engine import Begin, Ending, RoundReport
from p2pfl.simulation.event import DETECTION_S, EventEngine
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.world import World

CHANGING = "one-peer-exponential"  # every round has other links, which go one way


def examples(n: int = 96) -> Any:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 4, generator=generator)
    return data_of((x, (x @ torch.tensor([1.0, -2.0, 0.5, 1.0]) > 0).long()), (x[:32], (x[:32].sum(1) > 0).long()))


def module(dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(7)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Dropout(dropout), nn.Linear(6, 2))


def problem(build: Callable[[], nn.Module] = module, **settings: Any) -> Problem:
    given: dict[str, Any] = {"peers": 6, "rounds": 4, "batch_size": 5, "batched": False, "lr": 0.1, **settings}
    recipe = Recipe(**given)
    data = examples(16 * recipe.peers)
    parts = iid(len(data.train), recipe.peers, 1)
    names = tuple(map(str, range(recipe.peers)))
    schedule = recipe.schedule(recipe.peers)
    return Problem(recipe, data, parts, data.test, schedule, build, None, names)


class Kept:
    """A keeper that keeps everything."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.reports: list[RoundReport] = []
        self.vectors: dict[int, torch.Tensor] = {}
        self.warnings: list[str] = []
        self._stop_after = stop_after

    def report(self, report: RoundReport) -> None:
        self.reports.append(report)

    def keep(self, round: int, vectors: Callable[[], torch.Tensor]) -> None:
        self.vectors[round] = vectors().clone()

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @property
    def stopped(self) -> bool:
        return self._stop_after is not None and len(self.reports) >= self._stop_after


def run(problem: Problem, begin: Begin | None = None, **engine: Any) -> tuple[Ending, Kept]:
    kept = Kept()
    return EventEngine(**engine).run(problem, kept, begin or Begin(0)), kept


def live(problem: Problem) -> torch.Tensor:
    """The models of live peers inside this process."""
    recipe = problem.recipe
    keys = ("topology", "mixing", "rounds", "seed", "epochs", "steps", "lr", "batch_size")
    settings = {key: getattr(recipe, key) for key in keys if key != "steps" or recipe.steps}
    if recipe.steps:
        del settings["epochs"]
    network = LocalNetwork(**settings)
    for peer in range(problem.peers):
        part = problem.examples(peer)
        network.add(
            f"n{peer}", problem.build(), (part.inputs, part.targets), problem.test, seat=str(peer), device="cpu"
        )
    results = network.run()
    return stacked(results[f"n{peer}"] for peer in range(problem.peers))


def stacked(results: Iterable[Result]) -> torch.Tensor:
    return torch.stack([result.vector for result in results if result.vector is not None])


def dropping() -> nn.Module:
    return module(0.3)


@pytest.mark.parametrize(
    ("topology", "build"), [("ring", module), ("random-regular:k=3,seed=1", dropping), (CHANGING, dropping)]
)
def test_models_are_those_of_live_peers_bit_for_bit_whatever_messages_take(
    topology: str, build: Callable[[], nn.Module]
) -> None:
    wanted = live(problem(build, topology=topology, rounds=8))
    for world in (
        {},
        {"latency": "exponential:mean=0.05", "step_s": "uniform:low=0.001,high=0.05", "bandwidth": "0.1"},
    ):
        ending, kept = run(problem(build, topology=topology, rounds=8, **world))
        assert not ending.failures
        assert [report.round for report in kept.reports] == list(range(8))
        assert torch.equal(ending.vectors, wanted)
    times = [report.simulated_time_s for report in kept.reports]
    assert all(time.min() + 0.02 < time.max() for time in times)  # peers were in different rounds at one time
    if topology == "ring":
        assert any(after.min() < before.max() for before, after in pairwise(times))  # some a whole round ahead


def test_models_are_those_of_peers_over_http_bit_for_bit() -> None:
    case = problem(peers=3, rounds=3)

    async def over_http() -> torch.Tensor:
        lan = MemoryLan()
        peers = []
        for index in range(3):
            part = case.examples(index)
            peers.append(
                Peer(
                    f"n{index}",
                    case.build(),
                    (part.inputs, part.targets),
                    case.test,
                    seat=str(index),
                    device="cpu",
                    network="n",
                    transport=HttpTransport(("127.0.0.1",), 0),
                    discovery=lambda found, _: MemoryDiscovery(lan, "n", found),
                    topology="ring",
                    rounds=3,
                    batch_size=5,
                    min_peers=3,
                    min_deadline_s=60.0,
                )
            )
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            tasks = [group.create_task(peer.run()) for peer in peers]
        return stacked(task.result() for task in tasks)

    wanted = asyncio.run(over_http())
    assert torch.equal(run(case)[0].vectors, wanted)


def test_training_together_changes_bits_and_nothing_else() -> None:
    settings: dict[str, Any] = {"dtype": "float64", "rounds": 6, "steps": 3}

    def double() -> nn.Module:
        return module().double()

    alone, _ = run(problem(double, **settings))
    together, kept = run(problem(double, **settings, batched=True))
    assert together.facts["trained"] == "together"
    assert torch.allclose(together.vectors, alone.vectors, rtol=0, atol=1e-12)
    assert not kept.warnings


def test_together_and_one_by_one_report_the_same_figures() -> None:
    (_, one), (_, many) = (run(problem(batched=batched)) for batched in (False, True))
    for a, b in zip(one.reports, many.reports, strict=True):
        for name in ("train_loss", "neighbor_distance", "test_loss", "test_accuracy", "wait_s", "simulated_time_s"):
            assert np.allclose(getattr(a, name), getattr(b, name), atol=1e-5), name
        assert a.consensus_distance == pytest.approx(b.consensus_distance, rel=1e-4)
        assert a.mean_loss == pytest.approx(b.mean_loss, rel=1e-4)


def test_a_module_that_cannot_be_batched_trains_one_by_one_and_says_why() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = module()

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            outputs: torch.Tensor = self.layer(inputs)
            return outputs if float(outputs.sum()) > 0 else outputs * 1.0

    def build() -> nn.Module:
        looks = Looks()
        looks.load_state_dict({f"layer.{name}": value for name, value in module().state_dict().items()})
        return looks

    ending, kept = run(problem(build, batched=True))
    assert ending.facts["trained"] == "one by one"
    assert "they train one by one" in kept.warnings[0]
    assert torch.equal(ending.vectors, run(problem())[0].vectors)


def test_a_module_whose_peers_would_share_a_count_trains_one_by_one() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = module(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            out: torch.Tensor = self.inner(x) * (1 + 0.01 * self.calls)
            return out

    ending, kept = run(problem(Counting, rounds=2, batched=True))
    assert ending.facts["trained"] == "one by one"
    assert "the module changes an attribute of its own in training" in kept.warnings[0]
    assert run(problem(rounds=1, batched=True))[0].facts["trained"] == "together"
    dropped = problem(lambda: module(0.5), rounds=1, batched=True)
    assert run(dropped)[0].facts["trained"] == "together"


def test_time_is_that_of_steps_messages_and_transfers() -> None:
    _, kept = run(problem(rounds=2, steps=3, step_s="0.1", latency="0.01", bandwidth="0.001"))
    size = kept.reports[0].share_bytes
    round_s = 3 * 0.1 + 3 * 0.01 + size / 1000.0  # an offer, a request and a body
    assert kept.reports[0].simulated_time_s.tolist() == pytest.approx([round_s] * 6)
    assert kept.reports[1].simulated_time_s.tolist() == pytest.approx([2 * round_s] * 6)
    assert kept.reports[1].train_s.tolist() == pytest.approx([0.3] * 6)
    assert kept.reports[1].wait_s.tolist() == pytest.approx([round_s - 0.3] * 6)


def test_a_report_counts_every_share_and_its_bytes() -> None:
    _, kept = run(problem(rounds=1))
    report = kept.reports[0]
    assert sorted(map(tuple, report.arcs.tolist())) == sorted(
        (a, b) for a in range(6) for b in ((a + 1) % 6, (a - 1) % 6)
    )
    assert report.bytes_sent.tolist() == report.bytes_received.tolist() == [2 * report.share_bytes] * 6
    assert report.steps.tolist() == [4] * 6  # 16 examples in batches of 5
    models = kept.vectors[1].double()
    assert report.consensus_distance == pytest.approx(float((models - models.mean(0)).square().sum(1).mean()), rel=1e-5)


def test_alone_nobody_averages_and_no_time_goes_to_messages() -> None:
    ending, kept = run(problem(algorithm="alone", rounds=2, steps=2, step_s="1"))
    assert all(len(report.arcs) == 0 for report in kept.reports)
    assert kept.reports[-1].simulated_time_s.tolist() == [4.0] * 6
    assert ending.failures == {}


def test_other_algorithms_and_devices_are_for_the_matrix_engine() -> None:
    assert "engine = matrix" in EventEngine().objection(problem(algorithm="fedavg"))
    assert "engine = matrix" in EventEngine().objection(problem(device="cuda"))
    assert EventEngine().objection(problem()) == ""
    assert "latency" in EventEngine().objection(problem(latency="soon"))


# Going on, and ending


def test_a_run_that_goes_on_from_kept_vectors_ends_with_the_same_bits() -> None:
    whole, kept = run(problem())
    rest, again = run(problem(), Begin(2, kept.vectors[2]))
    assert [report.round for report in again.reports] == [2, 3]
    assert torch.equal(rest.vectors, whole.vectors)


def test_churn_would_begin_anew_so_a_run_with_it_does_not_go_on() -> None:
    case = problem(rounds=3, churn="leave@100=2")
    _, kept = run(case)
    with pytest.raises(RecipeError, match=r"cannot go on from round 2: .* run it from its beginning"):
        run(case, Begin(2, kept.vectors[2]))


def test_a_run_that_is_stopped_ends_after_the_round_under_way_with_its_models() -> None:
    _, whole = run(problem())
    kept = Kept(stop_after=1)
    ending = EventEngine().run(problem(), kept, Begin(0))
    assert ending.round == len(kept.reports) == 2
    assert torch.equal(ending.vectors, whole.vectors[2])
    assert kept.reports[-1].evaluated


def test_rounds_are_evaluated_when_due_and_at_the_end() -> None:
    _, kept = run(problem(rounds=5, evaluate_every=2))
    assert [report.evaluated for report in kept.reports] == [False, True, False, True, True]


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    for batched in (False, True):
        with pytest.raises(TrainingError, match="lower"):
            run(problem(lr=1e30, batched=batched))


def test_the_events_of_a_run_are_those_of_live_peers_in_order_of_virtual_time() -> None:
    told: list[RunEvent] = []
    _, kept = run(problem(rounds=2), sink=told.append)
    finished = [event for event in told if isinstance(event, RoundFinished)]
    assert len(finished) == 12
    assert sum(isinstance(event, ShareReceived) for event in told) == 24
    assert [event.time_s for event in told] == sorted(event.time_s for event in told)
    last = sorted((event for event in finished if event.round == 1), key=lambda event: event.peer)
    assert [event.train_loss for event in last] == kept.reports[1].train_loss.tolist()
    assert [event.test_accuracy for event in last] == kept.reports[1].test_accuracy.tolist()  # type: ignore[union-attr]  # evaluated


# Faults


def test_lost_shares_are_counted_tried_again_and_their_weight_goes_to_self() -> None:
    case = problem(rounds=8, loss_rate=0.3)
    ending, kept = run(case)
    lost = sum(12 - len(report.arcs) for report in kept.reports)
    assert ending.failures == {"broken off": lost}
    assert 10 <= lost <= 50  # of 96, 29 expected
    assert [report.present.all() for report in kept.reports] == [True] * 8
    missing = set(range(6)) - set(kept.reports[0].arcs[kept.reports[0].arcs[:, 1] == 0][:, 0].tolist()) - {0}
    assert missing  # else this test shows nothing
    # A share is lost with its round, sender and receiver: other latencies lose the same.
    other, same = run(problem(rounds=8, loss_rate=0.3, latency="exponential:mean=0.01"))
    assert [report.arcs.shape for report in same.reports] == [report.arcs.shape for report in kept.reports]
    assert torch.equal(other.vectors, ending.vectors)


def test_bytes_are_counted_where_they_are_sent_whether_they_arrive_or_not() -> None:
    # Both shares are fetched three times, and lost every time.
    _, kept = run(problem(peers=2, rounds=1, steps=1, loss_rate=0.999999))
    report = kept.reports[0]
    assert report.bytes_sent.tolist() == [3 * report.share_bytes] * 2
    assert report.bytes_received.tolist() == [0, 0]


def test_a_fetch_that_breaks_off_is_tried_three_times() -> None:
    case = problem(peers=2, rounds=1, steps=1, step_s="1", latency="0.1", loss_rate=0.999999)
    ending, kept = run(case)
    assert ending.failures == {"broken off": 2}
    assert kept.reports[0].simulated_time_s.tolist() == pytest.approx([1 + 0.1 + 3 * 0.2] * 2)


def test_a_crashed_peer_is_dropped_and_the_others_go_on_without_it() -> None:
    told: list[RunEvent] = []
    case = problem(rounds=60, steps=1, step_s="0.05", churn="crash@0.2=2")
    ending, kept = run(case, sink=told.append)
    present = [report.present.tolist() for report in kept.reports]
    assert present[0] == [True] * 6
    assert present[-1] == [True, True, False, True, True, True]
    assert len(kept.reports) == ending.round == 60
    missed = [event for event in told if isinstance(event, ShareRejected)]
    assert missed  # it was waited for, and in vain
    assert {event.other for event in missed} == {"peer000002"}
    assert max(event.time_s for event in missed) < 0.2 + DETECTION_S + 0.5
    views = {event.members for event in told if isinstance(event, ViewTaken)}
    assert views == {("0", "1", "2", "3", "4", "5"), ("0", "1", "3", "4", "5")}  # the ring is closed around it
    gaps = np.diff([np.nanmax(report.simulated_time_s) for report in kept.reports])
    assert gaps.max() < DETECTION_S + 0.2  # the one round in which nobody knew
    assert np.median(gaps) < 0.1


def test_a_peer_that_leaves_says_so_and_holds_nobody_up() -> None:
    _, kept = run(problem(rounds=30, steps=1, step_s="0.05", churn="leave@0.2=2"))
    assert kept.reports[-1].present.tolist() == [True, True, False, True, True, True]
    assert np.diff([np.nanmax(report.simulated_time_s) for report in kept.reports]).max() < 0.15


def test_a_newcomer_begins_with_a_members_model_and_takes_part() -> None:
    case = problem(rounds=40, steps=1, step_s="0.05", churn="join@0.5=5")
    ending, kept = run(case)
    joined = [bool(report.present[5]) for report in kept.reports]
    first = joined.index(True)
    assert not any(joined[:first])
    assert all(joined[first:])
    assert 5 < first < 15
    assert any(5 in report.arcs[:, 0] for report in kept.reports[first : first + 3])  # its share counts at others
    spread = (ending.vectors - ending.vectors.mean(0)).norm(dim=1)
    assert spread[5] < 2 * spread[:5].max()
    assert (ending.vectors[5] - kept.vectors[0 + 1][5]).norm() > 10 * spread[5]  # from the initial weights, far away


def test_a_crashed_peer_that_comes_back_joins_anew_and_may_crash_again() -> None:
    told: list[RunEvent] = []
    case = problem(rounds=80, steps=1, step_s="0.05", churn="crash@0.2=2;join@2=2;crash@3.5=2")
    ending, kept = run(case, sink=told.append)
    assert ending.round == 80
    there = [int(bool(report.present[2])) for report in kept.reports]
    assert np.diff(there).tolist().count(1) == 1
    assert np.diff(there).tolist().count(-1) == 2  # there, gone, back, and gone again
    began = [event.time_s for event in told if isinstance(event, Started) and event.peer == "peer000002"]
    assert len(began) == 2
    assert 2 < began[1] < 3
    missed = [event.time_s for event in told if isinstance(event, ShareRejected)]
    assert max(missed) < 3.5 + DETECTION_S + 0.5  # nobody waits for it any more


def test_a_newcomer_whose_member_crashes_asks_another_one() -> None:
    # Peer 0 is asked first, and crashes before it can answer.
    told: list[RunEvent] = []
    case = problem(rounds=80, steps=1, step_s="0.2", churn="join@0.5=5;crash@0.6=0")
    _, kept = run(case, sink=told.append)
    (began,) = (event.time_s for event in told if isinstance(event, Started) and event.peer == "peer000005")
    assert began > 0.5 + RETRY_S  # the first one it asked never answered
    assert kept.reports[-1].present.tolist() == [False, True, True, True, True, True]


def test_a_straggler_trains_fewer_steps_and_holds_nobody_up_for_longer_than_the_rule() -> None:
    case = problem(
        rounds=12, steps=10, step_s="lognormal:median=0.1,sigma=1.2", min_deadline_s=0.1, patience=2.0, seed=5
    )
    ending, kept = run(case)
    full_s = 10 * np.array(World(case.recipe, case.names).step_s)
    slowest = int(full_s.argmax())
    assert full_s[slowest] > 3 * np.median(full_s)  # there is a straggler
    steps = np.stack([report.steps for report in kept.reports])
    assert steps[0, slowest] == 10  # nobody knows in the first round
    assert all(steps[1:, slowest] < 10)
    assert steps[1:, slowest].max() > 0  # it takes part nevertheless
    ends = np.array([report.simulated_time_s for report in kept.reports])
    others = [peer for peer in range(6) if peer != slowest]
    assert np.nanmax(np.diff(ends[:, others], axis=0)) < full_s[slowest]
    assert ending.failures  # shares that came too late


def test_everybody_gone_ends_the_run_with_a_word() -> None:
    ending, kept = run(problem(rounds=50, steps=1, step_s="0.1", churn="crash@0.55=0+1+2+3+4+5"))
    assert 0 < ending.round < 50
    assert "nobody is left" in kept.warnings[0]
    assert ending.facts["ended"] == f"nobody was left after round {ending.round}"
    assert "ended" not in run(problem(rounds=1))[0].facts


def test_the_same_recipe_gives_the_same_run() -> None:
    settings: dict[str, Any] = {
        "rounds": 20,
        "steps": 1,
        "latency": "exponential:mean=0.02",
        "step_s": "uniform:low=0.01,high=0.05",
        "loss_rate": 0.1,
        "churn": "crash:rate=0.2;join@0.2=5",
    }
    first, once = run(problem(**settings))
    second, twice = run(problem(**settings))
    assert torch.equal(first.vectors, second.vectors)
    for a, b in zip(once.reports, twice.reports, strict=True):
        assert np.array_equal(a.simulated_time_s, b.simulated_time_s, equal_nan=True)
