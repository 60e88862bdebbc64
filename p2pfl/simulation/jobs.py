"""One run of a sweep as a value that can be sent to another process or machine, and what comes back of it."""

import hashlib
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from p2pfl.errors import ModelError, P2pflError
from p2pfl.model_files import read_checkpoint
from p2pfl.recipe import Recipe, run_recipe_of
from p2pfl.simulation import checkpoints
from p2pfl.simulation.engines import WORLD
from p2pfl.simulation.run_lock import held
from p2pfl.types import Setting

Row: TypeAlias = dict[str, Any]  # folder, error (or None), summary (or None); plain values that JSON can carry

_CHUNK_BYTES = 1 << 20
_ANY_TOPOLOGY = ("topology", "mixing", "topology_seed")  # what no reference depends on


class Job(msgspec.Struct, frozen=True):
    """A run: its settings and where its files go."""

    settings: dict[str, Setting]
    folder: str


def digest_of(path: Path) -> str:
    """32 hex digits over the bytes of a file, or of all files of a folder and their names. Raises OSError."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(f"{file.relative_to(path)};{file.stat().st_size};".encode())
            with file.open("rb") as opened:
                while chunk := opened.read(_CHUNK_BYTES):
                    digest.update(chunk)
    return digest.hexdigest()


def job_of(recipe: Recipe, out: Path, digest: Callable[[Path], str] = digest_of) -> Job:
    """The run of a recipe in a sweep's folder: equal recipes have equal folders, so what is done is found again.

    Recipes are equal where their settings are, and what stands in the files that these name: data and topology.

    Args:
        digest: of a file or folder.
    """
    recipe = msgspec.structs.replace(recipe, workers=1)  # one core a run, many runs at once
    kind = recipe.topology if recipe.algorithm == "d-psgd" else recipe.algorithm
    shown = "".join(letter if letter.isalnum() or letter in "-=." else "-" for letter in kind)[:40].strip("-.")
    name = f"{shown}-{_identity(recipe, digest)[:10]}"
    folder = out / name if recipe.algorithm == "d-psgd" else out / "references" / name
    return Job(msgspec.structs.asdict(recipe), str(folder))


def reference_job(recipe: Recipe, algorithm: str, out: Path, digest: Callable[[Path], str] = digest_of) -> Job:
    """The reference of a recipe; the same for all recipes that differ only in what it does not depend on."""
    plain = msgspec.structs.asdict(Recipe())
    same = {key: plain[key] for key in (*_ANY_TOPOLOGY, *WORLD, "engine")}
    # Complete fits any number of peers.
    plain_recipe = msgspec.structs.replace(recipe, **{**same, "topology": "complete", "algorithm": algorithm})
    return job_of(plain_recipe, out, digest)


def _identity(recipe: Recipe, digest: Callable[[Path], str]) -> str:
    contents = [_contents(text, digest) for text in (recipe.topology, recipe.data)]
    if not any(contents):
        return recipe.fingerprint
    return hashlib.blake2b(";".join([recipe.fingerprint, *contents]).encode(), digest_size=16).hexdigest()


def _contents(text: str, digest: Callable[[Path], str]) -> str:
    path = Path(text).expanduser()
    try:
        return digest(path) if path.exists() else ""
    except OSError:
        return ""  # no path but a long topology; or the run will say what it cannot read


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
        recipe = run_recipe_of(job.settings)
        goes_on = _goes_on(folder, recipe)
        if folder.exists() and not goes_on:
            with held(folder):  # nobody else is at it
                shutil.rmtree(folder)  # a try that came to nothing
        run = simulate(recipe, out=folder, resume=goes_on, stopped=stopped, save_models=False)
        if not run.summary["stopped"]:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # as large as all its models, and for nobody
        return {"folder": job.folder, "error": None, "summary": plain_values(run.summary)}
    except P2pflError as error:
        return {"folder": job.folder, "error": str(error), "summary": None}
    except Exception as error:  # of the user's own functions, say: it costs this run, not the sweep
        return {"folder": job.folder, "error": f"{type(error).__name__}: {error}", "summary": None}
    finally:
        torch.set_num_threads(threads)


def _goes_on(folder: Path, recipe: Recipe) -> bool:
    """Whether a run was broken off where it can go on.

    One that has all its rounds but lost its summary cannot, and no checkpoint knows who had come and gone.
    """
    try:
        return not recipe.churn and read_checkpoint(checkpoints.path_of(folder)).round < recipe.rounds
    except ModelError:
        return False


def plain_values(summary: Mapping[str, Any]) -> dict[str, Any]:
    """The summary as it reads back from its file."""
    return msgspec.json.decode(msgspec.json.encode(summary), type=dict[str, Any])
