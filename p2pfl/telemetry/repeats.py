"""What comes again and again is told seldom, with its count: a flood of strangers must not fill a disk."""

import time
from collections import OrderedDict
from collections.abc import Callable
from ipaddress import ip_address, ip_network

import msgspec

from p2pfl.events import Refusal, RoundFinished, RunEvent, ShareRejected, Warned
from p2pfl.types import PeerId

_KEYS = 4096  # different things whose repeats are counted
_TOLD_S = 60.0  # what goes on is told at least so often
_FIRSTS = 16  # places that a kind of refusal is told of one by one; further ones are counted together
_HOST_BITS = 64  # what one machine has of IPv6 at the least, to make up addresses from


class Repeats:
    """Counts what comes again and again; of more than `keys` things those not seen for longest are forgotten."""

    def __init__(self, keys: int = _KEYS, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = keys
        self._clock = clock
        self._counts: OrderedDict[object, tuple[int, float]] = OrderedDict()  # how often, and when last told

    def __contains__(self, key: object) -> bool:
        """Whether it is counted."""
        return key in self._counts

    def count(self, key: object) -> int | None:
        """How often it has come, if that is to be told: the first time, at powers of ten, and after a minute."""
        now = self._clock()
        times, told = self._counts.pop(key, (0, now))
        times += 1
        due = str(times).strip("0") == "1" or now - told >= _TOLD_S
        self._counts[key] = (times, now if due else told)
        if len(self._counts) > self._keys:
            self._counts.popitem(last=False)
        return times if due else None


class Refusals:
    """Which refusals are told. However many addresses they come from, a kind of them is a few lines a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._places = Repeats(clock=clock)
        self._kinds = Repeats(clock=clock)
        self._firsts: dict[tuple[str, str], int] = {}

    def count(self, event: Refusal) -> int | None:
        """How often this has come from there, or from all places after the first few, if it is to be told."""
        kind = (event.what, event.reason)
        place = (*kind, place_of(event.remote) or event.other)
        if place not in self._places:
            if self._firsts.get(kind, 0) == _FIRSTS:
                return self._kinds.count(kind)
            self._firsts[kind] = self._firsts.get(kind, 0) + 1
        return self._places.count(place)


class Seldom:
    """Which events are written down, and how often they came: of what others bring about at will, few are."""

    def __init__(self) -> None:
        self._refusals = Refusals()
        self._repeats = Repeats()
        self._rounds: dict[PeerId, int] = {}  # the last round that each peer of this process has done

    def told(self, event: RunEvent) -> tuple[RunEvent | None, int]:
        """The event, with its count where it carries one, or None if it is not to be told; and how often it came."""
        times: int | None = 1
        match event:
            case Refusal():
                times = self._refusals.count(event)
            case ShareRejected():  # by rounds of our own: the round that a share is said to be of, a liar makes up
                round = self._rounds.get(event.peer)
                times = self._repeats.count(("share", event.peer, round, event.other, event.reason))
            case Warned():
                times = self._repeats.count(("warned", event.peer, event.text))
            case RoundFinished():
                self._rounds[event.peer] = event.round
        if times is None:
            return None, 0
        if isinstance(event, Refusal | ShareRejected):
            return msgspec.structs.replace(event, times=times), times
        return event, times


def place_of(remote: str) -> str:
    """Where an address is, without its port: an IPv4 host, or the smallest net that an IPv6 machine has to itself."""
    host = remote.rpartition(":")[0].strip("[]").partition("%")[0] or remote
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ip_network((address, _HOST_BITS), strict=False))
