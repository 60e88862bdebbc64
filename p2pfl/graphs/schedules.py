"""A topology for every round, by formula: each function takes the number of nodes and its own few options.

The first line of a docstring is what `named.describe` shows; a schedule's name, given to `named.schedule`, makes the
same schedule again. What is drawn depends on the seed and the round alone.
"""

from collections.abc import Sequence

import numpy as np

from p2pfl.errors import TopologyError
from p2pfl.graphs import base_graph, builders
from p2pfl.graphs.draws import Draws, others, regular_pairs
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology, distinct


def one_peer_exponential(nodes: int) -> Schedule:
    """Each node receives from the one 1, 2, 4, 8, … places before it, a step a round; exact for powers of two.

    Source: Ying et al., "Exponential graph is provably efficient for decentralized deep training", 2021, section 4.
    """
    name = "one-peer-exponential"
    steps = builders.hops(nodes)
    exact = len(steps) if nodes == 1 << len(steps) else None

    def draw(round: int) -> Topology:
        everyone = np.arange(nodes)
        return Topology(name, nodes, np.stack([everyone, (everyone + steps[round]) % nodes], axis=1), directed=True)

    return _alone(name, nodes) or Schedule(name, nodes, len(steps), draw, exact)


def one_peer_hypercube(nodes: int) -> Schedule:
    """Nodes in pairs whose binary numbers differ in one digit, the next digit each round; a power of two of them.

    Source: Shi et al., "Finite-time convergent gossiping", 2016.
    """
    name = "one-peer-hypercube"
    builders.require_power_of_two(name, nodes)
    steps = builders.hops(nodes)

    def draw(round: int) -> Topology:
        low = np.arange(nodes)[np.arange(nodes) & steps[round] == 0]
        return Topology(name, nodes, np.stack([low, low + steps[round]], axis=1))

    return _alone(name, nodes) or Schedule(name, nodes, len(steps), draw, len(steps))


def base(nodes: int, k: int = 1) -> Schedule:
    """Base-(k+1): exact for any number of nodes, in at most 2 log_{k+1} n + 2 rounds, at most k neighbors each.

    Source: Takezawa et al., "Beyond exponential graph: communication-efficient topologies for decentralized learning
        via finite-time convergence", 2023.
    """
    if k < 1:
        raise TopologyError(f"a base graph with k={k} neighbors links nobody: take k=1 or more")
    name = f"base:k={k}"
    if nodes <= 1:
        return _alone(name, nodes) or Schedule.of(Topology(name, nodes, ()))
    k = min(k, nodes - 1)  # more link no further, and the construction counts up to k
    builders.require_edges("base", nodes, nodes * k // 2)
    rounds = base_graph.base_rounds(nodes, k, name)
    return Schedule(name, nodes, len(rounds), rounds.__getitem__, len(rounds))


def random_matching(nodes: int, seed: int = 0) -> Schedule:
    """Random pairs, drawn anew each round; one is left out where the number is odd.

    Source: Boyd et al., "Randomized gossip algorithms", 2006, of which this is the synchronous form.
    """
    name = f"random-matching:seed={seed}"

    def draw(round: int) -> Topology:
        order = Draws(seed, "random-matching", round).order(nodes)
        return Topology(name, nodes, order[: nodes // 2 * 2].reshape(-1, 2))

    return _alone(name, nodes) or Schedule(name, nodes, None, draw, 1 if nodes == 2 else None)


def epidemic_oracle(nodes: int, s: int | None = None, seed: int = 0) -> Schedule:
    """EL-Oracle: a random graph in which each has s neighbors (log2 of the nodes unless told), drawn anew each round.

    Source: De Vos et al., "Epidemic learning: boosting decentralized learning with randomized communication", 2023.
    """
    s = _about_log(nodes) if s is None else s
    if nodes >= 1 and (not min(1, nodes - 1) <= s < nodes or nodes * s % 2):
        possible = [d for d in range(min(1, nodes - 1), nodes) if nodes * d % 2 == 0]
        near = " or ".join(f"s={d}" for d in sorted(sorted(possible, key=lambda d: abs(d - s))[:2]))
        raise TopologyError(
            f"there is no epidemic-oracle of {nodes} peers with s={s}: s must be below the peers and peers times s "
            f"even; take {near}"
        )
    builders.require_edges("epidemic-oracle", nodes, nodes * s // 2)
    name = f"epidemic-oracle:s={s},seed={seed}"

    def draw(round: int) -> Topology:
        draws = Draws(seed, "epidemic-oracle", round)
        return Topology(name, nodes, regular_pairs(draws, nodes, s))

    return _alone(name, nodes) or Schedule(name, nodes, None, draw, 1 if s == nodes - 1 else None)


def epidemic_local(nodes: int, s: int | None = None, seed: int = 0) -> Schedule:
    """EL-Local: each sends to s others (log2 of the nodes unless told), drawn anew each round; the average drifts.

    Who receives from d others puts 1 / (1 + d) on each and on itself.

    Source: De Vos et al., "Epidemic learning: boosting decentralized learning with randomized communication", 2023.
    """
    s = _about_log(nodes) if s is None else s
    if nodes >= 1 and not min(1, nodes - 1) <= s < nodes:
        raise TopologyError(
            f"there is no epidemic-local of {nodes} peers with s={s}: each sends to 1 to {nodes - 1} others; "
            f"take s={_about_log(nodes)}"
        )
    builders.require_edges("epidemic-local", nodes, nodes * s)
    name = f"epidemic-local:s={s},seed={seed}"

    def draw(round: int) -> Topology:
        chosen = others(Draws(seed, "epidemic-local", round), nodes, s)
        return Topology(name, nodes, chosen, directed=True, drifting=True)

    return _alone(name, nodes) or Schedule(name, nodes, None, draw, 1 if s == nodes - 1 else None)


def equi_dynamic(nodes: int, directed: bool = True, eta: float = 0.5, seed: int = 0) -> Schedule:
    """OD-EquiDyn: all receive from the one u places before, u drawn anew each round; OU-EquiDyn pairs them up instead.

    Args:
        nodes: how many.
        directed: every node receives from one and sends to another; else those u places apart are paired from a random
            node on, and who finds its partner taken sits out.
        eta: between 0 and 1: the other one gets eta (n − 1) / n of the weight.
        seed: the same seed gives the same rounds.

    Source: Song et al., "Communication-efficient topologies for decentralized learning with O(1) consensus rate",
        2022, section 4.
    """
    if not 0 < eta <= 1:
        raise TopologyError(f"equi-dynamic cannot mix by eta={eta}: take eta above 0 and up to 1, as 0.5")
    name = f"equi-dynamic:directed={str(directed).lower()},eta={eta},seed={seed}"

    def draw(round: int) -> Topology:
        draws = Draws(seed, "equi-dynamic", round)
        step = 1 + int(draws.below(nodes - 1, 1)[0])
        first = int(draws.below(nodes, 1)[0])
        everyone = np.arange(nodes)
        pairs = np.stack([everyone, (everyone + step) % nodes], axis=1)
        if not directed:
            pairs = np.array(_paired(np.roll(pairs, -first, axis=0).tolist()), dtype=np.int64)
        values = np.full(len(pairs), eta * ((nodes - 1) / nodes))
        return Topology.of_links(name, nodes, pairs, values, directed)

    return _alone(name, nodes) or Schedule(name, nodes, None, draw, 1 if nodes == 2 and eta == 1 else None)


def moshpit(nodes: int, dims: int = 2) -> Schedule:
    """Groups along one axis of a grid of dims dimensions, the next axis each round; exact where the grid is full.

    The grid is the smallest with equal sides that holds all; they fill it in order, and its last groups may be smaller.

    Source: Ryabinin et al., "Moshpit SGD: communication-efficient decentralized training on heterogeneous unreliable
        devices", 2021.
    """
    if not 1 <= dims <= 30:
        raise TopologyError(f"moshpit cannot lay peers on a grid of dims={dims} dimensions: take dims=1 to 30, as 2")
    name = f"moshpit:dims={dims}"
    side = 1
    while side**dims < nodes:
        side += 1
    builders.require_edges("moshpit", nodes, nodes * (side - 1) // 2)
    full = next(axis for axis in range(dims) if side ** (axis + 1) >= nodes)  # axes below the last one that is in use
    exact = full + 1 if nodes % side**full == 0 else None

    def draw(round: int) -> Topology:
        stride = side**round
        everyone = np.arange(nodes)
        own = everyone // stride % side  # the place within the group
        pairs = []
        for step in range(1, side):
            ahead = everyone[(own + step < side) & (everyone + step * stride < nodes)]
            pairs.append(np.stack([ahead, ahead + step * stride], axis=1))
        return Topology(name, nodes, np.concatenate([np.empty((0, 2), dtype=np.int64), *pairs]))

    return _alone(name, nodes) or Schedule(name, nodes, dims, draw, exact)


def cycle(
    nodes: int,
    files: str | None = None,
    edges: str = "-",
    directed: bool = False,
    of: int | None = None,
    drifting: bool = False,
) -> Schedule:
    """The files A, B and C in turn, `files=A+B+C`; in a recipe that travels their edges, as `edges=0-1/1-2|0-2`.

    Args:
        nodes: how many.
        files: never reaches here but by mistake: `topology_files.load_schedule` reads them.
        edges: of each round as `graph` has them, the rounds apart by |.
        directed: whether they are arcs.
        of: the number of nodes that it is for; None for any.
        drifting: whether the weights may let the network's average drift.
    """
    if files is not None:
        raise TopologyError(
            f"'cycle:files={files}' is not written out, and only its own machine can read its files: "
            "load it with load_schedule, or give edges="
        )
    rounds = [builders.graph(nodes, part, directed, of, drifting) for part in edges.split("|")]
    return in_turn(f"cycle:{builders.graph_options(edges, directed, of, drifting)}", rounds)


def in_turn(name: str, rounds: Sequence[Topology]) -> Schedule:
    """The topologies one after the other, then again from the first. Each may be unconnected, all together may not.

    Raises:
        TopologyError: they are not of the same nodes, or leave somebody without a way to somebody.
    """
    nodes = rounds[0].nodes
    for topology in rounds:
        if topology.nodes != nodes:
            raise TopologyError(
                f"{rounds[0].name!r} has {nodes} nodes and {topology.name!r} {topology.nodes}: in a cycle all need the "
                "same number"
            )
    keys = distinct(np.concatenate([topology.arc_array @ (nodes, 1) for topology in rounds]))
    together = Topology(name, nodes, np.stack([keys // nodes, keys % nodes], axis=1), directed=True)
    if not together.connected:
        sizes = ", ".join(str(len(part)) for part in together.components)
        raise TopologyError(
            f"the rounds of the cycle together are not connected but leave parts of {sizes} nodes: link them"
        )
    rounds = tuple(rounds)
    return Schedule(name, nodes, len(rounds), rounds.__getitem__, None, (in_turn, (name, rounds))).settled()


def _paired(candidates: list[list[int]]) -> list[list[int]]:
    """The pairs of which neither is taken yet, first come first served."""
    taken: set[int] = set()
    pairs = []
    for one, other in candidates:
        if one not in taken and other not in taken:
            taken.update((one, other))
            pairs.append([one, other])
    return pairs


def _alone(name: str, nodes: int) -> Schedule | None:
    """The schedule of a single node, and the refusal of none; None for more."""
    return Schedule.of(Topology(name, nodes, ())) if nodes <= 1 else None


def _about_log(nodes: int) -> int:
    """The whole part of log2 of the nodes, or one beside it where their product must be even."""
    s = max(nodes, 1).bit_length() - 1
    return s if nodes * s % 2 == 0 else s + 1 if s + 1 < nodes else s - 1
