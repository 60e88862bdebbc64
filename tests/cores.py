"""What tests ask of cores on a virtual network, and what happens to a core besides messages."""

import msgspec
from virtual import Network, Node

from p2pfl.events import Started
from p2pfl.protocol.messages import Member, Message, decode, encode
from p2pfl.protocol.participant import Found, Received


def started(net: Network) -> list[tuple[str, ...]]:
    return [node.of(Started)[0].members if node.of(Started) else () for node in net.nodes]


def digests(net: Network) -> set[str]:
    round = max(node.core.round for node in net.living) + 2
    return {node.core._table.view(round).digest for node in net.living}


def record(node: Node, **fields: object) -> Member:
    return msgspec.structs.replace(node.core._table.me, **fields)


def net_found(node: Node) -> Found:
    return Found("", (node.address,))


def net_received(node: Node, message: Message) -> Received:
    return Received(next(iter(node.ends)), decode(encode(message)))
