"""`sweep`: a grid of recipes, run side by side; what is finished is not repeated."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from p2pfl.errors import UsageError
from p2pfl.recipe import Recipe
from p2pfl.recipe_files import Sweep, read_sweep
from p2pfl.simulation.jobs import Job, Row, digest_of, finished, job_of, reference_job, run_job
from p2pfl.simulation.sweep_processes import cores, run_in_processes
from p2pfl.sinks import write_summary
from p2pfl.types import Setting

if TYPE_CHECKING:
    import pandas as pd

_FIGURES: Mapping[str, tuple[str, ...]] = {
    "accuracy_mean": ("accuracy", "mean"),
    "accuracy_worst": ("accuracy", "worst"),
    "mean_model_accuracy": ("mean_model", "accuracy"),
    "loss_mean": ("loss", "mean"),
    "consensus_distance": ("consensus_distance",),
    "relative_distance": ("relative_distance",),
    "total_variation": ("heterogeneity", "total_variation"),
    "rounds": ("rounds",),
    "steps": ("steps",),
    "bytes_sent": ("bytes_sent",),
    "wall_s": ("wall_s",),
    "simulated_s": ("simulated_s",),
    "engine": ("engine",),
}
_STOPPING = "stopping after the rounds under way; what is done is kept (again to quit at once)"
_REFRESH_S = 1.0
_WHOLE = ("rounds", "steps", "bytes_sent")
_REFERENCE_FIGURES: Mapping[str, tuple[str, ...]] = {
    "alone": ("mean", "worst"),
    "pooled": ("mean",),
    "fedavg": ("mean", "worst"),
}


@dataclass(frozen=True)
class Step:
    """How far a sweep is, for whoever shows it: runs done of all, the last one's row, seconds so far and expected."""

    done: int
    total: int
    repeated: int  # of those done, found finished
    row: Row | None
    elapsed_s: float
    left_s: float | None


def sweep(
    base: Sweep | Recipe | Mapping[str, Setting] | str | Path | None = None,
    grid: Mapping[str, Sequence[Setting] | Setting] | None = None,
    *,
    out: str | Path,
    workers: int = 0,
    on: Literal["cores", "ray"] = "cores",
    address: str | None = None,
    references: Sequence[str] | None = None,
    progress: Callable[[Step], None] | None = None,
    say: Callable[[str], None] | None = None,
) -> "pd.DataFrame":
    """Run every combination of the grid, and write a row for each into `out`/results.csv.

    A run has a folder of its own, named after what it is and what its files of data and topology hold; one that is
    there and finished is not repeated, one that was broken off goes on from its checkpoint. In the main thread, the
    first Ctrl-C ends the runs under way after their round and begins no other, the second ends them at once; what is
    done is kept.

    Args:
        base: what all runs share: a recipe, settings, or the .toml file of a recipe or sweep.
        grid: the values of each setting that varies, as {"topology": ["ring", "torus"], "seed": [0, 1, 2]}; epochs
            stand over steps of the base, and steps over its epochs.
        out: folder of the runs and of results.csv.
        workers: runs at once, each on one core; 0 is one a core, 1 runs them in this process.
        on: the cores of this machine, or ray: a cluster, one task a run, and `out` a folder that its machines share.
        address: of the Ray cluster; one is started here without it.
        references: any of alone, pooled and fedavg, run once for all runs that differ in topology and mixing alone.
        progress: called after every run.
        say: told what a person should know.

    Returns:
        The rows of results.csv: a row a run that has ended, with what varies, final figures, error, and folder.

    Raises:
        RecipeError: an unknown setting, or a value of the wrong kind. What goes wrong in a run is its row's error.
        UsageError: the folder cannot be written to, or Ray is not installed.
    """
    plan = _planned(base, grid, references)
    recipes = list(plan.recipes())
    folder = Path(out).resolve() if on == "ray" else Path(out)  # processes of a cluster are somewhere else
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the folder {out} cannot be made: {error.strerror}; give another out") from error
    digest = cache(digest_of)  # each file is read once, however many runs it serves
    cells = [job_of(recipe, folder, digest) for recipe in recipes]
    beside = [{name: reference_job(recipe, name, folder, digest) for name in plan.references} for recipe in recipes]
    jobs = {job.folder: job for job in (*cells, *(job for each in beside for job in each.values()))}
    rows = {name: row for name, job in jobs.items() if (row := finished(job)) is not None}
    table = _Table(folder / "results.csv", plan, recipes, cells, beside, rows)
    pending = [job for name, job in jobs.items() if name not in rows]
    steps = _Steps(len(jobs), len(rows), progress)

    def done(row: Row) -> None:
        rows[row["folder"]] = row
        table.refresh()
        steps.tell(row)

    try:
        with _stoppable(say) as stopped:
            steps.tell(None)
            if on == "ray" and pending:
                _on_ray(pending, workers, address, done, stopped)
            else:
                with closing(run_in_processes(pending, workers or cores(), stopped)) as ended:
                    for row in ended:
                        done(row)
    finally:
        frame = table.write()
    return frame


def _planned(
    base: Sweep | Recipe | Mapping[str, Setting] | str | Path | None,
    grid: Mapping[str, Sequence[Setting] | Setting] | None,
    references: Sequence[str] | None,
) -> Sweep:
    if isinstance(base, str | Path):
        base = read_sweep(Path(base))
    if isinstance(base, Recipe):
        base = msgspec.structs.asdict(base)
    plan = base if isinstance(base, Sweep) else Sweep(dict(base or {}))
    plan = plan.over({}, grid or {})
    wanted = plan.references if references is None else tuple(references)
    unknown = [name for name in wanted if name not in _REFERENCE_FIGURES]
    if unknown:
        raise UsageError(f"there is no reference {unknown[0]!r}; there are {', '.join(_REFERENCE_FIGURES)}")
    return replace(plan, references=tuple(dict.fromkeys(wanted)))


class _Stopped(Exception):
    """Ends a sweep on Ray from within, when it was asked to stop."""


def _on_ray(
    jobs: Sequence[Job], workers: int, address: str | None, done: Callable[[Row], None], stopped: Callable[[], bool]
) -> None:
    from p2pfl.simulation.ray_sweep import run_on_ray

    def took(job: Job, row: Row) -> None:
        done(row)
        if stopped():
            raise _Stopped

    with suppress(_Stopped):
        run_on_ray(jobs, run_job, address, took, workers)


class _Table:
    """results.csv, written anew as runs end."""

    def __init__(
        self,
        path: Path,
        plan: Sweep,
        recipes: Sequence[Recipe],
        cells: Sequence[Job],
        beside: Sequence[Mapping[str, Job]],
        rows: Mapping[str, Row],
    ) -> None:
        self._path = path
        self._plan = plan
        self._of = list(zip(recipes, cells, beside, strict=True))
        self._rows = rows
        self._noted: set[str] = set()
        self._written = 0.0

    def refresh(self) -> None:
        """Write the rows there are, at most every second: runs may be short and many."""
        if time.monotonic() - self._written > _REFRESH_S:
            self.write()

    def write(self) -> "pd.DataFrame":
        """The rows there are, in the order of the grid; written whole or not at all."""
        import pandas as pd

        lines = [
            self._line(recipe, self._rows[job.folder], beside)
            for recipe, job, beside in self._of
            if job.folder in self._rows
        ]
        columns = [*self._plan.grid, *(key for key in _FIGURES if key not in self._plan.grid)]
        columns += [f"{name}_{which}" for name in self._plan.references for which in _REFERENCE_FIGURES[name]]
        frame = pd.DataFrame(lines, columns=[*columns, "stopped", "ended_early", "error", "folder"])
        whole = [name for name in _WHOLE if name not in self._plan.grid]
        frame[whole] = frame[whole].astype("Int64")  # which can be missing
        temporary = self._path.with_name(f".{self._path.name}")
        try:
            frame.to_csv(temporary, index=False)
            temporary.replace(self._path)
            self._written = time.monotonic()
        except OSError as error:
            raise UsageError(f"{self._path} cannot be written: {error.strerror}; give another out") from error
        return frame

    def _line(self, recipe: Recipe, row: Row, beside: Mapping[str, Job]) -> dict[str, Any]:
        summary = row["summary"] or {}
        line = {name: _at(summary, path) for name, path in _FIGURES.items()}
        reached = {}
        for name, job in beside.items():
            other = (self._rows.get(job.folder) or {}).get("summary") or {}
            reached[name] = other.get("accuracy") or other.get("loss")
            for which in _REFERENCE_FIGURES[name]:
                line[f"{name}_{which}"] = (reached[name] or {}).get(which)
        if summary and beside and all(reached.values()) and row["folder"] not in self._noted:
            self._noted.add(row["folder"])
            _note_references(Path(row["folder"]), reached, beside)
        varied = {key: getattr(recipe, key) for key in self._plan.grid}
        ended = {name: summary.get(name) for name in ("stopped", "ended_early")}
        return {**line, **varied, **ended, "error": row["error"], "folder": row["folder"]}


def _note_references(folder: Path, reached: Mapping[str, Any], beside: Mapping[str, Job]) -> None:
    """Put what the references reached into a run's own summary, and where they lie."""
    try:
        summary = msgspec.json.decode((folder / "summary.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError):
        return  # its disk failed; it has said so
    figures = {
        name: None if value is None else {which: value[which] for which in _REFERENCE_FIGURES[name]}
        for name, value in reached.items()
    }
    where = {name: f"../references/{Path(job.folder).name}" for name, job in beside.items()}
    with suppress(OSError):  # results.csv has them as well
        write_summary(folder, {**summary, **figures, "references": where})


def _at(summary: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = summary
    for key in path:
        value = (value or {}).get(key)
    return value


class _Steps:
    """Counts runs and seconds for `progress`."""

    def __init__(self, total: int, repeated: int, progress: Callable[[Step], None] | None) -> None:
        self._total, self._repeated, self._progress = total, repeated, progress
        self._done = repeated
        self._began = time.monotonic()

    def tell(self, row: Row | None) -> None:
        """A run has ended; None at the beginning."""
        self._done += row is not None
        elapsed = time.monotonic() - self._began
        run = self._done - self._repeated
        left = elapsed / run * (self._total - self._done) if run else None
        if self._progress is not None:
            self._progress(Step(self._done, self._total, self._repeated, row, elapsed, left))


@contextmanager
def _stoppable(say: Callable[[str], None] | None) -> Iterator[Callable[[], bool]]:
    """Whether the first Ctrl-C has come; the second is a KeyboardInterrupt. Other threads have no say over signals."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    telling: list[threading.Thread] = []

    def heard(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        if say is not None:
            # In a thread: this may have come in the midst of another line.
            telling.append(threading.Thread(target=say, args=(_STOPPING,)))
            telling[-1].start()

    before = signal.signal(signal.SIGINT, heard)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)
        for thread in telling:
            thread.join()
