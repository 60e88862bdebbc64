"""The whole examination: look at this machine, listen on its interfaces, knock at the peers, and judge."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from p2pfl import home
from p2pfl.doctor.findings import Finding, note, problem
from p2pfl.doctor.machine import descriptor_limit, judge_descriptors, judge_exposed, judge_folder, judge_ports
from p2pfl.doctor.multicast import Heard, judge_heard, listen
from p2pfl.doctor.nics import Nic, judge_nics, nics
from p2pfl.doctor.others import Answer, judge_answers, judge_tags, judge_versions, knock_all
from p2pfl.errors import UsageError
from p2pfl.identity import SECRET_BYTES, Identity
from p2pfl.network.discovery import Candidate, split_address
from p2pfl.network.http import DEFAULT_PORT
from p2pfl.network.mdns import browse
from p2pfl.network.tls import Credentials
from p2pfl.network_key import KeyRing, check_name
from p2pfl.protocol.messages import VERSIONS

PORTS = range(DEFAULT_PORT, DEFAULT_PORT + 30)  # as a peer tries them


@dataclass(frozen=True)
class Examination:
    """What was seen, and what is to be said about it: problems first."""

    nics: tuple[Nic, ...]
    heard: dict[str, Heard]  # by interface
    candidates: tuple[Candidate, ...]
    answers: tuple[Answer, ...]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether there is no problem."""
        return not any(one.level == "problem" for one in self.findings)


async def examine(network: str | None, seconds: float, addresses: Sequence[str]) -> Examination:
    """Look, listen for so many seconds, and knock.

    Args:
        network: the one it is about; None for all whose key is here.
        addresses: host:port of peers to try, beside those that are heard.

    Raises:
        UsageError: an address is none, or no network can have this name.
    """
    for address in addresses:
        try:
            split_address(address)
        except ValueError as error:
            raise UsageError(f"--peer: {error}, as 192.168.1.20:7470") from error
    rings, findings = _rings(network)
    found = nics()
    findings += judge_nics(found)
    findings += judge_descriptors(descriptor_limit())
    findings += judge_ports(PORTS)
    findings += judge_folder(home.home())
    for ring in rings:
        findings += judge_exposed(home.exposed(ring.name))
    worth = [nic for nic in found if nic.up and nic.addresses and not nic.virtual]
    hearing = asyncio.create_task(listen(worth, seconds))
    candidates, troubles = await _browse(seconds)
    heard = await hearing
    findings += [note("discovery", "this machine", trouble) for trouble in troubles]
    credentials = [Credentials(Identity(secrets.token_bytes(SECRET_BYTES)), ring) for ring in rings]
    targets = [(address, "", "") for address in addresses]
    targets += [(address, one.peer, one.network) for one in candidates for address in one.addresses]
    answers = await knock_all(targets, credentials)
    findings += judge_heard(found, heard, len(elsewhere(answers, found)))
    findings += _judge_keys(candidates, network, rings)
    tags = {key.tag for ring in rings for key in ring.keys}
    findings += judge_answers(answers, tags if network is None else {*tags, network})
    labels = {one.peer for one in candidates if one.network in tags}
    versions = {label: v for one in heard.values() for label, v in one.peers.items() if label in labels}
    findings += judge_versions(versions, VERSIONS)
    ordered = sorted(dict.fromkeys(findings), key=lambda one: one.level != "problem")
    return Examination(found, heard, tuple(candidates), tuple(answers), tuple(ordered))


def elsewhere(answers: Sequence[Answer], nics: Sequence[Nic]) -> list[Answer]:
    """Those of other machines. An address that holds on one link alone carries its scope, and is ours all the same."""
    ours = {address for nic in nics for address in nic.addresses}
    hosts = ((one, split_address(one.address)[0].partition("%")[0]) for one in answers)
    return [one for one, host in hosts if one.tcp == "open" and host not in ours]


def _rings(network: str | None) -> tuple[list[KeyRing], list[Finding]]:
    """The keys to knock with; a damaged file is a finding. Raises UsageError for a name that no network has."""
    if network is not None:
        check_name(network)
    try:
        if network is None:
            return home.networks(), []
        ring = home.ring_of(network)
    except UsageError as error:
        text, _, mend = str(error).partition(": ")
        return [], [problem("damaged file", text.partition(" ")[0], text, mend or "bring it back from a copy")]
    return ([] if ring is None else [ring]), []


async def _browse(seconds: float) -> tuple[list[Candidate], list[str]]:
    """Who announces itself, and what kept from hearing it."""
    troubles: list[str] = []
    collect: Callable[[str], None] = troubles.append
    return await browse(seconds, None, collect), troubles


def _judge_keys(candidates: Sequence[Candidate], network: str | None, rings: Sequence[KeyRing]) -> list[Finding]:
    present = {ring.key.tag: ring.name for ring in rings}
    former = {key.tag: ring.name for ring in rings for key in ring.former}
    return judge_tags(candidates, network, present, former)
