"""`p2pfl demo`: peers as processes of this machine find each other and learn together what none could alone."""

import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from p2pfl.cli import options
from p2pfl.cli.options import NAMES, asked, file_name, fresh_folder, megabytes, percent, print_json, spread
from p2pfl.cli.seen import LogJson, Verbose, seen
from p2pfl.cli.watch import Watch
from p2pfl.errors import P2pflError, UsageError
from p2pfl.events import Listening, PeerJoined, Sink, Started, Warned
from p2pfl.types import Setting

EXAMPLES = """Examples:

p2pfl demo
p2pfl demo --peers 8 --topology torus --alpha 0.1
p2pfl demo --rounds 5 --no-baselines --json"""

_HEAR_S = 5.0  # without a word by mDNS, the addresses are handed over
_MOST_PEERS = 64
_INSECURE = "nothing is encrypted"  # so begins what each peer warns of; the demo says it once for all


def command(
    peers: Annotated[int, typer.Option(min=1, max=_MOST_PEERS, help="How many peers, each a process.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of training and averaging.")] = 15,
    epochs: options.Epochs = None,
    steps: options.Steps = None,
    topology: options.Topology = "ring",
    mixing: options.Mixing = None,
    alpha: Annotated[
        float | None,
        typer.Option(min=0.0, help="Dirichlet alpha of the split: .1 very lopsided \\[default: 0.3; 0 with --target]."),
    ] = None,
    data: options.Data = "mnist10k",
    target: options.Target = None,
    model: options.Model = "mlp",
    lr: options.Lr = None,
    batch_size: options.BatchSize = None,
    seed: options.Seed = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files of the run \\[default: runs/demo-…].")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Encrypt nothing between the peers of this demo.")
    ] = False,
    log_json: LogJson = None,
    verbose: Verbose = False,
    json: options.Json = False,
    baselines: Annotated[
        bool, typer.Option("--baselines/--no-baselines", help="Also train each peer alone, and one on all data.")
    ] = True,
) -> None:
    """See peers on this machine find each other, train on lopsided pieces of MNIST, and average by gossip."""
    if alpha is None:
        alpha = 0.3 if target is None else 0.0  # numbers to predict have no classes to be lopsided in
    settings = asked(
        topology=topology,
        mixing=mixing,
        rounds=rounds,
        seed=seed or 0,
        model=model,
        epochs=epochs,
        steps=steps,
        lr=lr,
        batch_size=batch_size,
        alpha=alpha,
        min_peers=peers,
    )
    _check_topology(settings, peers)
    console, stamp = options.console(json), time.strftime("%Y%m%d-%H%M%S")
    if out is not None:
        fresh_folder(out, "demo", stamp)
    with seen(None, log_json, verbose, lambda text: console.print(Text(text))) as watched:
        demo = _Demo(settings, peers, data, target, model, out or fresh_folder(None, "demo", stamp), console, insecure)
        demo.sinks = watched.sinks
        summary = demo.run(baselines)
    if json:
        print_json(summary)
    else:
        demo.close_with(summary)


def _check_topology(settings: dict[str, Setting], peers: int) -> None:
    from p2pfl.recipe import recipe_of

    recipe_of(settings).build_topology(peers)


@dataclass
class _Demo:
    """One run: launch, watch, compare, sum up."""

    settings: dict[str, Setting]
    peers: int
    data: str
    target: str | None
    model: str | None
    folder: Path
    console: Console
    insecure: bool = False
    sinks: tuple[Sink, ...] = ()
    names: list[str] = field(default_factory=list)
    died: set[str] = field(default_factory=set)
    partition: dict[str, dict[str, int]] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def run(self, baselines: bool) -> dict[str, Any]:
        """The whole of it; returns the summary, which is also written."""
        from p2pfl.network_key import KEY_BYTES, NetworkKey
        from p2pfl.processes import PeerSpec, Processes
        from p2pfl.sinks import RunFiles

        self.names = [NAMES[i] if i < len(NAMES) else f"peer-{i + 1}" for i in range(self.peers)]
        network = f"demo-{file_name(self.folder.name)}"[-40:].lstrip(".-")
        key = None if self.insecure else NetworkKey(network, secrets.token_bytes(KEY_BYTES)).token
        specs = [
            PeerSpec(
                name=name,
                seat=str(index),
                network=network,
                key=key,
                data=self.data,
                target=self.target,
                part=(index + 1, self.peers),
                settings=self.settings,
                own_model=self.model,
                out=str(self.folder),
            )
            for index, name in enumerate(self.names)
        ]
        files = RunFiles(self.folder, lambda text: self.console.print(Text(text)))
        try:
            files.open()
        except OSError as error:
            self._no_files(error)
        try:
            with Processes() as processes:
                self._network(processes, specs, files)
                network_s = time.monotonic() - self.began
                alone, pooled = self._references(processes, specs) if baselines else ([], [])
        finally:
            files.close()
        return self._sum_up(files, alone, pooled, network_s)

    def _network(self, processes: Any, specs: list[Any], files: Any) -> None:
        """Launch the peers and watch until the last one is done."""
        from p2pfl.processes import Ended, Partition

        self.console.print(
            Text(f"{self.peers} peers, each a process with its own piece of {self.data}, {self.settings['topology']}")
        )
        if self.insecure:
            self.console.print(
                Text(
                    f"INSECURE: {_INSECURE} between them, and every process of this machine can take part",
                    style="bold red",
                )
            )
        name_of = {processes.launch(spec): spec.name for spec in specs}
        listening: dict[int, tuple[str, ...]] = {}
        heard = False
        handed = self.peers < 2
        all_listen_since: float | None = None
        failed: list[str] = []
        began = False
        rounds = int(self.settings["rounds"])
        with Watch(self.console, self.names, rounds) as watch:
            while processes.alive and not failed:
                for number, told in processes.told(0.1):
                    name = name_of[number]
                    if isinstance(told, Ended):
                        if told.error:
                            self.died.add(name)
                            watch.set_state(name, "died")
                            # The others go on without a peer that is gone; but the first round waits for all.
                            if told.kind == "died" and began:
                                watch.say(f"{name}: {told.error}; the others go on")
                            else:
                                failed.append(f"{name}: {told.error}" if told.kind == "died" else told.error)
                    elif isinstance(told, Partition):
                        self.partition[name] = told.counts
                    else:
                        for sink in (files, *self.sinks):
                            sink(told)
                        if not (self.insecure and isinstance(told, Warned) and told.text.startswith(_INSECURE)):
                            watch.take(name, told)
                        heard = heard or isinstance(told, PeerJoined)
                        began = began or isinstance(told, Started)
                        if isinstance(told, Listening):
                            listening[number] = told.addresses
                if len(listening) == self.peers and all_listen_since is None:
                    all_listen_since = time.monotonic()
                if not handed and not heard and all_listen_since and time.monotonic() - all_listen_since > _HEAR_S:
                    handed = True
                    watch.say(f"nobody heard anybody by mDNS within {_HEAR_S:g} s: addresses are handed over instead")
                    for number in listening:
                        for other, addresses in listening.items():
                            if other != number:
                                processes.command(number, "peer", addresses[0])
                watch.refresh()
        if failed:
            raise UsageError(failed[0])
        if not files.last:
            raise P2pflError("no peer finished a round")

    def _references(self, processes: Any, specs: list[Any]) -> tuple[list[float], list[float]]:
        """Each peer alone, and one model on all data: accuracies."""
        from p2pfl.processes import Job, run_jobs

        jobs = [Job(spec=specs[0], pooled=True), *(Job(spec=spec) for spec in specs)]
        with self.console.status("for comparison: each peer alone, and all data in one place …") as status:

            def done(count: int) -> None:
                status.update(f"for comparison: each peer alone, and all data in one place … {count}/{len(jobs)}")

            results = run_jobs(processes, jobs, 2, done)
        for job, result in zip(jobs, results, strict=True):
            if result.error:
                what = "all data in one place" if job.pooled else f"{job.spec.name} alone"
                self.console.print(Text(f"{what}: {result.error}"))
        figures = [result.accuracy for result in results]
        return [a for a in figures[1:] if a is not None], [a for a in figures[:1] if a is not None]

    def _sum_up(self, files: Any, alone: list[float], pooled: list[float], network_s: float) -> dict[str, Any]:
        from p2pfl.processes import consensus_of_files

        together = {files.name(peer): event for peer, event in files.last.items() if files.name(peer) not in self.died}
        accuracies = [e.test_accuracy for e in together.values() if e.test_accuracy is not None]
        summary: dict[str, Any] = {
            "peers": self.peers,
            "encrypted": not self.insecure,
            "rounds": self.settings["rounds"],
            "topology": self.settings["topology"],
            "algorithm": "d-psgd",
            "seed": self.settings["seed"],
            "wall_s": round(time.monotonic() - self.began, 3),
            "network_s": round(network_s, 3),
            "accuracy": spread(accuracies),
            "alone": spread(alone),
            "pooled": {"mean": pooled[0]} if pooled else None,
            "loss": spread([-e.test_loss for e in together.values() if e.test_loss is not None]),
            "by_peer": {name: event.test_accuracy for name, event in sorted(together.items())},
            "alone_by_peer": dict(zip(self.names, alone, strict=True)) if len(alone) == self.peers else None,
            "consensus_distance": consensus_of_files(
                [self.folder / "models" / f"{name}.safetensors" for name in self.names if name not in self.died]
            ),
            "bytes_sent": files.bytes_sent,
            "bytes_received": files.bytes_received,
            "control_bytes_sent": files.control_bytes_sent,
            "failures": files.failures,
            "folder": str(self.folder),
        }
        if summary["loss"]:
            summary["loss"] = {key: -value for key, value in summary["loss"].items()}
        try:
            files.write_partition(
                (name, label, count) for name, counts in self.partition.items() for label, count in counts.items()
            )
            files.write_summary(summary)
        except OSError as error:
            self._no_files(error)
        return summary

    def _no_files(self, error: OSError) -> None:
        self.console.print(Text(f"{self.folder} cannot be written to: {error.strerror}; the run goes on"))

    def close_with(self, summary: dict[str, Any]) -> None:
        """What a person wants to know at the end."""
        console = self.console
        console.print()
        table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
        table.add_column("test accuracy")
        table.add_column("mean", justify="right")
        table.add_column("worst peer", justify="right")
        rows = [("each peer alone", summary["alone"]), ("together", summary["accuracy"])]
        for title, figures in rows:
            if figures:
                worst = percent(figures["worst"])
                table.add_row(title, percent(figures["mean"]), worst, style="bold" if title == "together" else "")
        if summary["pooled"]:
            table.add_row("all data in one place", percent(summary["pooled"]["mean"]), "")
        if table.row_count:
            console.print(table)
        loss = summary["loss"]
        if not summary["accuracy"] and loss:
            console.print(Text(f"test loss: mean {loss['mean']:.4g}, worst peer {loss['worst']:.4g}"))
        per_round = summary["bytes_sent"] / max(1, self.peers * int(summary["rounds"]))
        console.print()
        console.print(
            Text(
                f"{megabytes(summary['bytes_sent'])} of models sent ({megabytes(int(per_round))} a peer and round) and "
                f"{megabytes(summary['control_bytes_sent'])} of control messages, in {summary['wall_s']:.1f} s. "
                f"No data left its peer. {'NOTHING WAS ENCRYPTED.' if self.insecure else 'Every link was encrypted.'}"
            )
        )
        console.print(Text(f"Files: {self.folder}"))
        model = self.folder / "models" / f"{self.names[0]}.safetensors"
        console.print(Text("Next:", style="bold"))
        target = f" --target {self.target}" if self.target else ""
        console.print(Text(f"  p2pfl evaluate {model} --data {self.data}{target}"), soft_wrap=True)
        console.print(
            Text("  p2pfl network create home && p2pfl start --network home     (and join it from another machine)"),
            soft_wrap=True,
        )
