"""What others may take of this process: sizes, counts, rates and times, and the budgets that keep them."""

from collections import Counter
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

_REMEMBERED = 4096  # hosts whose rate is known; an IPv6 network has more addresses than any table


@dataclass(frozen=True)
class Limits:
    """What a transport bears from others. The defaults suit peers on a LAN, also a slow or busy one."""

    max_message: int = 1 << 18  # bytes of a control message, the longest included; more is more memory for strangers
    idle_s: float = 4.0  # outside a request, swept each second: closed within five; less cuts off slow machines
    connect_s: float = 3.0  # to open a connection; more bears slow links, less is sooner at the next address
    stall_s: float = 20.0  # without a byte, a transfer is given up; more bears longer gaps
    min_bytes_per_s: float = 16 * 1024  # a transfer slower than this on the whole is given up
    rekeyed_s: float = 10.0  # after its key is honored no longer a link is closed; less may be too soon to be handed on
    heartbeat_s: float = 5.0  # a silent control connection is asked this often, and lost half of this after
    max_connections: int = 1024  # more serves larger networks, and takes more descriptors from this process
    max_connections_per_host: int = 256  # more serves more peers on one machine, and leaves less for the others
    max_handshakes: int = 32  # at once; more lets a crowd in sooner, each takes a quarter of a megabyte
    max_handshakes_per_host: int = 8  # less leaves more to the others while one host stalls its own
    max_uploads: int = 64  # bodies going out at once; each holds about two megabytes, the rest are told to come again
    max_uploads_per_peer: int = 8  # more serves a peer that fetches much at once, and leaves less for the others
    max_requests_per_s: float = (
        200.0  # of one peer, or one host in the clear, on the whole; bursts may be five times it
    )


class Slots:
    """So many at once, and so many of them for any one."""

    def __init__(self, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._taken: Counter[str] = Counter()
        self._sum = 0

    def take(self, who: str) -> bool:
        """Take a slot, if there is one; it is given back by `free`."""
        if self._sum >= self._total or self._taken[who] >= self._each:
            return False
        self._sum += 1
        self._taken[who] += 1
        return True

    def free(self, who: str) -> None:
        """Give a slot back."""
        self._sum -= 1
        self._taken[who] -= 1
        if not self._taken[who]:
            del self._taken[who]

    def held(self, who: str) -> int:
        """How many one has."""
        return self._taken.get(who, 0)

    @property
    def taken(self) -> int:
        """How many are taken in all."""
        return self._sum


class Rate:
    """So many a second of any one, after a burst: a bucket of tokens each, filled steadily."""

    def __init__(self, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens, and when they were counted; longest unseen first

    def admits(self, who: str, now: float) -> bool:
        """Take a token, if there is one; `now` in seconds of a clock that never goes back."""
        tokens, then = self._buckets.pop(who, (self._burst, now))
        tokens = min(self._burst, tokens + (now - then) * self._per_s)
        admitted = tokens >= 1
        self._buckets[who] = (tokens - admitted, now)
        if len(self._buckets) > _REMEMBERED:
            del self._buckets[next(iter(self._buckets))]
        return admitted


def site_of(host: str) -> str:
    """What limits for one host count together: an IPv4 address, or the 64 bits of IPv6 that one machine has at least.

    Source: RFC 4291, section 2.5.1, on the 64 bits of interface identifiers, of which a machine may take any number.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return f"{IPv6Address(int(address) >> 64 << 64)}/64"
