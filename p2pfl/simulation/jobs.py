"""One run of a sweep as a value that can be sent to another process or machine, and what comes back of it."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from p2pfl.errors import P2pflError
from p2pfl.recipe import Recipe, run_recipe_of
from p2pfl.simulation.engines import WORLD
from p2pfl.types import Setting

Row: TypeAlias = dict[str, Any]  # folder, error (or None), summary (or None); plain values that JSON can carry

_ANY_TOPOLOGY = ("topology", "mixing", "topology_seed")  # what no reference depends on


class Job(msgspec.Struct, frozen=True):
    """A run: its settings and where its files go."""

    settings: dict[str, Setting]
    folder: str


def job_of(recipe: Recipe, out: Path) -> Job:
    """The run of a recipe in a sweep's folder: equal recipes have equal folders, so what is done is found again."""
    recipe = msgspec.structs.replace(recipe, workers=1)  # one core a run, many runs at once
    kind = recipe.topology if recipe.algorithm == "d-psgd" else recipe.algorithm
    shown = "".join(letter if letter.isalnum() or letter in "-=." else "-" for letter in kind)[:40].strip("-.")
    name = f"{shown}-{recipe.fingerprint[:10]}"
    folder = out / name if recipe.algorithm == "d-psgd" else out / "references" / name
    return Job(msgspec.structs.asdict(recipe), str(folder))


def reference_job(recipe: Recipe, algorithm: str, out: Path) -> Job:
    """The reference of a recipe; the same for all recipes that differ only in what it does not depend on."""
    plain = msgspec.structs.asdict(Recipe())
    same = {key: plain[key] for key in (*_ANY_TOPOLOGY, *WORLD, "engine")}
    # Complete fits any number of peers.
    return job_of(msgspec.structs.replace(recipe, **{**same, "topology": "complete", "algorithm": algorithm}), out)


def finished(job: Job) -> Row | None:
    """The row of a run that was finished before; None where it has to be run, or to go on."""
    try:
        summary = msgspec.json.decode((Path(job.folder) / "summary.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return None
    return None if summary.get("stopped") else {"folder": job.folder, "error": None, "summary": summary}


def run_job(job: Job, stopped: Callable[[], bool] | None = None) -> Row:
    """Run it, or go on with it where it was broken off; what goes wrong is the row's error.

    Args:
        stopped: asked before every round; the run then ends with what is done kept.
    """
    import torch

    from p2pfl.simulation.simulate import simulate

    done = finished(job)
    if done is not None:
        return done
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = Path(job.folder)
    try:
        goes_on = (folder / "checkpoints").exists()
        if folder.exists() and not goes_on:
            shutil.rmtree(folder)  # a try that came to nothing
        run = simulate(run_recipe_of(job.settings), out=folder, resume=goes_on, stopped=stopped, save_models=False)
        return {"folder": job.folder, "error": None, "summary": plain_values(run.summary)}
    except P2pflError as error:
        return {"folder": job.folder, "error": str(error), "summary": None}
    except Exception as error:  # of the user's own functions, say: it costs this run, not the sweep
        return {"folder": job.folder, "error": f"{type(error).__name__}: {error}", "summary": None}
    finally:
        torch.set_num_threads(threads)


def plain_values(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary as it reads back from its file."""
    return msgspec.json.decode(msgspec.json.encode(summary), type=dict[str, Any])
