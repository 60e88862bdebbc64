"""Every setting of a recipe as an option of a command, without importing what a recipe needs.

The texts are those of `p2pfl.recipe.about`, whose module imports graphs: too slow for `p2pfl --help`. A test holds
both equal. To add a setting, add it there and here.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import typer

from p2pfl.types import Setting

NETWORK: Mapping[str, tuple[Any, str]] = {
    "topology": (str, "who averages with whom; more edges agree faster and cost more bytes"),
    "mixing": (str, "weights: auto, metropolis, max-degree, uniform, lazy, best-constant or finite-time"),
    "rounds": (int, "of training and averaging; 0 = until stopped (live only)"),
    "seed": (int, "of all random draws: split, initial weights, order of examples, dropout, random topologies"),
    "data_seed": (int, "of the split into parts; -1 = as seed"),
    "init_seed": (int, "of the initial weights; -1 = as seed"),
    "topology_seed": (int, "of random topologies that name no seed= of their own; -1 = as seed"),
    "model": (str, "mlp, mlp:hidden=256-128, cnn, logistic, or package.module:function"),
    "epochs": (int, "passes over the own data each round; more drifts further apart"),
    "steps": (int, "gradient steps each round instead of epochs, if above 0"),
    "lr": (float, "learning rate of SGD; more learns faster until it diverges"),
    "batch_size": (int, "examples a step; more is smoother and takes fewer steps an epoch"),
    "alpha": (float, "Dirichlet alpha of the split by label; lower is more lopsided, 0 even"),
    "min_peers": (int, "the first round waits for this many (live only)"),
    "patience": (float, "a round waits this many times as long as its median neighbor took"),
    "min_deadline_s": (float, "but at least this long"),
    "max_wait_s": (float, "and this long while fewer than half have come"),
    "healing": (
        Literal["catch-up", "average"],
        "a split network meets again: its smaller part takes over the others' model (catch-up), or average",
    ),
}
WORLD: Mapping[str, tuple[Any, str]] = {
    "peers": (int, "how many are simulated"),
    "algorithm": (
        Literal["d-psgd", "alone", "fedavg", "pooled"],
        "d-psgd, or a reference: alone (nobody averages), fedavg (the exact average each round), pooled",
    ),
    "data": (
        str,
        "mnist10k, digits, quadratic:dim=10, a torchvision name, .csv, .npz, a folder, or module:function",
    ),
    "target": (str, "the column of a .csv to predict"),
    "split": (str, "auto (by alpha), iid, dirichlet:alpha=.1, shards:each=2, quantity:alpha=.5 or column:name=site"),
    "samples": (int, "examples a peer holds, drawn with repetition where there are not enough; 0 = all are dealt out"),
    "engine": (
        Literal["auto", "event", "matrix", "scalars", "ray"],
        "auto, event (live code in virtual time), matrix (all peers as one array), ray, or scalars (no training)",
    ),
    "dtype": (Literal["float32", "float64"], "float32, or float64 where engines are compared"),
    "device": (str, "of the matrix engine: cpu, cuda, mps or auto"),
    "workers": (int, "processes of the matrix engine, actors of Ray; 0 = one a core"),
    "evaluate_every": (int, "rounds between evaluations; the last round is always evaluated"),
    "test_samples": (int, "test examples to evaluate on; 0 = all"),
    "step_s": (
        str,
        "seconds a gradient step takes, a number or a law drawn once a peer: lognormal:median=.01,sigma=.5",
    ),
    "latency": (str, "seconds a message takes over an edge, a number, a law drawn for each message, or a .csv file"),
    "bandwidth": (
        str,
        "megabytes a second of an edge, a number, a law drawn once an edge, or a .csv file; 0 = unlimited",
    ),
    "loss_rate": (float, "probability that a share is lost on its way"),
    "churn": (
        str,
        "who comes and goes: crash:rate=.01 (a second), or events crash@3.5=4;leave@7=2;join@9=17 (seconds, peer)",
    ),
    "batched": (bool, "event engine: what starts at one virtual time trains as one batch; faster, other bits"),
}


def with_recipe_flags(command: Callable[..., None]) -> Callable[..., None]:
    """The command with an option for every setting; those that were given arrive as its argument `settings`."""

    @functools.wraps(command)
    def called(**arguments: Any) -> None:
        settings = {key: arguments.pop(key) for key in (*NETWORK, *WORLD)}
        command(**arguments, settings={key: value for key, value in settings.items() if value is not None})

    plain = [each for each in inspect.signature(command).parameters.values() if each.name != "settings"]
    flags = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, kind, text, title)
        )
        for title, table in (("What a network agrees on", NETWORK), ("The simulated world", WORLD))
        for name, (kind, text) in table.items()
    ]
    parameters = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in plain] + flags
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # where `inspect` looks first
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    return called


def _option(name: str, kind: Any, text: str, title: str) -> Any:
    flag = f"--{name.replace('_', '-')}"
    declared = (f"{flag}/--no-{flag[2:]}",) if kind is bool else (flag,)
    return Annotated[kind | None, typer.Option(*declared, help=text, show_default=False, rich_help_panel=title)]


Settings = dict[str, Setting]
