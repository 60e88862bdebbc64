"""One peer on the LAN, in Python: run it on two machines (or twice on this one), with parts 1 and 2.

python examples/lan/peer.py 1/2          # makes the network's key; p2pfl network token example shows it
python examples/lan/peer.py 2/2          # on the other machine, after p2pfl network join - (and the token)
python examples/lan/peer.py 2/2 127.0.0.1 3     # on one machine alone: interface, rounds
"""

import sys

import p2pfl

part = tuple(int(number) for number in (sys.argv[1] if len(sys.argv) > 1 else "1/2").split("/"))
interface = sys.argv[2] if len(sys.argv) > 2 else None
rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 10

data = p2pfl.load_data("mnist10k", part=part, alpha=0.5)


p2pfl.create_network("example", exist_ok=True)  # or finds the one that was made or joined


def show(event: object) -> None:
    """A sink: called with every event of the run."""
    if type(event).__name__ in ("PeerJoined", "RoundFinished", "PeerGone"):
        print(event)


peer = p2pfl.Peer(
    f"peer-{part[0]}",
    p2pfl.build_model("mlp", data.input_shape, data.outputs),
    data.train,
    data.test,
    network="example",
    seat=str(part[0] - 1),
    interface=interface,
    sinks=(show,),
    topology="ring",
    min_peers=part[1],
)
result = peer.run_sync(rounds=rounds)
print(f"accuracy {result.accuracy:.3f} with {', '.join(result.members)}")
