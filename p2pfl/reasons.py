"""Why something that another machine sent, claimed or asked for was refused or dropped: the one list of reasons.

A reason is a short fixed phrase, made to be counted: it labels metrics and log lines and ends every refusal. What was
particular about one case belongs into the detail beside it. Reasons are never renamed: graphs and runs on disk outlive
versions. A test holds that the package uses those of this list, and no others.
"""

from collections.abc import Mapping

CONNECTION: Mapping[str, str] = {
    "no TLS": "It spoke plain HTTP to a peer that takes encrypted links alone: start it without --insecure.",
    "old TLS": "It offers no TLS 1.3: update the Python or OpenSSL of that machine.",
    "no certificate": "It showed no certificate of the network: a scanner, a browser, or a peer without the key.",
    "foreign certificate": "Its certificate is of another network key: give it this network's token, or a newer one.",
    "other network": "It belongs to another network: check --network on both.",
    "former key": "It came with a key that was replaced: if it is to come in, p2pfl network token NAME here gives the "
    "new one, p2pfl network join --replace - takes it there.",
    "other key": "Who is there has another key: changed while this machine was away, or of another network.",
    "banned there": "That member says that this peer was banned from the network.",
    "banned": "Its id was banned from the network by one of the members.",
    "handshake too slow": "TLS was not agreed on in time: a very busy machine, or somebody who holds connections open.",
    "broken handshake": "TLS broke off half-way: a scanner, or a connection that was cut.",
    "said nothing": "It opened a connection and sent no hello in time: a scanner, or a machine that hangs.",
    "too many connections": "One address holds more connections than a peer bears: see what runs there.",
    "no descriptors": "This process is out of file descriptors: raise the limit, with ulimit -n 4096.",
    "too many requests": "It asks more often than a peer bears: see what runs there.",
    "no free slot": "It asked for a body while enough others were going out; it comes again.",
    "receiver too slow": "It took a body slower than the lowest rate that is borne: a slow link, or a hostile one.",
    "receiver gone": "It went while it was being sent a body.",
    "compressed": "Its request was compressed: no peer sends such a one.",
    "has a body": "Its request had a body, and nothing is uploaded here: no peer sends such a one.",
    "from a web page": "A web page in somebody's browser tried to talk to this peer.",
}

HELLO: Mapping[str, str] = {
    "no hello": "It began with another message than a hello: another program, or another version.",
    "no common version": "The two speak different versions of the protocol: update the older one.",
    "wrong peer id": "Its hello names another peer than its key proves: a liar, or a copied configuration.",
    "bad signature": "A signature does not fit what it stands under: changed on the way, or forged.",
    "impossible settings": "It asks for settings that no recipe can have: update the older of the two.",
    "duplicate seat": "Two peers claim one seat: give each its own --part, or its own name.",
    "duplicate identity": "Two processes go by one identity: stop one, or give it a P2PFL_HOME of its own.",
    "self": "This peer reached itself.",
    "second connection": "The two dialed each other at the same time; one connection is enough.",
    "schema mismatch": "Its model has other tensors: the same --model and kind of data are needed everywhere.",
}

MESSAGE: Mapping[str, str] = {
    "malformed message": "What it sent is no message of this protocol: another version, or a hostile one.",
    "message too long": "A control message was over its limit: another version, or a hostile one.",
    "too many messages": "It says more than a peer ever has to: a fault of another version, or a hostile one.",
    "does not read": "It takes in nothing of what it is told: it hangs, or means to fill this peer's memory.",
    "foreign record": "It told of a peer what only that peer may say: a liar, or another version.",
    "bad key": "The new network key that it handed on has another length: another version, or a hostile one.",
    "bad ban": "It bans itself, or what is no peer's id: another version, or a hostile one.",
    "too many bans": "It bans more peers than there is room for: a liar; else make a new network.",
    "key change too far ahead": "It claims more changes of the key than there can have been: a liar.",
    "not understood": "A message could not be handled here: a fault of p2pfl, please report it with the log.",
}

SHARE: Mapping[str, str] = {
    "late": "The share came after its round was mixed here: that peer is slower than its neighbors.",
    "missing": "No share came before the round's deadline: that peer is slow, gone, or cut off.",
    "foreign": "The share is of a peer that is no neighbor in that round: views differ, for a moment.",
    "second share": "It offered two different shares for one round; the first one counts.",
    "view mismatch": "The two ends saw different members in that round; the views are synced.",
    "recipe mismatch": "The share was made by another recipe: restart that peer.",
    "wrong size": "The body is not as long as a model is: another version, or a hostile one.",
    "malformed header": "The body is not framed as this network's model: another version, or a hostile one.",
    "not finite": "The model has NaN or infinite numbers: its training diverged, try a lower --lr.",
    "absurd norm": "The model is a thousand times larger than this peer's: its training diverged, or it lies.",
    "wrong payload": "The body is not the one that was signed for: changed on the way, or by its owner.",
    "other receiver": "The offer was made for another peer, and passed on here: a liar.",
    "former instance": "The offer is from before its peer's last start: an old one, played again.",
    "replayed": "The offer has come before: an old one, played again.",
    "not for you": "It asked for a body that was made for another peer.",
    "gone": "The body was withdrawn before it was fetched: that peer had gone on.",
    "refused": "The owner's machine would not hand out the body: see the log of that peer.",
    "unreachable": "No address of the owner answered: a firewall, or it is gone.",
    "wrong peer": "Somebody else than the owner answered at its address; nothing was taken from there.",
    "busy": "The owner had no free slot for this body until the deadline.",
    "too slow": "The body came slower than the lowest rate that is borne: a slow link, or a hostile one.",
    "broken off": "The connection ended in the middle of the body.",
    "encoded body": "The body came compressed or chunked, as no peer sends it.",
}

ANNOUNCEMENT: Mapping[str, str] = {
    "bad name": "An announcement on the LAN carries a name that no peer has.",
    "bad text": "An announcement on the LAN lacks what every peer tells.",
    "bad address": "An announcement on the LAN has no address that could be dialed.",
}

MEANING: Mapping[str, str] = {**CONNECTION, **HELLO, **MESSAGE, **SHARE, **ANNOUNCEMENT}


def meaning(reason: str) -> str:
    """What a reason means and what to do, in a sentence; the reason itself where it is of a later version."""
    return MEANING.get(reason, reason)
