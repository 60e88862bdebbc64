"""All peers of a simulation in one file, so that it can go on where it was; and files of a run cut back to that."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from p2pfl.errors import DataError, RecipeError, UsageError
from p2pfl.graphs import named
from p2pfl.graphs.mixing import mixing_csr
from p2pfl.layout import Layout
from p2pfl.model_files import Checkpoint, read_checkpoint, read_vector, save_model
from p2pfl.recipe import Recipe, parse_name, run_recipe_of
from p2pfl.simulation.engine import Begin
from p2pfl.simulation.problem import Problem

# What may change when a run goes on: how long, and how it is computed and watched, but not what is computed. Patience
# may not, as it may with live peers: in virtual time it decides which shares come late.
_FREE = ("rounds", "engine", "device", "workers", "evaluate_every", "test_samples")
_TABLES = ("metrics.csv", "edges.csv", "rounds.csv")


class _EventRound(msgspec.Struct, frozen=True):
    """What is read of an event."""

    event: str = ""
    round: int = -1


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


def read(folder: Path, recipe: Recipe, layout: Layout, peers: int, *, ended: bool = False) -> Begin:
    """Where a run goes on; at its beginning where it was killed before its first checkpoint.

    Args:
        ended: take one that has all its rounds, too.

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
        if now != value and name not in _FREE:
            raise RecipeError(
                f"the run in {folder} has {name} = {value!r}, not {now!r}: go on with its own, or begin anew"
            )
    if checkpoint.round >= recipe.rounds + ended:
        raise UsageError(f"the run in {folder} has all its {checkpoint.round} rounds; ask for more rounds to go on")
    vectors = read_vector(path, _stacked(layout, peers)).view(peers, layout.size)
    return Begin(checkpoint.round, vectors)


def write_contents(folder: Path, contents: Mapping[str, str]) -> None:
    """Write what `contents_of` the run's problem is, beside its checkpoint. Raises OSError."""
    path = _contents_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.encode(contents))


def contents_of(problem: Problem) -> dict[str, str]:
    """What the recipe only names: digests of the training examples, and of the topology where it is somebody's own."""
    contents = {"training examples": problem.data.train.fingerprint()}
    if parse_name(problem.recipe.topology) not in named.NAMES:
        digest = hashlib.blake2b(digest_size=16)
        for round in range(problem.schedule.period or 0):
            weights = mixing_csr(problem.schedule.at(round))
            for part in (weights.indptr, weights.indices):
                digest.update(part.astype("<i8").tobytes())
            digest.update(weights.data.round(9).astype("<f8").tobytes())
        contents["edges or weights"] = digest.hexdigest()
    return contents


def check_contents(folder: Path, contents: Mapping[str, str]) -> None:
    """Whether a run goes on with what it began with. Raises RecipeError."""
    path = _contents_path(folder)
    try:
        before = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return  # killed before its first checkpoint, or as this was written
    for name, digest in before.items():
        if contents.get(name, digest) != digest:
            raise RecipeError(
                f"the run in {folder} has other {name} than there are now: put back what it had, or begin anew"
            )


def cut_back(folder: Path, round: int) -> None:
    """Take this round and later ones off the run's tables and events: they will be written again. Raises OSError."""
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
        kept = events.with_name(f".{events.name}.{os.getpid()}")
        with events.open("rb") as file, kept.open("wb") as before:
            before.writelines(line for line in file if line.endswith(b"\n") and _is_before(line, round))
        kept.replace(events)


def _is_before(line: bytes, round: int) -> bool:
    """Whether a line of events tells of what was before a round; what has no round stays."""
    try:
        event = msgspec.json.decode(line, type=_EventRound)
    except msgspec.DecodeError:
        return True  # whoever reads the events will say so
    return event.round < round + (event.event == "Finished")  # whose round is the next one


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
    told = read_summary(folder)
    kept = ("alone", "pooled", "fedavg", "failures", "warnings", "references")
    figures |= {name: told[name] for name in kept if told.get(name)}
    return steps, figures


def read_summary(folder: Path) -> dict[str, Any]:
    """A run's summary; empty where there is none, or half of one."""
    try:
        return msgspec.json.decode((folder / "summary.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return {}


def clear(folder: Path) -> None:
    """Take away what an earlier try has left of a reference. Raises OSError."""
    for name in ("events.jsonl", "summary.json", *_TABLES):
        (folder / name).unlink(missing_ok=True)


def _contents_path(folder: Path) -> Path:
    return path_of(folder).with_name("contents.json")


def _stacked(layout: Layout, peers: int) -> Layout:
    return Layout((("peers", (peers, layout.size)),), layout.dtype)
