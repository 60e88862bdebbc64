import math
import pickle
from collections import Counter
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pfl.errors import TopologyError
from p2pfl.graphs.mixing import mixing_csr, mixing_matrix
from p2pfl.graphs.named import NAMES, _new, build, describe, inline, schedule
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.schedules import in_turn
from p2pfl.graphs.topology import Topology
from p2pfl.graphs.weighting import weighted

SCHEDULES = [
    "one-peer-exponential",
    "one-peer-hypercube",
    "base",
    "random-matching",
    "epidemic-oracle",
    "epidemic-local",
    "equi-dynamic",
    "moshpit",
]
DRAWN = ["random-matching", "epidemic-oracle", "epidemic-local", "equi-dynamic", "equi-dynamic:directed=false"]
# Rounds to exact consensus of Base-2, n = 3 … 65, by the authors' own code.
BASE_2 = (
    *(3, 2, 5, 4, 5, 3, 7, 6, 7, 5, 7, 6, 7, 4, 9, 8, 9, 7, 9, 8, 9, 6, 9, 8, 9, 7, 9, 8, 9, 5),
    *(11, 10, 11, 9, 11, 10, 11, 8, 11, 10, 11, 9, 11, 10, 11, 7),
    *(11, 10, 11, 9, 11, 10, 11, 8, 11, 10, 11, 9, 11, 10, 11, 6, 13),
)

PINNED: list[tuple[tuple[int, int], ...]] = [
    ((1, 5), (2, 3), (4, 6)),
    ((0, 3), (0, 4), (1, 2), (1, 5), (2, 5), (3, 6), (4, 6)),
    ((0, 1), (0, 6), (1, 3), (1, 4), (2, 1), (2, 5), (3, 1), (3, 2), (4, 3), (4, 6), (5, 1), (5, 2), (6, 1), (6, 2)),
    ((0, 5), (1, 6), (2, 0), (3, 1), (4, 2), (5, 3), (6, 4)),
    ((0, 2), (1, 6), (3, 5)),
]


def product(of: Schedule, rounds: int) -> npt.NDArray[np.float64]:
    """What `rounds` rounds from the first do together; [nodes, nodes]."""
    together = np.eye(of.nodes)
    for round in range(rounds):
        together = mixing_csr(of.at(round)) @ together
    return together


def error(of: Schedule, rounds: int) -> float:
    return float(np.abs(product(of, rounds) - 1 / of.nodes).max())


def serves(name: str, nodes: int) -> bool:
    return not (name == "one-peer-hypercube" and nodes & (nodes - 1))


def test_the_schedules_are_these() -> None:
    assert [name for name in NAMES if name in SCHEDULES] == SCHEDULES
    assert NAMES[-2:] == ("cycle", "graph")


# Exact consensus


@pytest.mark.parametrize("nodes", [2, 4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("name", ["one-peer-exponential", "one-peer-hypercube"])
def test_one_peer_is_exact_to_the_bit_for_powers_of_two(name: str, nodes: int) -> None:
    one_peer = schedule(name, nodes)
    rounds = nodes.bit_length() - 1
    assert one_peer.period == one_peer.settled_after == rounds
    assert error(one_peer, rounds) == 0.0
    assert error(one_peer, rounds - 1) > 0
    assert all(one_peer.at(round).degrees.tolist() == [1] * nodes for round in range(rounds))


@pytest.mark.parametrize(
    ("nodes", "left"), [(5, 0.2023), (6, 0.2165), (7, 0.1250), (10, 0.1924), (25, 0.1921), (63, 0.0156)]
)
def test_one_peer_exponential_is_not_exact_for_other_numbers(nodes: int, left: float) -> None:
    one_peer = schedule("one-peer-exponential", nodes)
    assert one_peer.period is not None
    assert one_peer.settled_after is None
    norm = np.linalg.norm(product(one_peer, one_peer.period) - 1 / nodes, 2)
    assert norm == pytest.approx(left, abs=5.1e-5)


def test_one_peer_exponential_receives_from_the_one_before() -> None:
    one_peer = schedule("one-peer-exponential", 5)
    assert [one_peer.at(round).sources(4) for round in range(4)] == [(3,), (2,), (0,), (3,)]
    assert one_peer.at(0).directed
    assert mixing_matrix(one_peer.at(2))[0].tolist() == [0.5, 0.5, 0, 0, 0]


def test_one_peer_hypercube_swaps_one_digit() -> None:
    cube = schedule("one-peer-hypercube", 8)
    assert [cube.at(round).sources(5) for round in range(4)] == [(4,), (7,), (1,), (4,)]
    assert not cube.at(0).directed


@pytest.mark.parametrize(("nodes", "rounds"), list(enumerate(BASE_2, start=3)))
def test_base_2_takes_as_many_rounds_as_its_authors_say(nodes: int, rounds: int) -> None:
    base = schedule("base", nodes)
    assert base.period == base.settled_after == rounds


@pytest.mark.parametrize(("k", "rounds"), [(1, 9), (2, 6), (3, 5), (4, 2)])
def test_base_graphs_of_25(k: int, rounds: int) -> None:
    assert schedule(f"base:k={k}", 25).period == rounds


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("nodes", range(1, 66))
def test_base_is_exact_for_every_number(nodes: int, k: int) -> None:
    base = schedule(f"base:k={k}", nodes)
    assert base.period is not None
    assert base.settled_after == (base.period if nodes > 1 else 0)
    assert base.period <= 2 * math.log(nodes, k + 1) + 2 + 1e-9
    for round in range(base.period):
        matrix = mixing_matrix(base.at(round))
        assert np.array_equal(matrix, matrix.T)
        assert matrix.min() >= 0
        assert base.at(round).degrees.max() <= k
    assert error(base, base.period) < 1e-15
    if base.period > 1:
        assert error(base, base.period - 1) > 1e-3


@pytest.mark.parametrize(("nodes", "k"), [(1000, 1), (997, 3), (1536, 1), (2000, 6)])
def test_base_is_exact_for_many(nodes: int, k: int) -> None:
    base = schedule(f"base:k={k}", nodes)
    assert base.period is not None
    values = np.random.default_rng(0).normal(size=nodes)
    mean = values.mean()
    for round in range(base.period):
        values = mixing_csr(base.at(round)) @ values
    assert np.abs(values - mean).max() < 1e-13
    assert base.period <= 2 * math.log(nodes, k + 1) + 2


# As the authors number the nodes: 5 = 4 + 1, 7 = 4 + 2 + 1 or with k = 2 6 + 1, with k = 3 13 = 12 + 1, and 15 as
# 3 parts of 4 + 1, which takes as many rounds as 12 + 3 without parts: the parts are preferred.
BASE_ROUNDS: list[tuple[int, int, list[dict[float, str]]]] = [
    (
        5,
        1,
        [
            {1 / 2: "0-1 2-3"},
            {1 / 2: "0-2 1-3"},
            {4 / 5: "3-4", 1 / 2: "0-1"},  # 4 takes in the average of four with 4/5; 0 and 1 have agreed
            {1 / 2: "0-1 2-3"},
            {1 / 2: "0-2 1-3"},
        ],
    ),
    (
        7,
        1,
        [
            {1 / 2: "0-1 2-3 4-5"},
            {1 / 2: "0-2 1-3 4-5"},
            {4 / 7: "3-6 2-4 1-5"},  # the smallest digit's node takes in the block's last
            {2 / 3: "5-6", 1 / 2: "0-1 2-3"},
            {1 / 2: "0-2 1-3 4-5"},
        ],
    ),
    (
        7,
        2,
        [
            {1 / 2: "0-1 2-3 4-5"},  # six as 2 times 3, the shorter side first
            {1 / 3: "0-2 0-4 2-4 1-3 1-5 3-5"},
            {3 / 7: "2-6 5-6", 1 / 3: "0-1 0-3 1-3"},  # left over are 0, 1 and 3, 4
            {1 / 3: "0-1 0-2 1-2 3-4 3-5 4-5"},
        ],
    ),
    (
        13,
        3,
        [
            {1 / 3: "0-1 0-2 1-2 3-4 3-5 4-5 6-7 6-8 7-8 9-10 9-11 10-11"},
            {1 / 4: "0-3 0-6 0-9 3-6 3-9 6-9 1-4 1-7 1-10 4-7 4-10 7-10 2-5 2-8 2-11 5-8 5-11 8-11"},
            # Left over are 0 1 2, 4 5 6 and 8 9 10: four by four in this order, and 10 alone.
            {4 / 13: "3-12 7-12 11-12", 1 / 4: "0-1 0-2 0-4 1-2 1-4 2-4 5-6 5-8 5-9 6-8 6-9 8-9"},
            {1 / 4: "0-1 0-2 0-3 1-2 1-3 2-3 4-5 4-6 4-7 5-6 5-7 6-7 8-9 8-10 8-11 9-10 9-11 10-11"},
        ],
    ),
    (
        15,
        3,
        [
            {1 / 4: "0-1 0-2 0-3 1-2 1-3 2-3 5-6 5-7 5-8 6-7 6-8 7-8 10-11 10-12 10-13 11-12 11-13 12-13"},
            {4 / 5: "3-4 8-9 13-14", 1 / 3: "0-1 0-2 1-2 5-6 5-7 6-7 10-11 10-12 11-12"},
            {1 / 4: "0-1 0-2 0-3 1-2 1-3 2-3 5-6 5-7 5-8 6-7 6-8 7-8 10-11 10-12 10-13 11-12 11-13 12-13"},
            {1 / 3: "0-5 0-10 5-10 1-6 1-11 6-11 2-7 2-12 7-12 3-8 3-13 8-13 4-9 4-14 9-14"},
        ],
    ),
]


@pytest.mark.parametrize(("nodes", "k", "rounds"), BASE_ROUNDS)
def test_base_graph_round_by_round(nodes: int, k: int, rounds: list[dict[float, str]]) -> None:
    base = schedule(f"base:k={k}", nodes)
    assert base.period == len(rounds)
    for round, links in enumerate(rounds):
        expected = np.zeros((nodes, nodes))
        for weight, edges in links.items():
            for edge in edges.split():
                i, j = map(int, edge.split("-"))
                expected[i, j] = expected[j, i] = weight
        np.fill_diagonal(expected, 1 - expected.sum(axis=1))
        assert mixing_matrix(base.at(round)) == pytest.approx(expected, abs=1e-15)
        assert len(base.at(round).edges) == sum(len(edges.split()) for edges in links.values())


@pytest.mark.parametrize(
    ("nodes", "dims", "settled"),
    [
        (16, 2, 2),
        (25, 2, 2),
        (64, 3, 3),
        (512, 3, 3),
        (9, 3, 2),
        (1024, 2, 2),
        (12, 2, 2),
        (7, 2, None),
        (768, 2, None),
        (5, 1, 1),
    ],
)
def test_moshpit_is_exact_on_a_full_grid(nodes: int, dims: int, settled: int | None) -> None:
    moshpit = schedule(f"moshpit:dims={dims}", nodes)
    assert (moshpit.period, moshpit.settled_after) == (dims, settled)
    if settled:
        assert error(moshpit, settled) < 1e-15
        assert settled == 1 or error(moshpit, settled - 1) > 1e-4
    else:
        assert error(moshpit, dims) > 1e-4
        assert error(moshpit, 60) < 1e-6


def test_moshpit_groups_lie_along_one_axis_in_turn() -> None:
    moshpit = schedule("moshpit", 7)  # rows 0 1 2, 3 4 5, 6
    assert moshpit.at(0).edges == ((0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5))
    assert moshpit.at(1).edges == ((0, 3), (0, 6), (1, 4), (2, 5), (3, 6))
    assert mixing_matrix(moshpit.at(1))[4].tolist() == [0, 0.5, 0, 0, 0.5, 0, 0]
    assert moshpit.at(2) == moshpit.at(0)


@settings(max_examples=120, deadline=None)
@given(
    st.sampled_from([*SCHEDULES, "base:k=3", "moshpit:dims=3", "ring", "complete", "exponential"]), st.integers(1, 40)
)
def test_settled_after_is_the_first_round_that_is_exact(name: str, nodes: int) -> None:
    if not serves(name, nodes):
        return
    of = schedule(name, nodes)
    if of.settled_after is None:
        assert error(of, of.period or 1) > 1e-9
    else:
        assert error(of, of.settled_after) < 1e-14
        assert of.settled_after == 0 or error(of, of.settled_after - 1) > 1e-9


def test_a_topology_that_stays_settles_at_once_or_never() -> None:
    assert schedule("complete", 400).settled_after == 1
    assert schedule("ring", 3).settled_after == 1
    assert schedule("star", 4).settled_after is None
    assert schedule("ring", 1).settled_after == 0


# What is drawn


def contraction(spec: str, nodes: int, draws: int, about_old: bool = False) -> tuple[float, float]:
    """Mean of the variance after one mix over that before, and its standard error, for one vector of values."""
    of = schedule(spec, nodes, seed=5)
    values = np.random.default_rng(3).normal(size=nodes)
    values -= values.mean()
    mixed = [mixing_csr(of.at(round)) @ values for round in range(draws)]
    ratios = [np.mean((new - (0 if about_old else new.mean())) ** 2) / np.mean(values**2) for new in mixed]
    return float(np.mean(ratios)), float(np.std(ratios, ddof=1) / math.sqrt(draws))


def el_local(nodes: int, s: int) -> float:
    return (1 - (1 - s / (nodes - 1)) ** nodes) / s - 1 / (nodes - 1)


@pytest.mark.parametrize(
    ("spec", "nodes", "printed", "formula"),
    [
        ("random-matching", 16, 0.46667, 14 / 30),
        ("random-matching", 64, 0.49206, 62 / 126),
        ("epidemic-oracle:s=4", 16, 0.14667, (1 - 4 / 15) / 5),
        ("epidemic-oracle:s=4", 25, 0.16667, (1 - 4 / 24) / 5),
        ("epidemic-oracle:s=6", 64, 0.12925, (1 - 6 / 63) / 7),
        ("epidemic-local:s=1", 16, 0.60175, el_local(16, 1)),
        ("epidemic-local:s=4", 16, 0.18158, el_local(16, 4)),
        ("epidemic-local:s=4", 25, 0.20571, el_local(25, 4)),
        ("epidemic-local:s=6", 64, 0.15052, el_local(64, 6)),
        ("equi-dynamic", 16, 0.46875, 15 / 32),
        ("equi-dynamic", 25, 0.48, 24 / 50),
        ("equi-dynamic", 64, 0.49219, 63 / 128),
    ],
)
def test_expected_contraction_within_four_standard_errors(
    spec: str, nodes: int, printed: float, formula: float
) -> None:
    assert formula == pytest.approx(printed, abs=5.1e-6)
    mean, standard_error = contraction(spec, nodes, 800, about_old=spec.startswith("epidemic-local"))
    assert standard_error < 0.03 * printed
    assert abs(mean - formula) < 4 * standard_error


@pytest.mark.parametrize("spec", DRAWN)
def test_rounds_depend_on_seed_and_round_alone(spec: str) -> None:
    there, back = schedule(spec, 30, seed=1), schedule(f"{spec}{',' if ':' in spec else ':'}seed=1", 30)
    forward = [there.at(round) for round in range(8)]
    assert [back.at(round) for round in reversed(range(8))] == forward[::-1]
    assert len({topology.edges for topology in forward}) > 4
    assert [schedule(spec, 30, seed=2).at(round).edges for round in range(8)] != [each.edges for each in forward]
    assert there.period is None
    assert back.name == there.name == forward[0].name
    assert build(there.name, 30, round=3) == forward[3]


def test_draws_are_pinned() -> None:
    # As every peer draws its own: made of PCG64's own numbers, they must never change, nor differ between machines.
    assert [build(spec, 7, round=2, seed=1).edges for spec in DRAWN] == PINNED


@pytest.mark.parametrize(("nodes", "pairs"), [(2, 1), (3, 1), (8, 4), (9, 4)])
def test_random_matching_leaves_out_one_at_most(nodes: int, pairs: int) -> None:
    matching = schedule("random-matching", nodes)
    for round in range(5):
        assert len(matching.at(round).edges) == pairs
        assert matching.at(round).degrees.max() == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))), st.integers(0, 99))
def test_epidemic_oracle_is_regular(nodes_s: tuple[int, int], seed: int) -> None:
    nodes, s = nodes_s
    if nodes * s % 2:
        with pytest.raises(TopologyError, match="take s="):
            schedule(f"epidemic-oracle:s={s}", nodes)
        return
    assert build(f"epidemic-oracle:s={s}", nodes, round=seed, seed=seed).degrees.tolist() == [s] * nodes


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))), st.integers(0, 99))
def test_epidemic_local_sends_to_so_many_others(nodes_s: tuple[int, int], seed: int) -> None:
    nodes, s = nodes_s
    topology = build(f"epidemic-local:s={s}", nodes, round=seed, seed=seed)
    assert topology.out_degrees.tolist() == [s] * nodes
    rows = mixing_matrix(topology)
    for node in range(nodes):
        assert set(rows[node, list(topology.sources(node))]) <= {1 / (1 + topology.degree(node))}


@pytest.mark.parametrize(("spec", "share"), [("epidemic-oracle:s=2", 0.4), ("epidemic-oracle:s=3", 0.6)])
def test_epidemic_oracle_draws_every_pair_as_often(spec: str, share: float) -> None:
    draws = schedule(spec, 6)
    times = Counter(edge for round in range(800) for edge in draws.at(round).edges)
    assert len(times) == 15
    deviation = math.sqrt(800 * share * (1 - share))
    assert all(abs(count - 800 * share) < 4.5 * deviation for count in times.values())


@pytest.mark.parametrize("s", [1, 2, 4])
def test_epidemic_local_draws_every_other_as_often(s: int) -> None:
    draws = schedule(f"epidemic-local:s={s}", 6)
    times = Counter(edge for round in range(800) for edge in draws.at(round).edges)
    assert len(times) == 30
    deviation = math.sqrt(800 * s / 5 * (1 - s / 5))
    assert all(abs(count - 800 * s / 5) < 4.5 * deviation for count in times.values())


@pytest.mark.parametrize(("nodes", "s"), [(1, 0), (2, 1), (3, 2), (16, 4), (25, 4), (64, 6), (9, 4), (33, 6), (128, 7)])
def test_epidemic_defaults_to_about_log2_where_that_is_possible(nodes: int, s: int) -> None:
    assert schedule("epidemic-oracle", nodes).at(0).degrees.tolist() == [s] * nodes
    assert schedule("epidemic-local", nodes).at(0).out_degrees.tolist() == [s] * nodes


def test_equi_dynamic_weighs_the_shift_as_the_paper_does() -> None:
    matrix = mixing_matrix(build("equi-dynamic", 10))
    assert np.diag(matrix) == pytest.approx([11 / 20] * 10, abs=1e-15)
    assert sorted(matrix[0])[-2] == pytest.approx(9 / 20, abs=1e-15)
    assert matrix.sum(axis=0) == pytest.approx([1] * 10, abs=1e-15)
    whole = mixing_matrix(build("equi-dynamic:eta=1", 10))
    assert np.diag(whole) == pytest.approx([1 / 10] * 10, abs=1e-15)


@pytest.mark.parametrize("nodes", [2, 3, 8, 9, 15])
def test_undirected_equi_dynamic_pairs_nodes_one_step_apart(nodes: int) -> None:
    for round in range(20):
        topology = build("equi-dynamic:directed=false", nodes, round)
        assert topology.degrees.max() == 1
        assert len({min(j - i, nodes - j + i) for i, j in topology.edges}) == 1
        assert len(topology.edges) >= nodes // 3  # no two left out are one step apart
        assert topology.link_weights is not None
        assert set(topology.link_weights.tolist()) == {0.5 * ((nodes - 1) / nodes)}


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([*SCHEDULES, "equi-dynamic:directed=false"]), st.integers(1, 40), st.integers(0, 20))
def test_all_but_epidemic_local_keep_the_average(name: str, nodes: int, round: int) -> None:
    if not serves(name, nodes):
        return
    topology = build(name, nodes, round)
    matrix = mixing_matrix(topology)
    assert np.abs(matrix.sum(axis=1) - 1).max() < 1e-13
    kept = bool(np.abs(matrix.sum(axis=0) - 1).max() < 1e-9)
    assert kept == topology.doubly_stochastic
    assert kept or name == "epidemic-local"
    assert topology.drifting == (name == "epidemic-local" and nodes > 1)


# Cycles


def test_cycle_takes_its_topologies_in_turn() -> None:
    cycle = schedule("cycle:edges=0-1/2-3|0-2/1-3,of=4", 4)
    assert cycle.name == "cycle:edges=0-1/2-3|0-2/1-3,directed=false,of=4"
    assert cycle.period == 2
    assert [cycle.at(round).edges for round in range(3)] == [((0, 1), (2, 3)), ((0, 2), (1, 3)), ((0, 1), (2, 3))]
    assert cycle.settled_after == 2
    assert schedule("cycle:edges=0-1|1-2", 3).settled_after is None


@pytest.mark.parametrize("spec", ["one-peer-exponential", "base:k=2", "moshpit", "one-peer-hypercube"])
def test_a_schedule_written_out_is_read_back(spec: str) -> None:
    of = schedule(spec, 8)
    written = schedule(inline(of), 8)
    assert (written.period, written.settled_after) == (of.period, of.settled_after)
    for round in range(of.period or 0):
        assert mixing_matrix(written.at(round)).tolist() == mixing_matrix(of.at(round)).tolist()
    assert inline(written) == written.name


def test_a_schedule_of_one_topology_is_written_as_a_graph() -> None:
    assert inline(schedule("ring", 3)) == "graph:edges=0-1/0-2/1-2,directed=false,of=3"


def test_what_has_no_end_cannot_be_written_out() -> None:
    with pytest.raises(TopologyError, match=r"'random-matching:seed=0' is drawn anew each round.*give its name"):
        inline(schedule("random-matching", 4))
    mixed = Schedule("mine", 2, 2, [Topology("a", 2, ((0, 1),)), Topology("b", 2, (), directed=True)].__getitem__)
    with pytest.raises(TopologyError, match="'mine' some are directed or drifting and some not"):
        inline(mixed)


# Refusals


@pytest.mark.parametrize(
    ("spec", "nodes", "says"),
    [
        ("one-peer-hypercube", 12, "no one-peer-hypercube of 12 peers: it needs a power of two; make it 8 or 16 peers"),
        ("base:k=0", 9, "k=0 neighbors links nobody: take k=1 or more"),
        ("epidemic-oracle:s=3", 9, "peers times s even; take s=2 or s=4"),
        ("epidemic-oracle:s=9", 9, "s must be below the peers .* take s=6 or s=8"),
        ("epidemic-oracle:s=0", 9, "take s=2 or s=4"),
        ("epidemic-local:s=9", 9, "each sends to 1 to 8 others; take s=4"),
        ("epidemic-local:s=0", 9, "take s=4"),
        ("equi-dynamic:eta=0", 9, "take eta above 0 and up to 1"),
        ("equi-dynamic:eta=nan", 9, "take eta above 0"),
        ("moshpit:dims=0", 9, "take dims=1 to 30"),
        ("moshpit:rows=3", 9, "no option 'rows': its options are dims"),
        ("cycle", 3, "together are not connected but leave parts of 1, 1, 1 nodes: link them"),
        ("cycle:edges=0-1|0-1", 3, "parts of 2, 1 nodes"),
        ("cycle:edges=0-1/1-2|0-3", 3, "no node 3"),
        ("cycle:edges=0-1|1-2,of=3", 4, "has 3 nodes, the network 4 peers"),
        ("cycle:files=a+b", 3, "'cycle:files=a[+]b' is not written out.*load_schedule, or give edges="),
        ("one-peer-exponentail", 3, "did you mean 'one-peer-exponential'"),
        *((name, 0, "at least 1") for name in SCHEDULES),
        *((name, -3, "at least 1") for name in SCHEDULES),
    ],
)
def test_a_schedule_that_cannot_be_is_refused_with_the_mend(spec: str, nodes: int, says: str) -> None:
    with pytest.raises(TopologyError, match=says):
        schedule(spec, nodes)


def test_a_schedule_already_made_is_only_checked_to_fit() -> None:
    of = schedule("base", 5)
    assert schedule(of, 5) is of
    with pytest.raises(TopologyError, match="'base:k=1' has 5 nodes, the network 6 peers"):
        schedule(of, 6)


def test_each_schedule_is_described_in_one_line() -> None:
    for name in SCHEDULES:
        assert "\n" not in describe(name)
    assert describe("equi-dynamic").endswith("Options: directed=true, eta=0.5, seed=0.")


RING = build("ring", 5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: _new("base", 25, 0),
        lambda: _new("random-matching", 6, 3),
        lambda: _new("graph:edges=0-1/1-2", 3, 0),
        lambda: weighted(_new("base", 25, 0), "lazy"),
        lambda: Schedule.of(RING),
        lambda: in_turn("turns", [RING, build("star", 5)]),
    ],
)
def test_a_schedule_is_a_value_that_travels_to_another_process(make: Callable[[], Schedule]) -> None:
    one, other = make(), make()
    assert one == other
    assert hash(one) == hash(other)
    there = pickle.loads(pickle.dumps(one))
    assert there == one
    assert [there.at(round) for round in range(5)] == [one.at(round) for round in range(5)]
    assert there.settled_after == one.settled_after


def test_schedules_of_other_nodes_seeds_or_weights_differ() -> None:
    one = schedule("random-matching", 6)
    assert one == schedule("random-matching:seed=0", 6)
    assert one not in (schedule("random-matching", 8), schedule("random-matching", 6, seed=1), weighted(one, "lazy"))
    assert one != "random-matching"


def test_a_schedule_of_a_function_alone_stays_where_it_is() -> None:
    mine = Schedule("mine", 5, 1, lambda _: RING)
    with pytest.raises(TopologyError, match=r"'mine' cannot be sent to another process.* make it there, or by name"):
        pickle.dumps(mine)


def test_of_large_schedules_only_the_last_is_kept() -> None:
    assert schedule("ring", 9) is schedule("ring", 9)
    first = schedule("ring", 100_001)
    assert schedule("ring", 100_001) is first
    schedule("ring", 100_002)
    assert schedule("ring", 100_001) is not first
