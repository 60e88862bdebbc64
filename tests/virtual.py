"""Many peer cores in virtual time: a third driver, beside the asyncio shell and the simulator.

Everything that happens stands in one heap of (time, order, action). Messages go through `encode` and `decode`; a link
delivers in order; a model is three numbers, trained by a step towards a target.
"""

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TypeVar

import torch

from p2pfl.errors import TopologyError
from p2pfl.events import RoundFinished, RunEvent, ShareRejected
from p2pfl.graphs.named import schedule
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.identity import Identity
from p2pfl.layout import Vector
from p2pfl.mixing import is_finite, mix
from p2pfl.protocol.core import PeerCore
from p2pfl.protocol.detector import Swim
from p2pfl.protocol.messages import Member, Message, Offer, decode, encode
from p2pfl.protocol.participant import (
    Close,
    Dial,
    DialFailed,
    Done,
    Drop,
    Effect,
    Emit,
    Event,
    Fetch,
    Fetched,
    FetchFailed,
    Found,
    Hash,
    Hashed,
    LinkLost,
    LinkOpened,
    Mix,
    Mixed,
    Prepare,
    Prepared,
    Received,
    Rekey,
    Rules,
    Save,
    Send,
    Serve,
    Stop,
    Tick,
    Train,
    Trained,
)
from p2pfl.types import PeerId, Setting

BYTES = 100  # what a framed vector is said to be long
FULL_STEPS = 10
DEFAULTS: Mapping[str, Setting] = {
    "topology": "ring",
    "rounds": 5,
    "min_peers": 2,
    "patience": 3.0,
    "max_wait_s": 600.0,
}
E = TypeVar("E", bound=RunEvent)

Latency = Callable[[random.Random], float]
Alter = Callable[["Node", "Node", Message], Message | None]  # None drops
Spoil = Callable[["Node", "Node", Offer, Vector], Vector | str]  # a text is the reason of a failure


def train(vector: Vector, target: Vector, rate: float = 0.3) -> Vector:
    """One step towards the target."""
    return vector - rate * (vector - target)


def one_way_ring(nodes: int) -> Schedule:
    """Each sends to the next alone, in every round: nobody hears from whom it sends to."""
    arcs = tuple((i, (i + 1) % nodes) for i in range(nodes)) if nodes > 1 else ()
    return Schedule.of(Topology("one-way-ring", nodes, arcs, directed=True))


def strides(nodes: int) -> Schedule:
    """Each sends to one other, a stride further in every round."""

    def draw(round: int) -> Topology:
        stride = 1 + round % (nodes - 1)
        return Topology(f"stride{stride}", nodes, tuple((i, (i + stride) % nodes) for i in range(nodes)), directed=True)

    return Schedule("strides", nodes, nodes - 1, draw) if nodes > 1 else one_way_ring(1)


def matchings(nodes: int) -> Schedule:
    """Pairs drawn anew each round; of an odd number one is left over."""

    def draw(round: int) -> Topology:
        order = list(range(nodes))
        random.Random(f"{nodes} {round}").shuffle(order)
        return Topology(f"matching{round}", nodes, tuple(zip(order[::2], order[1::2], strict=False)))

    return Schedule("matchings", nodes, None, draw)


def blinking(nodes: int) -> Schedule:
    """A ring one round in seven, nothing in between."""
    return Schedule(
        "blinking", nodes, 7, lambda r: Topology("blink", nodes, () if r else schedule("ring", nodes).at(0).edges)
    )


def pairs_only(nodes: int) -> Schedule:
    """No form for an odd number."""
    if nodes % 2:
        raise TopologyError(f"pairs need an even number, not {nodes}")
    return matchings(nodes)


HAND_MADE: Mapping[str, Callable[[int], Schedule]] = {
    "one-way-ring": lru_cache(one_way_ring),
    "strides": lru_cache(strides),
    "matchings": lru_cache(matchings),
    "blinking": lru_cache(blinking),
    "pairs": lru_cache(pairs_only),
}


def scheduled(spec: str, nodes: int) -> Schedule:
    """What the spec names, made here or in the package."""
    return HAND_MADE[spec](nodes) if spec in HAND_MADE else schedule(spec, nodes)


def fingerprint(settings: Mapping[str, Setting]) -> str:
    """Equal for equal settings."""
    return hashlib.blake2b(repr(sorted({**DEFAULTS, **settings}.items())).encode(), digest_size=8).hexdigest()


@lru_cache
def identity(number: int) -> Identity:
    """The key pair of that number, the same in every run; ids order otherwise than numbers."""
    return Identity(hashlib.sha256(f"peer {number}".encode()).digest())


def payload(vector: Vector) -> bytes:
    """What stands for the hash of a framed vector."""
    return hashlib.sha256(vector.numpy().tobytes()).digest()


@dataclass
class End:
    """One end of a link."""

    link: int
    node: "Node"
    other: "End | None" = None
    open: bool = True
    clear_at: float = 0.0  # when the last message to this end arrives


@dataclass
class Node:
    """One peer: its core, and what its driver keeps."""

    core: PeerCore
    identity: Identity
    peer: PeerId
    name: str
    address: str
    target: Vector
    init: Vector
    asked: dict[str, Setting]
    layout: str = "three"
    data: str = ""
    train_s: Callable[[int], float] = lambda round: 1.0
    prepare_s: float = 0.0
    start_round: int = 0
    alive: bool = False
    silent: bool = False  # dead without a word: dialing it takes time, and nobody answers
    offset: float = 0.0  # of its clock
    asleep: bool = False  # its process is stopped: whatever happens waits
    waiting: list[Event] = field(default_factory=list)
    healing: str = "catch-up"
    done: Done | None = None
    ends: dict[int, End] = field(default_factory=dict)
    bodies: dict[str, Vector] = field(default_factory=dict)
    events: list[tuple[float, RunEvent]] = field(default_factory=list)
    saves: dict[int, Vector] = field(default_factory=dict)
    mixes: dict[int, Mix] = field(default_factory=dict)
    trains: dict[int, Train] = field(default_factory=dict)
    prepares: list[Mapping[str, Setting]] = field(default_factory=list)
    rekeys: list[Rekey] = field(default_factory=list)
    wake_at: float | None = None
    most_bodies: int = 0

    def of(self, kind: type[E]) -> list[E]:
        """The events of a kind."""
        return [event for _, event in self.events if isinstance(event, kind)]

    def rejected(self) -> Counter[tuple[int, str, str]]:
        """Refused shares: round, other peer, reason."""
        return Counter((e.round, e.other, e.reason) for e in self.of(ShareRejected))

    def rounds(self) -> list[int]:
        """The rounds finished, in order."""
        return [event.round for event in self.of(RoundFinished)]

    def numbers(self) -> list[float]:
        """The model with which the current round began."""
        model = self.core.model
        assert model is not None
        return model.tolist()

    def state_of(self, other: "Node") -> str:
        """What this peer holds another to be."""
        return next((m.state for m in self.core.members if m.peer == other.peer), "")


class Network:
    """Virtual time, and whatever peers are added."""

    def __init__(
        self, latency: Latency = lambda rng: 0.01, seed: int = 0, *, network: str = "test", **settings: Setting
    ) -> None:
        self.now = 0.0
        self.nodes: list[Node] = []
        self.alter: list[Alter] = []  # what a liar says instead, under its own seal
        self.tamper: list[Alter] = []  # what somebody makes of it on the way
        self.spoil: list[Spoil] = []
        self.sent: Counter[str] = Counter()
        self.apart = 0  # how many rounds running peers were apart at most
        self.swim = Swim()
        self.secure = True
        self._network = network
        self._settings = settings
        self._starts: Counter[PeerId] = Counter()
        self._latency = latency
        self._rng = random.Random(seed)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._walls: list[tuple[set[PeerId], set[PeerId]]] = []
        self._mute: set[tuple[PeerId, PeerId]] = set()  # whose words are lost on the way to whom

    # Peers

    def add(
        self,
        index: int,
        *,
        at: float = 0.0,
        seat: str | None = None,
        name: str | None = None,
        who: int | None = None,
        target: list[float] | None = None,
        init: list[float] | None = None,
        asked: Mapping[str, Setting] | None = None,
        meets: str = "all",
        wait_s: float | None = None,
        network: str | None = None,
        **driver: object,
    ) -> Node:
        """A peer that starts at a time and finds all others, the first one, or nobody.

        Args:
            who: the number of its identity, where that is not its index.
        """
        own = identity(index if who is None else who)
        peer = own.peer
        self._starts[peer] += 1
        name = name or f"n{index}"
        address = f"10.0.0.{index}:{len(self.nodes)}"
        wishes = dict(self._settings if asked is None else asked)
        core = PeerCore(
            Member(peer, seat or str(index), name, (address,), (self._starts[peer] - 1) << 16),
            network or self._network,
            f"instance{len(self.nodes)}",
            wishes,
            max_body=1 << 20,
            wait_until=None if wait_s is None else at + wait_s,
            wait_s=wait_s or 0.0,
            identity=own,
            swim=self.swim,
        )
        start = torch.tensor(init or [0.0, 0.0, 0.0])
        goal = torch.tensor(target or [float(index + 1), float(index % 2), 1.0])
        node = Node(core, own, peer, name, address, goal, start, wishes, data=f"data{len(self.nodes)}")
        for key, value in driver.items():
            assert hasattr(node, key)
            setattr(node, key, value)
        self.nodes.append(node)
        self.at(at, lambda: self._start(node, meets))
        return node

    def _start(self, node: Node, meets: str) -> None:
        node.alive = True
        others = [other for other in self.nodes if other is not node and other.alive]
        for other in others[:1] if meets == "first" else others if meets == "all" else []:
            self.later(node, Found(other.peer, (other.address,)))
            if meets == "all":
                self.later(other, Found(node.peer, (node.address,)))
        self.feed(node, Tick())

    def __getitem__(self, index: int) -> Node:
        return self.nodes[index]

    def of(self, peer: PeerId) -> Node:
        """The living peer of that id."""
        return next(node for node in self.nodes if node.peer == peer)

    @property
    def living(self) -> list[Node]:
        """Peers that were not killed and have not ended."""
        return [node for node in self.nodes if node.alive and node.done is None]

    # Time

    def at(self, time: float, action: Callable[[], None]) -> None:
        """Do something at a time."""
        self._order += 1
        heapq.heappush(self._heap, (max(time, self.now), self._order, action))

    def later(self, node: Node, event: Event, delay: float | None = None) -> None:
        """Feed an event after a delay, by default the network's latency."""
        delay = self._latency(self._rng) if delay is None else delay
        self.at(self.now + delay, lambda: self.feed(node, event))

    def run(self, until: float = 100_000.0, when: Callable[[], bool] = lambda: False, most: int = 400_000) -> None:
        """Run to a time, a condition, or quiet."""
        for _ in range(most):
            if not self._heap or self._heap[0][0] > until or when():
                return
            self.now, _, action = heapq.heappop(self._heap)
            action()
        raise AssertionError("no end in sight: the cores keep each other, or their clocks, busy")

    def run_to_round(self, round: int, *nodes: Node) -> None:
        """Run until these peers, or all, are in a round."""
        who = nodes or tuple(self.nodes)
        self.run(when=lambda: all(node.core.state == "running" and node.core.round >= round for node in who))
        assert all(node.core.round >= round for node in who)

    def feed(self, node: Node, event: Event) -> None:
        """Hand an event to a core and carry out what it answers."""
        if not node.alive or node.done is not None:
            return
        if node.asleep:
            node.waiting.append(event)
            return
        for effect in node.core.handle(event, self.now + node.offset):
            assert node.done is None, f"{effect} after the end"
            self._carry_out(node, effect)
        rounds = [n.core.round for n in self.nodes if n.alive and n.core.state == "running"]
        self.apart = max(self.apart, max(rounds, default=0) - min(rounds, default=0))
        deadline = None if node.done is not None else node.core.next_deadline()
        if deadline is not None:
            deadline -= node.offset
        if deadline is not None and (node.wake_at is None or deadline < node.wake_at or node.wake_at < self.now):
            node.wake_at = deadline
            self.at(deadline, lambda: self._tick(node, deadline))

    def _tick(self, node: Node, time: float) -> None:
        if node.wake_at == time:
            node.wake_at = None
            self.feed(node, Tick())

    # Effects

    def _carry_out(self, node: Node, effect: Effect) -> None:
        match effect:
            case Send(link, message):
                self.sent[type(message).__name__] += 1
                self._send(node, link, message)
            case Close(link):
                if link in node.ends:
                    self._end_link(node.ends[link])
            case Dial(key, addresses):
                self.at(self.now + self._latency(self._rng), lambda: self._dial(node, key, addresses))
            case Prepare(settings):
                node.prepares.append(settings)
                self.later(node, self._prepared(node, settings), node.prepare_s)
            case Train(round, vector, budget):
                node.trains[round] = effect
                self._train(node, round, vector, budget)
            case Mix(round):
                node.mixes[round] = effect
                out = torch.empty_like(effect.own)
                distance = mix(effect.own, effect.own_weight, effect.received, out)
                self.later(node, Mixed(round, out, distance, 0.1), 0.1)
            case Hash(token):
                self.later(node, Hashed(token, payload(node.bodies[token])), 0.001)
            case Rekey():
                node.rekeys.append(effect)
            case Serve(token, vector):
                node.bodies[token] = vector
                node.most_bodies = max(node.most_bodies, len(node.bodies))
            case Drop(token):
                del node.bodies[token]
            case Fetch(peer, addresses, offer):
                assert addresses
                self.at(self.now + self._latency(self._rng), lambda: self._fetch(node, peer, offer))
            case Save(round, vector):
                node.saves[round] = vector
            case Emit(event):
                node.events.append((self.now, event))
            case Done():
                node.done = effect
                self._end_all(node, 0.0)

    def _prepared(self, node: Node, settings: Mapping[str, Setting]) -> Prepared:
        values = {**DEFAULTS, **settings}
        spec = str(values["topology"])
        rules = Rules(
            topology=lambda nodes, round: scheduled(spec, nodes).at(round),
            schedule=lambda nodes: scheduled(spec, nodes),
            rounds=int(values["rounds"]),
            min_peers=int(values["min_peers"]),
            patience=float(values["patience"]),
            max_wait_s=float(values["max_wait_s"]),
            healing=node.healing,
        )
        return Prepared(
            settings=dict(settings),
            fingerprint=fingerprint(settings),
            rules=rules,
            layout=node.layout,
            tensors=(f"{node.layout} [3] float32",),
            bytes=BYTES,
            data=node.data,
            vector=node.init,
            init=str(node.init.tolist()),
            round=node.start_round,
        )

    def _train(self, node: Node, round: int, vector: Vector, budget: float | None) -> None:
        full_s = node.train_s(round)
        steps = FULL_STEPS
        if budget is not None and full_s > budget:
            steps = max(1, int(FULL_STEPS * budget / full_s))
        seconds = full_s * steps / FULL_STEPS
        trained = train(vector, node.target, 0.3 * steps / FULL_STEPS)
        self.later(node, Trained(round, trained, steps, FULL_STEPS, 0.5, seconds, payload(trained)), seconds)

    def _fetch(self, node: Node, peer: PeerId, offer: Offer) -> None:
        owner = next((n for n in self.nodes if n.peer == peer and n.alive and n.done is None), None)
        if owner is None or self._walled(node, owner):
            return self.feed(node, FetchFailed(peer, offer, "broken off"))
        vector: Vector | str = owner.bodies.get(offer.token, "gone")
        for spoil in self.spoil:
            if not isinstance(vector, str):
                vector = spoil(owner, node, offer, vector)
        if isinstance(vector, str):
            return self.feed(node, FetchFailed(peer, offer, vector))
        return self.feed(node, Fetched(peer, offer, vector, is_finite(vector)))

    # Links

    def _dial(self, node: Node, key: str, addresses: tuple[str, ...]) -> None:
        found = [other for other in self.nodes if other.address in addresses]
        if not node.alive or node.done is not None:
            return
        other = next((n for n in found if n.alive and n.done is None and not self._walled(node, n)), None)
        if other is None:
            mute = any(n.silent or self._walled(node, n) for n in found)
            self.later(node, DialFailed(key, refused=not mute), 5.0 if mute else None)
            return
        self._order += 2
        mine, theirs = End(self._order, node), End(self._order + 1, other)
        mine.other, theirs.other = theirs, mine
        node.ends[mine.link], other.ends[theirs.link] = mine, theirs
        self._order += 2
        self._pass_on(theirs, LinkOpened(theirs.link, proven=node.peer if self.secure else ""))
        self.feed(node, LinkOpened(mine.link, key, other.peer if self.secure else ""))

    def _send(self, node: Node, link: int, message: Message) -> None:
        end = node.ends.get(link)
        if end is None or end.other is None or self._deaf(node, end.other.node):
            return
        altered: Message | None = message
        for alter in self.alter:
            if altered is not None:
                altered = alter(node, end.other.node, altered)
        if isinstance(altered, Offer) and altered is not message and altered.signature:
            # A liar signs its lies: that a broken seal costs the offer is tested elsewhere.
            altered = node.core._seal.seal(altered, end.other.node.peer)
        for alter in self.tamper:
            if altered is not None:
                altered = alter(node, end.other.node, altered)
        if altered is not None:
            self._pass_on(end.other, Received(end.other.link, decode(encode(altered))))

    def _pass_on(self, to: End, event: Event, delay: float | None = None) -> None:
        """Hand an event to an end after what is under way to it already."""
        arrives = max(to.clear_at, self.now + (self._latency(self._rng) if delay is None else delay))
        to.clear_at = arrives

        def deliver() -> None:
            if to.open:
                if to.other is not None and isinstance(event, LinkLost) and self._deaf(to.other.node, to.node):
                    return  # word of the end is lost like any other
                if isinstance(event, LinkLost):
                    to.open = False
                    to.node.ends.pop(to.link, None)
                self.feed(to.node, event)

        self.at(arrives, deliver)

    def _end_link(self, end: End, delay: float | None = None) -> None:
        """This end closes; the other hears of it after what was sent before."""
        if end.open:
            end.open = False
            end.node.ends.pop(end.link, None)
            self.later(end.node, LinkLost(end.link, "closed"), 0.0)
            assert end.other is not None
            self._pass_on(end.other, LinkLost(end.other.link, "closed"), delay)

    def _end_all(self, node: Node, delay: float | None = None) -> None:
        for end in list(node.ends.values()):
            self._end_link(end, delay)

    def tell(self, sender: Node, receiver: Node, message: Message) -> None:
        """Say something on their connection that the sender's core would not say; an offer goes under its seal."""
        if isinstance(message, Offer):
            message = sender.core._seal.seal(message, receiver.peer)
        for end in sender.ends.values():
            if end.other is not None and end.other.node is receiver:
                return self._send(sender, end.link, message)
        raise AssertionError("no connection")

    # Misfortunes

    def kill(self, node: Node, *, silent: bool = False) -> None:
        """End a process; silent: the machine, and no connection to it ends by itself."""
        node.alive, node.silent = False, silent
        if not silent:
            self._end_all(node)

    def stop(self, node: Node) -> None:
        """The user leaves."""
        self.feed(node, Stop())

    def partition(self, *some: Node, silent: bool = False) -> None:
        """Cut these peers off from all others; silent: no connection between them ends by itself."""
        inside = {node.peer for node in some}
        outside = {node.peer for node in self.nodes} - inside
        self._walls.append((inside, outside))
        if silent:
            self._mute |= {pair for a in inside for b in outside for pair in ((a, b), (b, a))}
            return
        for node in some:
            for end in list(node.ends.values()):
                assert end.other is not None
                if end.other.node.peer not in inside:
                    self._end_link(end)

    def wall(self, a: Node, b: Node) -> None:
        """These two cannot reach each other any more, and no connection between them ends by itself."""
        self._walls.append(({a.peer}, {b.peer}))
        self._mute |= {(a.peer, b.peer), (b.peer, a.peer)}

    def mute(self, speaker: Node, listener: Node) -> None:
        """What one says does not reach the other; the other way all is well."""
        self._mute.add((speaker.peer, listener.peer))

    def heal(self) -> None:
        """End all partitions."""
        self._walls.clear()
        self._mute.clear()

    def sleep(self, node: Node, seconds: float) -> None:
        """Stop a process, and let it go on after a while: what happened meanwhile comes at once."""
        node.asleep = True

        def wake() -> None:
            node.asleep, waiting = False, node.waiting
            node.waiting = []
            node.wake_at = None
            self.feed(node, Tick())
            for event in waiting:
                self.feed(node, event)

        self.at(self.now + seconds, wake)

    def _deaf(self, speaker: Node, listener: Node) -> bool:
        return (speaker.peer, listener.peer) in self._mute

    def _walled(self, a: Node, b: Node) -> bool:
        return any((a.peer in x and b.peer in y) or (a.peer in y and b.peer in x) for x, y in self._walls)


def network(
    peers: int,
    latency: Latency = lambda rng: 0.01,
    seed: int = 0,
    wait_s: float | None = None,
    swim: Swim | None = None,
    **settings: Setting,
) -> Network:
    """So many peers who all start at once, all ask for the same, and begin when all are there."""
    net = Network(latency, seed, **{"min_peers": peers, **settings})
    net.swim = swim or net.swim
    for index in range(peers):
        net.add(index, wait_s=wait_s)
    return net


def pairs(net: Network) -> Iterator[tuple[Node, Node]]:
    """Every two living peers."""
    living = net.living
    return ((a, b) for i, a in enumerate(living) for b in living[:i])
