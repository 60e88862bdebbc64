"""What a run measured, what theory predicts for it, and what a few seeds can tell."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recorded import PARAMETERS, SHARE, recorded

from p2pfl.analysis import measures
from p2pfl.analysis.consensus import (
    consensus_distance,
    contraction,
    distance_by_layer,
    implied_drift,
    model_vectors,
    predicted_contraction,
    predicted_distance,
    relative_distance,
)
from p2pfl.analysis.gradients import gradient_heterogeneity, gradients_at
from p2pfl.analysis.measured import members
from p2pfl.analysis.measures import (
    curves,
    final_accuracy,
    jain_index,
    label_heterogeneity,
    references,
    settled,
    spread,
    to_target,
    volume,
)
from p2pfl.analysis.statistics import holm, mean_std, paired, spearman
from p2pfl.errors import DataError, UsageError
from p2pfl.graphs import named
from p2pfl.graphs.mixing import mixing_matrix
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.weighting import weighted
from p2pfl.layout import Layout
from p2pfl.learning.examples import Examples
from p2pfl.recipe import Recipe

RING_16_FLOOR = 1.47208  # theory.md, section 3


def run_of(rows: list[dict[str, object]], **more: object) -> SimpleNamespace:
    """A run of these rows; columns that a test does not need are empty."""
    columns = ("steps", "wall_time_s", "simulated_time_s", "train_loss", "test_loss", "test_accuracy")
    columns += ("consensus_distance", "neighbor_distance", "bytes_sent")
    metrics = pd.DataFrame([dict.fromkeys(columns, np.nan) | {"bytes_sent": 0, "steps": 0} | row for row in rows])
    parts = {
        "recipe": Recipe(),
        "summary": {"accuracy": {"mean": 0.5, "worst": 0.5}},
        "metrics": metrics,
        "edges": pd.DataFrame(columns=["round", "from", "to", "bytes"]),
        "partition": pd.DataFrame([(name, "a", 1) for name in dict.fromkeys(metrics["peer"])], columns=_PARTITION),
    }
    return SimpleNamespace(**parts | more)


_PARTITION = ["peer", "label", "count"]
TWO_ROUNDS = [
    {"round": 0, "peer": "b", "steps": 10, "bytes_sent": 100, "wall_time_s": 1.0, "test_accuracy": 0.4},
    {"round": 0, "peer": "a", "steps": 20, "bytes_sent": 300, "wall_time_s": 2.0, "test_accuracy": 0.6},
    {"round": 1, "peer": "a", "steps": 20, "bytes_sent": 300, "wall_time_s": 2.0, "test_accuracy": 0.8},
    {"round": 1, "peer": "b", "steps": 10, "bytes_sent": 100, "wall_time_s": 5.0, "test_accuracy": 0.8},
]


def test_curves_add_up_costs_and_spread_accuracy() -> None:
    found = curves(run_of(TWO_ROUNDS))
    assert found["rounds"].tolist() == [1, 2]
    assert found["steps"].tolist() == [15, 30]
    assert found["bytes"].tolist() == [200, 400]
    assert found["bytes_total"].tolist() == [400, 800]
    assert found["wall_s"].tolist() == [2, 6]
    assert found["accuracy"].tolist() == pytest.approx([0.5, 0.8])
    assert found["accuracy_worst"].tolist() == [0.4, 0.8]
    assert found["accuracy_p5"].tolist() == pytest.approx([0.41, 0.8])
    assert found["accuracy_std"].tolist() == pytest.approx([0.1, 0])
    assert found["accuracy_jain"].tolist() == pytest.approx([1 / (2 * 0.52), 1])
    assert found["mean_model_accuracy"].isna().all()


def test_a_peer_that_is_away_keeps_what_it_has_spent() -> None:
    found = curves(run_of([*TWO_ROUNDS[:2], TWO_ROUNDS[2]]))
    assert found["bytes_total"].tolist() == [400, 700]
    assert found["bytes"].tolist() == [200, 350]
    assert found["peers"].tolist() == [2, 1]


def test_rounds_without_evaluation_have_no_accuracy() -> None:
    found = curves(recorded(evaluate_every=4, rounds=6, peers=4))
    assert found["accuracy"].notna().tolist() == [False, False, False, True, False, True]
    assert found["consensus_distance"].notna().all()
    assert found["mean_model_accuracy"].notna().sum() == 2
    assert found["relative_distance"].notna().all()


def test_a_live_network_is_seen_whole_only_at_its_end() -> None:
    found = curves(run_of(TWO_ROUNDS, summary={"consensus_distance": 0.25}))
    assert found["consensus_distance"].isna().tolist() == [True, False]
    assert found["consensus_distance"].iloc[-1] == 0.25


def test_a_run_without_rounds_is_told() -> None:
    nothing = run_of(TWO_ROUNDS)
    nothing.metrics = nothing.metrics.iloc[:0]
    with pytest.raises(DataError, match="finished no round"):
        curves(nothing)


def test_peers_come_in_the_order_of_their_seats() -> None:
    listed = pd.DataFrame([("b", "x", 1), ("a", "x", 1)], columns=_PARTITION)
    assert members(run_of(TWO_ROUNDS, partition=listed)) == ("b", "a")
    assert final_accuracy(run_of(TWO_ROUNDS, partition=listed)).index.tolist() == ["b", "a"]
    assert members(recorded(peers=12, rounds=1))[-2:] == ("10", "11")


def test_who_left_before_the_end_does_not_count() -> None:
    assert final_accuracy(run_of(TWO_ROUNDS[:3])).to_dict() == {"a": 0.8}


def test_jain_index_of_one_that_has_everything_is_one_in_n() -> None:
    assert jain_index([1, 0, 0, 0]) == 0.25
    assert jain_index([0.3, 0.3]) == pytest.approx(1)
    assert np.isnan(jain_index([0, 0]))


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=30), st.floats(0.1, 10))
def test_jain_index_lies_between_one_in_n_and_one_and_has_no_unit(values: list[float], scale: float) -> None:
    index = jain_index(values)
    assert 1 / len(values) - 1e-12 <= index <= 1 + 1e-12
    assert jain_index([scale * value for value in values]) == pytest.approx(index)


def test_spread_leaves_out_peers_without_the_figure() -> None:
    found = spread([0.2, 0.4, np.nan])
    assert (found.mean, found.worst, found.p5) == pytest.approx((0.3, 0.2, 0.21))
    assert found.std == pytest.approx(0.1)
    with pytest.raises(DataError, match="was the run evaluated"):
        spread([np.nan])


def test_a_target_is_interpolated_between_two_evaluations() -> None:
    found = to_target(curves(run_of(TWO_ROUNDS)), 0.65)
    assert found == pytest.approx({"rounds": 1.5, "steps": 22.5, "bytes": 300, "wall_s": 4, "simulated_s": None})


def test_a_target_reached_at_the_first_evaluation_costs_what_that_one_did() -> None:
    assert to_target(curves(run_of(TWO_ROUNDS)), 0.3)["rounds"] == 1


def test_a_target_counts_from_where_it_is_first_reached() -> None:
    up_and_down = [{"round": r, "peer": "a", "test_accuracy": a} for r, a in enumerate((0.1, 0.6, 0.3, 0.9))]
    assert to_target(curves(run_of(up_and_down)), 0.6)["rounds"] == pytest.approx(2)


def test_a_target_that_is_never_reached_costs_nothing_that_is_known() -> None:
    assert set(to_target(curves(run_of(TWO_ROUNDS)), 0.9).values()) == {None}


def test_interpolation_skips_rounds_that_were_not_evaluated() -> None:
    rows = [{"round": r, "peer": "a", "steps": 1, "test_accuracy": a} for r, a in enumerate((0.2, np.nan, np.nan, 0.8))]
    assert to_target(curves(run_of(rows)), 0.5)["steps"] == pytest.approx(2.5)


def test_a_cost_that_was_not_measured_before_the_target_is_not_known() -> None:
    curve = pd.DataFrame({"accuracy": [0.5, 0.7], "simulated_s": [np.nan, 3.0]})
    curve[["rounds", "steps", "bytes", "wall_s"]] = [[1.0] * 4, [3.0] * 4]
    assert to_target(curve, 0.6)["simulated_s"] is None
    assert to_target(curve, 0.6)["rounds"] == pytest.approx(2)
    assert to_target(curve, 0.7)["simulated_s"] == 3


@pytest.mark.parametrize("target", [0, 1.5, 90, float("nan")])
def test_a_target_is_a_fraction(target: float) -> None:
    with pytest.raises(UsageError, match=r"give \.9 for 90 %"):
        to_target(curves(run_of(TWO_ROUNDS)), target)


def test_volume_of_a_ring_is_what_theory_says() -> None:
    run = recorded("ring", peers=6, rounds=5)
    found = volume(run)
    assert found.total == 6 * 2 * 5 * SHARE
    assert found.per_round == 12 * SHARE
    assert found.analytic_per_round == 6 * 2 * 4 * PARAMETERS
    assert len(found.by_edge) == 12
    assert set(found.by_edge["bytes"]) == {5 * SHARE}


def test_the_hub_of_a_star_is_the_busiest_peer() -> None:
    found = volume(recorded("star", peers=6, rounds=5))
    assert found.busiest == ("0", 5 * 5 * SHARE)


def test_float64_shares_are_twice_as_large() -> None:
    assert volume(recorded("ring", peers=6, rounds=2, dtype="float64")).analytic_per_round == 6 * 2 * 8 * PARAMETERS


def test_references_are_those_that_the_run_has() -> None:
    assert references(recorded(rounds=1)) == {"alone": 0.2, "pooled": 0.98}
    assert references(run_of(TWO_ROUNDS, summary={"accuracy": None, "alone": {"mean": 1.2}})) == {}


def test_labels_that_no_two_peers_share_are_all_apart() -> None:
    split = pd.DataFrame([("a", "x", 10), ("b", "y", 10), ("a", "y", 0)], columns=_PARTITION)
    found = label_heterogeneity(run_of(TWO_ROUNDS, partition=split))
    assert found is not None
    assert (found.total_variation, found.effective_classes, found.gini) == pytest.approx((0.5, 1, 0))


def test_settled_is_the_mean_of_the_last_tenth() -> None:
    assert settled(pd.Series([9.0] * 18 + [1.0, 3.0])) == 2
    assert settled(pd.Series([5.0, 4.0, np.nan])) == 4
    assert np.isnan(settled(pd.Series([np.nan])))


def test_consensus_distance_of_two_models() -> None:
    models = [[0.0, 3.0], [2.0, 3.0]]
    assert consensus_distance(models) == 1
    assert relative_distance(models) == pytest.approx(1 / 10**0.5)
    assert contraction(models, [[0.5, 3.0], [1.5, 3.0]]) == 0.25


def test_distances_of_the_layers_add_up() -> None:
    layout = Layout((("weight", (2, 2)), ("bias", (1,))))
    x = np.random.default_rng(0).standard_normal((4, 5))
    found = distance_by_layer(x, layout)
    assert list(found) == ["weight", "bias"]
    assert sum(found.values()) == pytest.approx(consensus_distance(x))
    assert found["bias"] == pytest.approx(np.var(x[:, 4]))
    with pytest.raises(UsageError, match="do not fit a layout of 5 numbers"):
        distance_by_layer(x[:, :4], layout)


def test_models_stand_side_by_side() -> None:
    states = {name: {"w": np.full((2, 2), value), "b": [value]} for name, value in (("a", 1.0), ("b", 2.0))}
    assert model_vectors(states).tolist() == [[1] * 5, [2] * 5]


def test_predicted_contraction_of_a_ring_is_its_squared_second_eigenvalue() -> None:
    found = predicted_contraction([mixing_matrix(named.build("ring", 16))])
    eigenvalues = 1 / 3 + 2 / 3 * np.cos(2 * np.pi * np.arange(16) / 16)
    assert found["worst"] == pytest.approx((1 - 0.050747) ** 2, abs=1e-6)
    assert found["white"] == pytest.approx((np.square(eigenvalues).sum() - 1) / 15)


def test_a_complete_graph_leaves_nothing_apart() -> None:
    assert predicted_contraction([mixing_matrix(named.build("complete", 5))]) == pytest.approx({"worst": 0, "white": 0})


def test_white_noise_contracts_as_predicted() -> None:
    matrix = mixing_matrix(named.build("torus", 16))
    x = np.random.default_rng(0).standard_normal((16, 20_000))
    assert contraction(x, matrix @ x) == pytest.approx(predicted_contraction([matrix])["white"], rel=0.02)


@pytest.mark.parametrize("matrix", [np.full((2, 2), 0.5), np.array([[1.0, 0.0], [1.0, 0.0]])])
def test_peers_that_take_one_model_agree_even_where_the_average_moves(matrix: np.ndarray) -> None:
    assert predicted_contraction([matrix]) == pytest.approx({"worst": 0, "white": 0})


def test_weights_that_are_not_doubly_stochastic_contract_as_predicted() -> None:
    matrix = mixing_matrix(weighted(Schedule.of(named.build("star", 16)), "uniform").at(0))
    x = np.random.default_rng(0).standard_normal((16, 20_000))
    assert predicted_contraction([matrix])["white"] == pytest.approx(0.246, abs=2e-3)
    assert contraction(x, matrix @ x) == pytest.approx(predicted_contraction([matrix])["white"], rel=0.02)
    assert predicted_contraction([matrix])["worst"] <= 1


def test_distance_predicted_from_steady_noise_settles_at_the_noise_floor() -> None:
    schedule = named.schedule("ring", 16)
    eigenvalues = 1 / 3 + 2 / 3 * np.cos(2 * np.pi * np.arange(1, 16) / 16)
    # E‖x_i − x_j‖² of ring neighbors before mixing, in the stationary state of x ← W(x + noise).
    variance, correlation = 1 + eigenvalues**2 / (1 - eigenvalues**2), np.cos(2 * np.pi * np.arange(1, 16) / 16)
    between = 2 / 16 * float((variance * (1 - correlation)).sum())
    found = predicted_distance(schedule, [between] * 400)
    assert found is not None
    assert found[-1] == pytest.approx(RING_16_FLOOR, abs=1e-4)


@pytest.mark.parametrize("topology", ["ring", "star", "torus"])
def test_predicted_distance_follows_a_walk_of_independent_noise(topology: str) -> None:
    schedule, generator = named.schedule(topology, 16), np.random.default_rng(1)
    matrix = mixing_matrix(schedule.at(0))
    x, near, apart = np.zeros((16, 4000)), [], []
    for round in range(30):
        x = x + (1 + round % 3) * generator.standard_normal(x.shape)
        graph = schedule.at(round)
        near.append(
            float(np.mean([np.mean([np.sum((x[i] - x[j]) ** 2) for j in graph.sources(i)]) for i in range(16)]))
        )
        x = matrix @ x
        apart.append(consensus_distance(x))
    found = predicted_distance(schedule, near)
    assert found is not None
    assert np.abs(found / apart - 1).max() < 0.05


def test_rounds_that_measured_no_distance_only_contract() -> None:
    found = predicted_distance(named.schedule("ring", 5), [2.0, np.nan, np.nan])
    assert found is not None
    assert found[0] > found[1] > found[2] > 0


def test_too_many_peers_are_not_predicted() -> None:
    assert predicted_distance(named.schedule("ring", 600), [1.0]) is None


def test_implied_drift_undoes_the_noise_floor() -> None:
    assert implied_drift(3.0, 1.5) == 2
    assert np.isnan(implied_drift(1.0, 0.0))


def test_gradients_that_agree_have_no_heterogeneity_but_their_noise() -> None:
    found = gradient_heterogeneity([[1.0, 0.0]] * 3, [[[2.0, 0.0], [0.0, 0.0]]] * 3, np.eye(3))
    assert (found.sigma2, found.zeta2, found.tau2) == (1, 0, 0)


def test_neighborhoods_that_mirror_the_whole_have_no_heterogeneity() -> None:
    gradients = [[1.0], [-1.0], [1.0], [-1.0]]
    pairs = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]) / 2
    alike = np.array([[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1]]) / 2
    assert gradient_heterogeneity(gradients, mixing=pairs).tau2 == 0
    assert gradient_heterogeneity(gradients, mixing=alike).tau2 == 1
    assert gradient_heterogeneity(gradients).zeta2 == 1
    assert gradient_heterogeneity(gradients).tau2 is None


def test_gradients_of_the_wrong_shape_are_told() -> None:
    with pytest.raises(UsageError, match=r"give \[peers, size\]"):
        gradient_heterogeneity([1.0, 2.0])
    with pytest.raises(UsageError, match=r"\[draws, size\] for each peer"):
        gradient_heterogeneity([[1.0], [2.0]], [[[1.0]]])
    with pytest.raises(UsageError, match="does not fit 2 peers"):
        gradient_heterogeneity([[1.0], [2.0]], mixing=np.eye(3))


def linear_problem() -> SimpleNamespace:
    """Two peers that fit y = w x to one example each: gradients 2 x (w x − y)."""
    inputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [0.0]])

    def build() -> torch.nn.Module:
        return torch.nn.Linear(1, 1, bias=False)

    return SimpleNamespace(
        recipe=Recipe(batch_size=3),
        data=SimpleNamespace(task="regression"),
        loss=None,
        peers=2,
        build=build,
        examples=lambda peer: Examples(inputs[[peer]], targets[[peer]]),
    )


def test_gradients_at_a_point_are_those_of_each_peer() -> None:
    full, batches = gradients_at(linear_problem(), torch.tensor([3.0]), draws=2)
    assert full.tolist() == [[4.0], [24.0]]
    assert [own.tolist() for own in batches] == [[[4.0], [4.0]], [[24.0], [24.0]]]
    assert gradient_heterogeneity(full, batches) == measures_of(0, 100)
    with pytest.raises(UsageError, match="the point has 2 numbers, the model 1"):
        gradients_at(linear_problem(), torch.zeros(2))


def test_gradients_leave_frozen_parameters_at_zero_and_dropout_out() -> None:
    def build() -> torch.nn.Module:
        module = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Dropout(0.5), torch.nn.Linear(1, 1))
        module[2].weight.requires_grad_(False)
        return module

    problem = linear_problem()
    problem.build = build
    found = [gradients_at(problem, torch.tensor([3.0, 1.0, 0.0]))[0].tolist() for _ in range(8)]
    assert found == [[[4.0, 0.0, 4.0], [24.0, 0.0, 12.0]]] * 8


def measures_of(sigma2: float, zeta2: float) -> object:
    from p2pfl.analysis.gradients import GradientHeterogeneity

    return GradientHeterogeneity(sigma2, zeta2, None)


def test_mean_and_std_over_seeds() -> None:
    assert str(mean_std([1.0, 3.0])) == "2 ± 1.4"
    assert mean_std([1.0]).std is None
    assert mean_std([1.0, np.nan]).n == 1
    with pytest.raises(UsageError, match="no value"):
        mean_std([])


def test_a_paired_test_compares_seed_by_seed() -> None:
    a, b = {0: 0.95, 1: 0.90, 2: 0.86, 9: 0.1}, {1: 0.89, 2: 0.84, 0: 0.92}
    found = paired(a, b)
    assert found.n == 3
    assert found.difference == pytest.approx(0.02)
    assert found.t_p == pytest.approx(0.07418, abs=1e-5)  # t = 2√3 with two degrees of freedom
    assert found.wilcoxon_p == pytest.approx(0.25)
    assert found.interval == pytest.approx((0.02 - 0.0248414, 0.02 + 0.0248414), abs=1e-6)
    assert "cannot fall below 0.25" in found.note


def test_one_seed_allows_no_test() -> None:
    found = paired({0: 0.5}, {0: 0.4})
    assert (found.t_p, found.interval) == (None, None)
    assert "no test is possible" in found.note


def test_equal_differences_have_no_t_test() -> None:
    found = paired({0: 0.5, 1: 0.6}, {0: 0.4, 1: 0.5})
    assert found.t_p is None
    assert "not defined" in found.note
    assert paired({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6}).wilcoxon_p is None


def test_seven_seeds_need_no_excuse() -> None:
    assert paired({s: s + 1.0 for s in range(7)}, {s: 0.9 * s for s in range(7)}).note == ""


def test_no_common_seed_is_told() -> None:
    with pytest.raises(UsageError, match="the same seeds on both sides"):
        paired({0: 1.0}, {1: 1.0})


def test_holm_multiplies_the_smallest_most_and_never_turns_the_order() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert holm([0.9, 0.8]) == [1, 1]


def test_spearman_sees_order_alone() -> None:
    assert spearman([1, 2, 3, 4], [1, 10, 100, 1000]).rho == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]).rho == pytest.approx(-1)
    assert spearman([1, 2, 3, 4], [1, 10, 100, 1000]).p == pytest.approx(2 / 24)  # two of all orders
    found = spearman([1, 2, 3, np.nan], [1, 3, 2, 9])
    assert (found.rho, found.n) == (pytest.approx(0.5), 3)


def test_spearman_of_too_little_is_undefined() -> None:
    assert spearman([1, 2], [1, 2]).rho is None
    assert spearman([1, 2, 3], [5, 5, 5]).rho is None
    with pytest.raises(UsageError, match="2 predictions for 1"):
        spearman([1, 2], [1])


def test_a_schedule_of_turns_has_a_volume_of_its_turns() -> None:
    run = recorded("ring", peers=4, rounds=4)
    turns = Schedule("turns", 4, 2, lambda t: named.build("ring" if t else "complete", 4))
    assert measures.shares_per_round(turns, 4) == (12 + 8) / 2
    assert measures.shares_per_round(run.recipe.schedule(4), 4) == 8
