"""All peers of a simulation in one file, so that it can go on where it was; and files of a run cut back to that."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from p2pfl.errors import DataError, RecipeError, UsageError
from p2pfl.layout import Layout
from p2pfl.model_files import Checkpoint, read_checkpoint, read_vector, save_model
from p2pfl.recipe import PACE, Recipe, run_recipe_of
from p2pfl.simulation.engine import Begin

# What may change when a run goes on: how it is computed and watched, but not what is computed.
_FREE = {"engine": "auto", "device": "cpu", "workers": 0, "evaluate_every": 1, "test_samples": 0}
_TABLES = ("metrics.csv", "edges.csv", "rounds.csv")


def path_of(folder: Path) -> Path:
    """Where a simulation's checkpoint is."""
    return folder / "checkpoints" / "peers.safetensors"


def write(folder: Path, recipe: Recipe, layout: Layout, round: int, vectors: torch.Tensor) -> None:
    """Write the models [peers, size] with which `round` begins. Raises OSError."""
    facts = Checkpoint(
        peer="",
        seat="",
        name="all peers",
        network="simulation",
        incarnation=0,
        round=round,
        settings=msgspec.structs.asdict(recipe),
    )
    save_model(path_of(folder), vectors.contiguous().view(-1), _stacked(layout, len(vectors)), facts)


def read(folder: Path, recipe: Recipe, layout: Layout, peers: int) -> Begin:
    """Where a run goes on; at its beginning where it was killed before its first checkpoint.

    Raises:
        UsageError: there is no run, it is of another recipe, or it has all its rounds.
        ModelError: the checkpoint is damaged.
    """
    if not (folder / "events.jsonl").exists():
        raise UsageError(f"{folder} holds no run to go on with; leave resume out")
    path = path_of(folder)
    if not path.exists():
        return Begin(0)
    checkpoint = read_checkpoint(path)
    before = run_recipe_of(checkpoint.settings)
    for name, value in msgspec.structs.asdict(before).items():
        now = getattr(recipe, name)
        if now != value and name not in PACE and name not in _FREE:
            raise RecipeError(
                f"the run in {folder} has {name} = {value!r}, not {now!r}: go on with its own, or begin anew"
            )
    if checkpoint.round >= recipe.rounds:
        raise UsageError(f"the run in {folder} has all its {checkpoint.round} rounds; ask for more rounds to go on")
    vectors = read_vector(path, _stacked(layout, peers)).view(peers, layout.size)
    return Begin(checkpoint.round, vectors)


def cut_back(folder: Path, round: int) -> None:
    """Take the rows of this round and later ones off the run's tables: they will be written again. Raises OSError."""
    for name in _TABLES:
        path = folder / name
        if not path.exists():
            continue
        keep = 0
        with path.open("rb") as file:
            for line in file:
                first = line.partition(b",")[0]
                # Half a line, at which a process was killed, goes too.
                if not line.endswith(b"\n") or (first.isdigit() and int(first) >= round):
                    break
                keep += len(line)
        with path.open("r+b") as file:
            file.truncate(keep)
    events = folder / "events.jsonl"
    if events.exists():
        with events.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def so_far(folder: Path, round: int, names: Sequence[str]) -> tuple[npt.NDArray[np.int64], dict[str, Any]]:
    """What lies behind a run that goes on with `round`: steps of each peer, and the figures that add up.

    Raises:
        DataError: the run's tables are damaged.
    """
    import pandas as pd

    try:
        rounds = pd.read_csv(folder / "rounds.csv")
        peers = pd.read_csv(folder / "metrics.csv", dtype={"peer": str}, keep_default_na=False, na_values=[""])
        rounds, peers = rounds[rounds["round"] < round], peers[peers["round"] < round]
        last = peers.groupby("peer")["step"].max()
        steps = last.reindex(list(names)).fillna(0).to_numpy(dtype=np.int64)
        sums = {name: int(rounds[name].sum()) for name in ("bytes_sent", "bytes_received", "steps")}
        figures: dict[str, Any] = {"wall_s": float(rounds["wall_time_s"].sum()), **sums}
        if rounds["simulated_time_s"].notna().any():
            figures["simulated_s"] = float(rounds["simulated_time_s"].max())
    except (OSError, KeyError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise DataError(f"the run in {folder} has damaged tables: {error}; begin anew in another folder") from error
    summary = folder / "summary.json"
    if summary.exists():
        told = msgspec.json.decode(summary.read_bytes(), type=dict[str, Any])
        figures |= {
            name: told[name] for name in ("alone", "pooled", "fedavg", "failures", "warnings") if told.get(name)
        }
    return steps, figures


def clear(folder: Path) -> None:
    """Take away what an earlier try has left of a reference. Raises OSError."""
    for name in ("events.jsonl", *_TABLES):
        (folder / name).unlink(missing_ok=True)


def _stacked(layout: Layout, peers: int) -> Layout:
    return Layout((("peers", (peers, layout.size)),), layout.dtype)
