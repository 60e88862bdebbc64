"""A core to be fuzzed: in the lobby of a network, with nobody met yet."""

from message_targets import ASKED, KEY, NETWORK, US, us

from p2pfl.network_key import KeyRing
from p2pfl.protocol.core import PeerCore


def a_core() -> PeerCore:
    rank = KeyRing(KEY).rank
    return PeerCore(us(), NETWORK, "a" * 26, ASKED, max_body=1 << 20, identity=US, rank=rank)
