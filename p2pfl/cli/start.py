"""`p2pfl start`: one peer on the LAN."""

import asyncio
import os
import shlex
import signal
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.text import Text

from p2pfl.cli import options
from p2pfl.cli.keys import ring_for, warn_if_exposed
from p2pfl.cli.options import asked, file_name, fresh_folder, megabytes, part_of, percent, print_json, spread
from p2pfl.cli.seen import LogJson, Metrics, Verbose, Watched, seen
from p2pfl.cli.watch import Watch
from p2pfl.errors import UsageError
from p2pfl.events import Listening, PeerGone, PeerJoined, RunEvent, Started, StateChanged, Warned
from p2pfl.plain import printable
from p2pfl.types import Setting

EXAMPLES = """Examples:

p2pfl network create home && p2pfl start --data mnist10k --part 1/2
p2pfl start --join key --data mnist10k --part 2/2
p2pfl start --network lab --data scans/ --rounds 0 --min-peers 3
p2pfl start --network lab --data rows.csv --target price --peer 192.168.1.20:7470"""


def command(
    name: Annotated[str | None, typer.Option(help="What to call this peer \\[default: this machine's name].")] = None,
    network: Annotated[
        str | None,
        typer.Option(help="The network to be in; its key is on this machine \\[default: the only one that is]."),
    ] = None,
    join: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Join the network whose key is in this file; - asks for the token. Once."),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option("--insecure", help="Encrypt nothing; on this machine alone unless --interface is given."),
    ] = False,
    data: options.Data = "mnist10k",
    target: options.Target = None,
    missing: options.Missing = "refuse",
    part: Annotated[str | None, typer.Option(help="Use part I of N of the data, from 1, as 2/5.")] = None,
    alpha: options.Alpha = None,
    topology: options.Topology = None,
    mixing: options.Mixing = None,
    model: options.Model = None,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    lr: options.Lr = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = None,
    rounds: Annotated[
        int | None, typer.Option(min=0, help="Rounds to do; 0 goes on until stopped \\[default: 15].")
    ] = None,
    min_peers: Annotated[int | None, typer.Option(min=1, help="Begin with this many peers \\[default: 2].")] = None,
    wait: Annotated[
        float | None, typer.Option(min=0, help="Give up if the first round has not begun in so many seconds.")
    ] = None,
    peer: Annotated[
        list[str] | None, typer.Option(help="HOST:PORT of a peer, where multicast is blocked; one is enough.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Listen on this port \\[default: the first free from 7470].")
    ] = None,
    interface: Annotated[str | None, typer.Option(help="Interface to use: name or address \\[default: all].")] = None,
    identity: Annotated[
        Path | None, typer.Option(help="File with this peer's own key \\[default: one for its name, in P2PFL_HOME].")
    ] = None,
    healing: Annotated[
        Literal["catch-up", "average"] | None,
        typer.Option(
            help="Once a split network meets again, its smaller part takes over the others' model, or averages "
            "\\[default: catch-up]."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Threads to compute with \\[default: PyTorch's].")] = None,
    init: Annotated[Path | None, typer.Option(help="A model file to begin with.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the run's files \\[default: runs/NETWORK-…].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    metrics: Metrics = None,
    log_json: LogJson = None,
    verbose: Verbose = False,
    json: options.Json = False,
) -> None:
    """Start a peer: it finds the others of its network, trains on its own data, and averages with its neighbors."""
    settings = asked(
        topology=topology,
        mixing=mixing,
        rounds=rounds,
        seed=seed,
        model=model,
        epochs=epochs,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        alpha=alpha,
        min_peers=min_peers,
        healing=healing,
    )
    shown = name or socket.gethostname().partition(".")[0] or "peer"
    console = options.console(json)
    chosen = part_of(part) if part else None
    if alpha is not None and chosen is None:
        raise UsageError("--alpha shapes the split into parts: give --part I/N too")
    if insecure:
        interface = interface or "127.0.0.1"
    warning = _check(tuple(peer or ()), interface, insecure, init, out, resume)
    stamp = f"{file_name(shown)}-{time.strftime('%Y%m%d-%H%M%S')}"
    if out is not None and not resume:
        fresh_folder(out, "start", stamp)
    with seen(metrics, log_json, verbose, lambda text: console.print(Text(printable(text)))) as watched:
        network = _network(console, network, join, warning)
        with console.status("loading PyTorch …"):
            import torch

            from p2pfl.learning.by_name import NamedLearning
            from p2pfl.learning.learner import choose_device
            from p2pfl.peer import Peer

        if threads is not None:
            torch.set_num_threads(threads)
        learning = NamedLearning(
            data=data,
            part=chosen,
            target=target,
            missing=missing,
            device=choose_device(device),
            seat=str(chosen[0] - 1) if chosen else shown,
            own_model=model,
        )
        _describe(console, learning)
        folder = out or fresh_folder(None, file_name(network), stamp)
        session = _Session(
            console, shown, network, _again(network, data, target, chosen, warning), folder, rounds, warning
        )
        this = Peer(
            shown,
            learning,
            network=network,
            insecure=insecure,
            identity=identity,
            seat=learning.seat,
            interface=interface,
            port=port,
            peers=tuple(peer or ()),
            wait_s=wait,
            out=folder,
            resume=resume,
            init=init,
            sinks=(session.take, *watched.sinks),
            facts=learning.facts,
        )
        this.ask(**settings)
        if this.resumed_from is not None:
            path, round = this.resumed_from
            session.say(f"{shown} goes on with round {round + 1}, from {path}")
        summary = session.run(this, learning.label_counts, watched)
    if json:
        print_json(summary)
    else:
        session.close_with(summary)


def _check(
    peers: tuple[str, ...], interface: str | None, insecure: bool, init: Path | None, out: Path | None, resume: bool
) -> str:
    """Refuse what cannot be, before a key is touched or data is read; what to warn of where nothing is encrypted.

    Raises:
        UsageError: an address is none, or an interface, file or checkpoint is not there.
    """
    from p2pfl.network.discovery import split_address
    from p2pfl.network.interfaces import insecure_warning, listening_hosts

    for address in peers:
        try:
            split_address(address)
        except ValueError as error:
            raise UsageError(f"--peer: {error}, as 192.168.1.20:7470") from error
    hosts = listening_hosts(interface)
    if init is not None and not init.is_file():
        raise UsageError(f"--init: there is no file {init}; check the path")
    if resume and out is None:
        raise UsageError("--resume needs --out: the folder of the run to go on with")
    if resume and out is not None and not (out / "checkpoints").is_dir():
        raise UsageError(f"there is no checkpoint in {out}; start without --resume")
    return insecure_warning(hosts) if insecure else ""


def _network(console: Console, network: str | None, join: str | None, warning: str) -> str:
    """The name of the network whose key this machine has, or has now; where there is a warning, of one without a key.

    Raises:
        UsageError: there is no key, or it is not clear which.
    """
    if not warning:
        ring = ring_for(network, join)
        from p2pfl.home import exposed

        for warning in (*filter(None, [warn_if_exposed(join) if join else ""]), *exposed(ring.name)):
            console.print(Text(warning, style="yellow"), soft_wrap=True)
        return ring.name
    if join is not None:
        raise UsageError("--join is for a network with a key, --insecure for one without: choose one")
    console.print(Text(f"INSECURE: {warning}.", style="bold red"))
    return network or "home"


def _describe(console: Console, learning: Any) -> None:
    """Read the data and say what it is, before anybody else is told of this peer. Raises DataError."""
    with console.status(f"reading {learning.data} …"):
        data = learning.read()
    kind = f"{len(data.labels)} classes" if data.labels else f"{data.outputs} number{'s' * (data.outputs > 1)}"
    parted = f", of which this peer takes part {learning.part[0]}/{learning.part[1]}" if learning.part else ""
    examples = f"{len(data.train)} training examples{parted}; {len(data.test)} to test on"
    console.print(Text(f"{data.name}: {examples}; {kind} to predict"))
    if data.preparation.get("kind") == "table":
        from p2pfl.learning.tabular import describe, read_csv

        console.print(Text(f"columns: {', '.join(describe(read_csv(Path(learning.data))))}"))


def _again(network: str, data: str, target: str | None, part: tuple[int, int] | None, warning: str) -> str:
    """What to type on the next machine, with a copy of the key there; with a warning, in the network without one."""
    words = ["p2pfl", "start", "--join", "key"]
    if warning:
        from p2pfl.network.interfaces import insecure_warning

        words = ["p2pfl", "start", "--network", network, "--insecure"]
        words += [] if warning == insecure_warning(("127.0.0.1",)) else ["--interface", "ITS-ADDRESS"]
    dealt = part is not None and part[1] > 1
    words += ["--data", data if dealt or data == "mnist10k" else "ITS-OWN-DATA"]
    words += ["--target", target] if target else []
    if dealt and part is not None:
        following = str(part[0] + 1) if part[0] < part[1] else "I"  # one of those before
        words += ["--part", f"{following}/{part[1]}"]
    return shlex.join(words)


class _Session:
    """One peer in the foreground: shows it, stops it on Ctrl-C, writes its files."""

    def __init__(
        self,
        console: Console,
        name: str,
        network: str,
        again: str,
        folder: Path,
        rounds: int | None,
        warning: str,
    ) -> None:
        """warning: of what is not encrypted, told already; empty where all is."""
        from p2pfl.sinks import RunFiles

        self._console = console
        self._name = name
        self._network = network
        self._again = again
        self._warning = warning
        self._insecure = bool(warning)
        self._watch = Watch(console, [name], 15 if rounds is None else rounds)
        self._files = RunFiles(folder, self._watch.say)
        self._began = time.monotonic()
        self._did_rounds = False
        self._settings: dict[str, Setting] = {}

    def take(self, event: RunEvent) -> None:
        """Take in an event."""
        self._files(event)
        if isinstance(event, Warned) and event.text == self._warning:
            return
        self._watch.take(self._name, event)
        match event:
            case Listening(addresses=addresses):
                clear = ", NOT ENCRYPTED," if self._insecure else ""
                self._watch.say(f"{self._name} waits in network {self._network!r}{clear} at {', '.join(addresses)}")
                if self._again and not self._insecure:
                    from p2pfl.home import key_path

                    self._watch.say(f"on the next machine, with a copy of {key_path(self._network)}:", wrap=False)
                    self._watch.say(f"  {self._again}", wrap=False)
                elif self._again:
                    self._watch.say(f"next:  {self._again}", wrap=False)
                first = next((a for a in addresses if not a.startswith("127.")), addresses[0] if addresses else "")
                self._watch.say(f"where multicast is blocked, add:  --peer {first}", wrap=False)
            case PeerJoined(name=other):
                self._watch.say(f"found {other}")
            case PeerGone(name=other, reason="left"):
                self._watch.say(f"{other} has left")
            case Started(settings=settings, members=members, round=round):
                self._settings = settings
                self._begin(settings, members, round)
            case StateChanged(state="finished"):
                self._watch.say("finished; serving the last share until the neighbors are done")
            case _:
                pass
        self._watch.refresh()

    def _begin(self, settings: dict[str, Setting], members: tuple[str, ...], round: int) -> None:
        from p2pfl.recipe import recipe_of

        recipe = recipe_of(settings)
        self._watch.set_rounds(recipe.rounds)
        work = f"{recipe.steps} steps" if recipe.steps else f"{recipe.epochs} epoch" + "s" * (recipe.epochs > 1)
        much = f"{recipe.rounds} rounds" if recipe.rounds else "rounds until stopped"
        self._watch.say(
            f"round {round + 1} begins with {', '.join(members)}: {recipe.topology.partition(':edges')[0]}, "
            f"{'' if recipe.mixing == 'auto' else f'{recipe.mixing} weights, '}"
            f"{recipe.model}, {much} of {work}, lr {recipe.lr:g}, batch {recipe.batch_size}, seed {recipe.seed}"
        )

    def say(self, text: str) -> None:
        """A line for the person who watches."""
        self._watch.say(text)

    def run(self, peer: Any, label_counts: Callable[[], dict[str, int]], watched: Watched) -> dict[str, Any]:
        """Run the peer to its end; returns the summary, which is also written."""
        try:
            self._files.open()
        except OSError as error:
            self._watch.say(f"nothing is written to {self._files.folder}: {error.strerror}; the run goes on")
        try:
            with self._watch:
                result = asyncio.run(_until_stopped(peer, self._watch, watched.metrics))
        finally:
            self._files.close()
            with suppress(OSError):  # a start that failed leaves no empty folder
                self._files.folder.rmdir()
        files = self._files
        last = result.history[-1] if result.history else None
        self._did_rounds = last is not None
        accuracy = spread([last.test_accuracy]) if last is not None and last.test_accuracy is not None else None
        summary = {
            "peer": self._name,
            "network": self._network,
            "encrypted": not self._insecure,
            "peers": len(result.members),
            "members": result.members,
            "rounds": result.round,
            "topology": self._settings.get("topology", "ring"),
            "algorithm": "d-psgd",
            "seed": self._settings.get("seed", 0),
            "wall_s": round(time.monotonic() - self._began, 3),
            "accuracy": accuracy,
            "loss": last.test_loss if last is not None else None,
            "metrics": dict(result.metrics),
            "alone": None,
            "pooled": None,
            "consensus_distance": None,
            "bytes_sent": files.bytes_sent,
            "bytes_received": files.bytes_received,
            "control_bytes_sent": files.control_bytes_sent,
            "failures": dict(result.failures),
            "metrics_address": watched.metrics_address,
            "folder": str(files.folder),
            "model": str(peer.model_path),
        }
        try:
            files.write_partition((self._name, label, count) for label, count in label_counts().items())
            files.write_summary(summary)
        except OSError as error:
            self._console.print(Text(f"the summary was not written: {error.strerror}"))
        return summary

    def close_with(self, summary: dict[str, Any]) -> None:
        """What a person wants to know at the end."""
        console = self._console
        if not self._did_rounds:
            before = summary["rounds"]
            text = f"no round was done after the {before} of the checkpoint" if before else ""
            console.print(Text(text or "stopped before the first round"))
            return
        figure = f"test loss {summary['loss']:.4g}" if summary["loss"] is not None else "nothing to test on"
        if summary["accuracy"]:
            figure = f"accuracy {percent(summary['accuracy']['mean'])}"
        figure += "".join(f", {name} {value:.4g}" for name, value in summary["metrics"].items())
        sent, received = megabytes(summary["bytes_sent"]), megabytes(summary["bytes_received"])
        rounds = f"{summary['rounds']} rounds" if summary["rounds"] != 1 else "1 round"
        if not summary["encrypted"]:
            console.print(Text("INSECURE: nothing was encrypted", style="bold red"))
        console.print(Text(f"{rounds} in {summary['wall_s']:.1f} s, {figure}; {sent} sent, {received} received"))
        if summary["failures"]:
            lost = ", ".join(f"{count} × {reason}" for reason, count in summary["failures"].items())
            console.print(Text(f"shares that did not count: {lost}"))
        console.print(Text(f"model: {summary['model']}"), soft_wrap=True)


async def _until_stopped(peer: Any, watch: Watch, metrics: Any) -> Any:
    """Run, leaving in good order on the first Ctrl-C or SIGTERM and at once on the second."""
    loop = asyncio.get_running_loop()
    asked_to_stop = False

    def stop() -> None:
        nonlocal asked_to_stop
        if asked_to_stop:
            os._exit(130)
        asked_to_stop = True
        watch.say("leaving: goodbye to the others, saving the model (again to quit at once)")
        peer.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    with nullcontext() if metrics is None else metrics.watching(loop):
        return await peer.run()
