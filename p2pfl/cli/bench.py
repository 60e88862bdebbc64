"""`p2pfl bench`: measurements of this machine, each beside the reference it was measured against."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.table import Table

from p2pfl.cli import options
from p2pfl.cli.options import print_json

app = typer.Typer(
    help="Measure this machine: each figure beside the reference it was measured against, in the same run.",
    epilog="Examples:\n\np2pfl bench round\n\np2pfl bench transfer --model-mb 50 --json",
    no_args_is_help=True,
)


@app.command("round", epilog="Example:\n\np2pfl bench round --peers 4")
def round_(
    peers: Annotated[int, typer.Option(min=2, help="Peers, each a process.")] = 4,
    rounds: Annotated[int, typer.Option(min=4, help="Rounds a turn.")] = 12,
    turns: Annotated[int, typer.Option(min=1, help="How often network and reference take turns.")] = 3,
    json: options.Json = False,
) -> None:
    """What a round costs beyond its training: a ring of peers, against the same work without a network."""
    from p2pfl.bench.round import measure

    with options.console(json).status(f"{turns} turns of {rounds} rounds with {peers} peers, and without a network …"):
        figures = measure(peers, rounds, turns)
    _show(
        figures,
        json,
        {
            "round_s": "a steady round, median (s)",
            "training_only_s": "its training and evaluation without a network (s)",
            "ratio": "ratio",
            "wait_s": "of the round: waiting for neighbors (s)",
            "mix_s": "of the round: mixing and evaluation (s)",
        },
    )


@app.command(epilog="Example:\n\np2pfl bench transfer --model-mb 200")
def transfer(
    model_mb: Annotated[int, typer.Option(min=1, help="Size of the model in MB.")] = 200,
    repeats: Annotated[int, typer.Option(min=1, help="How often it is moved.")] = 5,
    json: options.Json = False,
) -> None:
    """How fast a model moves between two peers, both ways at once, against plain sockets; and what memory it takes."""
    from p2pfl.bench.transfer import measure

    with options.console(json).status(f"moving {model_mb} MB both ways, {repeats} times, by p2pfl and by sockets …"):
        figures = measure(model_mb, repeats)
    _show(
        figures,
        json,
        {
            "model_mb": "model (MB)",
            "mb_per_s": "each way, both at once (MB/s)",
            "socket_mb_per_s": "plain sockets, the same (MB/s)",
            "ratio": "ratio",
            "finite_check_s": "apart from it: the finite check (s)",
            "mix_s": "apart from it: mixing (s)",
            "transfer_peak_mb": "memory of the transfer: vector, buffer, mixed (MB)",
            "peer_peak_over_import_mb": "memory of a whole training peer, beyond imports (MB)",
        },
    )


@app.command(epilog="Examples:\n\np2pfl bench tls\n\np2pfl bench tls --model-mb 50 --json")
def tls(
    model_mb: Annotated[int, typer.Option(min=1, help="Size of the model in MB.")] = 200,
    repeats: Annotated[int, typer.Option(min=1, help="How often it is moved each way.")] = 5,
    json: options.Json = False,
) -> None:
    """What TLS costs: a large model against a raw mutual-TLS socket, a small one, and a new connection."""
    from p2pfl.bench.tls import measure

    with options.console(json).status(f"moving {model_mb} MB, {repeats} times, over TLS, a raw TLS socket, plain …"):
        figures = measure(model_mb, repeats)
    _show(
        figures,
        json,
        {
            "model_mb": "model (MB)",
            "tls_gb_per_s": "over mutual TLS (GB/s)",
            "raw_tls_gb_per_s": "a raw mutual-TLS socket (GB/s)",
            "ratio": "ratio",
            "plain_gb_per_s": "in the clear (GB/s)",
            "sha256_gb_per_s": "apart from it: SHA-256 (GB/s)",
            "connect_ms": "a new control connection: handshake, a message there and back (ms)",
            "connect_plain_ms": "the same in the clear (ms)",
            "small_ms": "a model of 400 kB over a kept connection (ms)",
            "small_plain_ms": "the same in the clear (ms)",
        },
    )


@app.command(epilog="Examples:\n\np2pfl bench trust\n\np2pfl bench trust --turns 2 --json")
def trust(
    peers: Annotated[int, typer.Option(min=2, max=16, help="Peers, each a process.")] = 4,
    rounds: Annotated[int, typer.Option(min=4, help="Rounds a turn.")] = 12,
    turns: Annotated[int, typer.Option(min=1, max=16, help="How often both ways take turns.")] = 6,
    hellos: Annotated[int, typer.Option(min=1, help="Calls each way.")] = 40,
    json: options.Json = False,
) -> None:
    """What keys and signatures cost: rounds and hellos of peers that encrypt, against the same with --insecure."""
    from p2pfl.bench.trust import measure

    with options.console(json).status(f"{turns} turns of {rounds} rounds with {peers} peers, encrypted and not …"):
        figures = measure(peers, rounds, turns, hellos)
    _show(
        figures,
        json,
        {
            "round_s": "a steady round, encrypted, median (s)",
            "insecure_round_s": "the same with --insecure (s)",
            "ratio": "ratio (promised 1.1)",
            "cpu_ratio": "ratio of the processor time of each peer in it",
            "hello_ms": "a new connection until its hello is answered, median (ms; promised 50)",
            "insecure_hello_ms": "the same with --insecure (ms)",
        },
    )


@app.command(epilog="Example:\n\np2pfl bench memory --json")
def memory(json: options.Json = False) -> None:
    """What an idle peer holds in memory, against a process that has only imported torch."""
    from p2pfl.bench.memory import measure

    with options.console(json).status("starting a peer, and a process that only imports torch …"):
        figures = measure()
    _show(
        figures,
        json,
        {
            "idle_mb": "an idle peer (MB)",
            "import_mb": "a process that has imported torch (MB)",
            "idle_over_import_mb": "difference (MB)",
        },
    )


@app.command(epilog="Example:\n\np2pfl bench start --peers 5")
def start(
    peers: Annotated[int, typer.Option(min=2, help="Peers, each a process.")] = 5, json: options.Json = False
) -> None:
    """How long peers take from launch to their first round, against importing torch in as many processes at once."""
    from p2pfl.bench.start import measure

    with options.console(json).status(f"importing torch in {peers} processes; then starting {peers} peers …"):
        figures = measure(peers)
    _show(
        figures,
        json,
        {
            "start_s": "from launch to the first round (s)",
            "import_s": "importing torch in as many processes (s)",
            "over_import_s": "difference (s)",
        },
    )


@app.command(epilog="Examples:\n\np2pfl bench simulate\n\np2pfl bench simulate --quick --json")
def simulate(
    turns: Annotated[int, typer.Option(min=1, help="How often what is compared takes turns.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="Few peers and one turn: shows that all runs.")] = False,
    json: options.Json = False,
) -> None:
    """How fast simulations run: the matrix engine against plain loops, its growth, and the event engine."""
    from dataclasses import replace

    from p2pfl.bench.simulate import QUICK, Sizes, measure

    sizes = QUICK if quick else replace(Sizes(), turns=turns)
    with options.console(json).status(f"{sizes.turns} turns of {sizes.peers} and {sizes.many} simulated peers …"):
        figures = measure(sizes)
    if json:
        print_json(figures)
        return
    against = {
        "steps_per_s": "SGD steps, matrix engine (1/s)",
        "loop_steps_per_s": "a plain loop: a module and torch.optim.SGD a peer, one thread (1/s)",
        "ratio": "ratio",
        "bare_loop_steps_per_s": "the same tuned: SGD written out, one gathering an epoch (1/s)",
        "bare_ratio": "ratio of the engine to the tuned loop",
        "vmap_steps_per_s": "as any module is trained, by torch.func (1/s)",
        "vmap_ratio": "ratio of that to the plain loop",
    }
    titles = {
        "mlp_256": against,
        "logistic_256": against,
        "growth": {
            "s_per_peer_256": f"a round of {sizes.peers} peers, for each peer (s)",
            "s_per_peer_4096": f"a round of {sizes.many} peers, for each peer (s)",
            "ratio": "ratio",
            "peak_mb": f"memory of {sizes.many} peers, beyond imports, all processes (MB)",
            "budget_mb": "four times their parameters, and the data (MB)",
        },
        "event_1000": {
            "wall_s": f"event engine, {sizes.event_peers} peers, {sizes.event_rounds} rounds (s)",
            "peak_mb": "its memory, imports included (MB)",
        },
    }
    models = {"mlp_256": "MLP 784-100-10: ", "logistic_256": "logistic regression: ", "growth": "logistic regression: "}
    flat = {f"{group}.{key}": figures[group][key] for group, keys in titles.items() for key in keys}
    named = {
        f"{group}.{key}": title if title.startswith("ratio") else models.get(group, "") + title
        for group, keys in titles.items()
        for key, title in keys.items()
    }
    _show(flat, json, named)


@app.command(epilog="Examples:\n\np2pfl bench faults --minutes 1\n\nsudo p2pfl bench faults --hosts --json")
def faults(
    minutes: Annotated[float, typer.Option(min=0.05, help="How long all cores are kept busy.")] = 10.0,
    hosts: Annotated[
        bool,
        typer.Option("--hosts", help="Also pull cables and split networks, in network namespaces: Linux and root."),
    ] = False,
    json: options.Json = False,
) -> None:
    """How fast faults are seen and over: a crash, a held process, busy cores; with --hosts, cables and splits."""
    from p2pfl.bench.faults import measure

    console = options.console(json)
    figures = measure(minutes, hosts, lambda line: console.print(line))
    titles = {
        "reset_s_4": "a killed peer is dropped by all, of 4 (s; promised 1)",
        "reset_s_16": "a killed peer is dropped by all, of 16 (s; promised 1)",
        "held_dropped_s": "a held process is dropped by all (s)",
        "held_back_s": "it is back after it was let go (s; promised 10)",
        "held_false_deaths": "others that it took for dead (promised 0)",
        "power_loss_s_4": "a lost cable is noticed by all, of 4 (s; promised 6)",
        "power_loss_s_16": "a lost cable is noticed by all, of 16 (s; promised 6)",
        "power_loss_false_deaths_4": "others taken for dead meanwhile, of 4 (promised 0)",
        "power_loss_false_deaths_16": "others taken for dead meanwhile, of 16 (promised 0)",
        "back_s_4": "back after the cable was plugged in, of 4 (s; promised 10)",
        "back_s_16": "back after the cable was plugged in, of 16 (s; promised 10)",
        "healed_s": "one view after a split of 8 was healed (s; promised 10)",
        "busy_minutes": "all cores busy (minutes)",
        "busy_rounds": "rounds of each of 8 peers meanwhile",
        "busy_false_deaths": "taken for dead meanwhile (promised 0)",
    }
    _show(figures, json, {key: title for key, title in titles.items() if key in figures})


@app.command(epilog="Examples:\n\np2pfl bench churn\n\np2pfl bench churn --peers 12 --rounds 20 --json")
def churn(
    peers: Annotated[int, typer.Option(min=5, max=64, help="Peers, each a process.")] = 24,
    rounds: Annotated[int, typer.Option(min=8, help="Rounds of the run.")] = 40,
    json: options.Json = False,
) -> None:
    """What it costs that a fifth of the peers is killed and as many join in mid-run, against a run left alone."""
    from p2pfl.bench.faults import churn as measure

    console = options.console(json)
    figures = measure(peers, rounds, lambda line: console.print(line))
    _show(
        figures,
        json,
        {
            "accuracy": "test accuracy, mean",
            "accuracy_undisturbed": "the same where nobody comes or goes",
            "lost_points": "difference (points; promised at most 2)",
            "round_s": "a round, median (s)",
            "deadline_s": "its deadline: three times that, at least 2 s (s)",
            "longest_round_s": "longest time between two rounds of any peer (s)",
            "longest_round_undisturbed_s": "the same where nobody comes or goes (s)",
            "longest_wait_s": "longest wait for others in a round (s; promised: within the deadline)",
            "longest_wait_undisturbed_s": "the same where nobody comes or goes (s)",
            "false_deaths": "taken for dead who were not (promised 0)",
            "false_deaths_undisturbed": "the same where nobody comes or goes",
        },
    )


def _show(figures: Mapping[str, Any], json: bool, titles: Mapping[str, str]) -> None:
    if json:
        print_json(figures)
        return
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, title in titles.items():
        table.add_row(title, f"{figures[key]:.4g}", style="bold" if title.startswith("ratio") else "")
    options.console(json).print(table)
