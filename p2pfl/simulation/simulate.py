"""`simulate`: from a recipe to a run, with its references, its files, and a way to stop and go on."""

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, get_args

import msgspec
import networkx as nx
import numpy as np
from torch import nn

from p2pfl import partition
from p2pfl.errors import UsageError
from p2pfl.graphs.schedule import Schedule
from p2pfl.graphs.topology import Topology
from p2pfl.layout import Layout, layout_of
from p2pfl.learning.examples import Data
from p2pfl.learning.learner import Loss, Source
from p2pfl.learning.models import Builder
from p2pfl.model_files import ModelFacts, save_model
from p2pfl.recipe import Recipe, run_recipe_of
from p2pfl.recipe_files import read_recipe
from p2pfl.simulation import checkpoints
from p2pfl.simulation.engine import Begin, Engine
from p2pfl.simulation.engines import WORLD, choose
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.record import Moment, Record
from p2pfl.simulation.resolve import OWN, resolve
from p2pfl.simulation.run_lock import held
from p2pfl.simulation.simulated_run import SimulatedRun
from p2pfl.simulation.summary import reference_figures, summary_of
from p2pfl.sinks import write_summary
from p2pfl.types import Setting

Reference = Literal["alone", "pooled", "fedavg"]
REFERENCES: tuple[str, ...] = get_args(Reference)
_STOPPING = "stopping after this round; what is done is kept (again to quit at once)"
_FEW = 16  # peers up to which the model of each is written
_TOLD = 50_000  # peers × rounds up to which events.jsonl has everything that happened; a hundred bytes and more each


def simulate(
    recipe: Recipe | Mapping[str, Setting] | str | Path | None = None,
    *,
    out: str | Path | None = None,
    model: nn.Module | Builder | str | None = None,
    train: Data | Source | None = None,
    test: Source | None = None,
    loss: Loss | None = None,
    topology: Topology | Schedule | nx.Graph | str | None = None,
    engine: Engine | str | None = None,
    address: str | None = None,
    references: Sequence[str] = (),
    resume: bool = False,
    progress: Callable[[Moment], None] | None = None,
    say: Callable[[str], None] | None = None,
    save_models: bool | None = None,
    stopped: Callable[[], bool] | None = None,
    **settings: Setting,
) -> SimulatedRun:
    """Run a whole network on this machine, by the code that live peers run.

    In the main thread, the first Ctrl-C ends the run after the round under way, with everything done kept; the second
    ends it at once.

    Args:
        recipe: the settings, or a .toml file of them; all defaults unless given.
        out: folder for the files of the run; nothing is written without it.
        model: a module whose weights all peers begin with, a function that builds one, or a name as in a recipe.
        train, test: own examples, instead of the recipe's data.
        loss: (outputs, targets) -> scalar mean, instead of the one that fits the targets.
        topology: by name, or a graph of your own.
        engine: by name, or an engine of your own.
        address: of the Ray cluster where the engine is ray; one is started here without it.
        references: any of alone, pooled and fedavg, run after it and put beside it in the summary.
        resume: go on from the last checkpoint in `out`; without a recipe, by the one that lies there.
        progress: called after every round.
        say: told which engine runs it and why, and what a person should know.
        save_models: write the model of each peer; None writes those of up to 16 peers. The average is always written.
        stopped: asked after every round whether to end there, with everything done kept.
        settings: of the recipe, over those given before, as `topology="torus", peers=64`.

    Raises:
        RecipeError, DataError, ModelError, TopologyError, UsageError: something asked for cannot be.
        TrainingError: the loss is not finite.
    """
    unknown = [name for name in references if name not in REFERENCES]
    if unknown:
        raise UsageError(f"there is no reference {unknown[0]!r}; there are {', '.join(REFERENCES)}")
    folder = Path(out) if out is not None else None
    named = {"model": model, "topology": topology, "engine": engine}
    settings |= {key: value for key, value in named.items() if isinstance(value, str)}
    whole = recipe_with(_recipe_to_resume(folder) if resume and recipe is None else recipe, settings)
    own_model = None if isinstance(model, str) else model
    if own_model is None and train is None and OWN in (whole.model, whole.data):
        raise UsageError("this recipe had Python objects for model or data: give model= or train= again")
    problem = resolve(
        whole,
        model=own_model,
        train=train,
        test=test,
        loss=loss,
        topology=None if isinstance(topology, str) else topology,
    )
    plan = _Plan(
        folder, resume, progress, say, save_models, stopped, None if isinstance(engine, str) else engine, address
    )
    if folder is not None and not resume and (folder / "events.jsonl").exists():
        raise UsageError(f"{folder} holds a run already; give another out, or resume to go on with it")
    records: list[Record] = []
    references = list(dict.fromkeys(references))
    # Who can ask to stop hears Ctrl-C itself.
    with nullcontext() if stopped is not None else _interrupts(records, say):
        run = _ended(problem, plan, records, references) or _run(problem, plan, records)
        others = {} if records[0].stopped else _references(problem, references, plan, records, run.summary)
    return _with_references(run, others)


def recipe_with(recipe: Recipe | Mapping[str, Setting] | str | Path | None, settings: Mapping[str, Setting]) -> Recipe:
    """The recipe, or a file's, with these settings over its own. Raises RecipeError, UsageError."""
    if isinstance(recipe, str | Path):
        recipe = read_recipe(Path(recipe))
    if isinstance(recipe, Recipe):
        recipe = msgspec.structs.asdict(recipe)
    if settings.get("steps") and "epochs" in settings:
        raise UsageError("epochs and steps: steps stand instead of epochs; give one of them")
    if "epochs" in settings and "steps" not in settings:
        settings = {**settings, "steps": 0}  # or the recipe's own steps would stand over what is asked for
    return run_recipe_of({**(recipe or {}), **settings})


def reference_of(problem: Problem, name: str) -> Problem:
    """The same data and model, as each peer alone, all data in one place, or the exact average each round.

    References live in a world without delay and loss: they are what the network is measured against.
    """
    plain = Recipe()
    world = {key: getattr(plain, key) for key in WORLD}
    recipe = msgspec.structs.replace(problem.recipe, algorithm=name, engine="auto", **world)
    if name != "pooled":
        return replace(problem, recipe=recipe)
    parts = (partition.together(problem.parts),)
    return replace(
        problem, recipe=recipe, parts=parts, schedule=Schedule.of(Topology("pooled", 1, ())), names=("pooled",)
    )


@dataclass(frozen=True)
class _Plan:
    """How a problem is to be run."""

    folder: Path | None
    resume: bool
    progress: Callable[[Moment], None] | None
    say: Callable[[str], None] | None
    save_models: bool | None
    stopped: Callable[[], bool] | None
    engine: Engine | None
    address: str | None
    reference: str = ""


def _run(problem: Problem, plan: _Plan, records: list[Record]) -> SimulatedRun:
    """One problem, from its beginning or its checkpoint to its files."""
    layout = layout_of(problem.build())
    begin, steps, before = _where_to_begin(problem, plan, layout)
    record = _record(problem, plan, layout)
    told = plan.folder is not None and problem.peers * problem.recipe.rounds <= _TOLD
    if plan.engine is not None:
        engine, name, why = plan.engine, type(plan.engine).__name__, "given"
        objection = engine.objection(problem)
        if objection:
            raise UsageError(f"engine {name} cannot run this: {objection}")
    else:
        engine, name, why = choose(problem, sink=record.take if told else None, address=plan.address)
    if plan.say is not None and not plan.reference:
        plan.say(f"engine {name}: {why}")
    _make(plan.folder)
    with held(plan.folder):
        records.append(record)
        try:
            record.open(begin.round, steps, before.get("simulated_s") or 0.0)
        except OSError as error:
            raise _unwritable(plan.folder, error) from error
        if name == "event" and plan.folder is not None and not told:
            record.warn(
                f"events.jsonl has beginning and end only: the events of more than {_TOLD:,} rounds would fill it"
            )
        reason = ""
        try:
            ending = engine.run(problem, record, begin)
            reason = "rounds" if ending.round >= problem.recipe.rounds else "stopped"
        finally:
            record.close(reason)
        summary = summary_of(problem, record, ending, layout, engine=name, why=why, before=before)
        if before.get("references"):
            summary["references"] = before["references"]
        run = SimulatedRun(problem, summary, ending.vectors, layout, plan.folder, record)
        _write_models(run, plan)
        _write_summary(run)
        # Last: a run that has a checkpoint of its end has a summary, too, wherever it was killed.
        record.save(ending.round, ending.vectors)
        return run


def _where_to_begin(
    problem: Problem, plan: _Plan, layout: Layout
) -> tuple[Begin, "np.typing.NDArray[np.int64] | None", dict[str, Any]]:
    """The round and models to begin with, the steps each peer has behind it, and the summary so far."""
    if not plan.resume or plan.folder is None:
        if plan.resume:
            raise UsageError("resume needs out: the folder of the run to go on with")
        return Begin(0), None, {}
    begin = checkpoints.read(plan.folder, problem.recipe, layout, problem.peers)
    if not begin.round:
        return begin, None, {}
    if problem.recipe.churn and begin.round < problem.recipe.rounds:  # before any file of the run is touched
        raise UsageError(
            f"a run with churn cannot go on from round {begin.round}: who comes and goes would do so anew; "
            "begin it again in another --out"
        )
    checkpoints.check_contents(plan.folder, checkpoints.contents_of(problem))
    steps, so_far = checkpoints.so_far(plan.folder, begin.round, problem.names)
    return begin, steps, _with_whole_references(so_far, plan.folder, problem.recipe.rounds)


def _ended(problem: Problem, plan: _Plan, records: list[Record], references: Sequence[str]) -> SimulatedRun | None:
    """A run that has all its rounds, but not all references that are asked for: these are all that is left to do."""
    if not plan.resume or plan.folder is None or not references:
        return None
    layout = layout_of(problem.build())
    begin = checkpoints.read(plan.folder, problem.recipe, layout, problem.peers, ended=True)
    summary = _with_whole_references(checkpoints.read_summary(plan.folder), plan.folder, problem.recipe.rounds)
    missing = [name for name in references if not summary.get(name)]
    if begin.round != problem.recipe.rounds or begin.vectors is None or not summary or not missing:
        return None
    checkpoints.check_contents(plan.folder, checkpoints.contents_of(problem))
    record = _record(problem, plan, layout)
    record.first_round = begin.round
    records.append(record)
    if plan.say is not None:
        plan.say(f"all {begin.round} rounds are there; what is left is to run {' and '.join(missing)}")
    return SimulatedRun(problem, summary, begin.vectors, layout, plan.folder, record)


def _with_whole_references(summary: Mapping[str, Any], folder: Path, rounds: int) -> dict[str, Any]:
    """The same without what references reached in another number of rounds."""
    where = dict(summary.get("references") or {})
    whole = {
        name: path
        for name, path in where.items()
        if (told := checkpoints.read_summary(folder / path)).get("rounds") == rounds and not told.get("stopped")
    }
    short = dict.fromkeys((name for name in REFERENCES if summary.get(name) and name not in whole), None)
    return {**summary, **short, **({"references": whole} if where else {})}


def _record(problem: Problem, plan: _Plan, layout: Layout) -> Record:
    return Record(
        problem,
        layout,
        folder=plan.folder,
        name=plan.reference,
        progress=plan.progress,
        warn=plan.say,
        stopped=plan.stopped,
        checkpointed=not plan.reference,
    )


def _make(folder: Path | None) -> None:
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path | None, error: OSError) -> UsageError:
    return UsageError(f"the folder {folder} cannot be written to: {error.strerror}; give another")


def _references(
    problem: Problem, names: Sequence[str], plan: _Plan, records: list[Record], summary: Mapping[str, Any]
) -> dict[str, SimulatedRun]:
    runs: dict[str, SimulatedRun] = {}
    for name in names:
        if plan.resume and summary.get(name):
            continue  # it was run before
        folder = plan.folder / "references" / name if plan.folder is not None else None
        other = replace(plan, folder=folder, resume=False, save_models=False, engine=None, reference=name)
        if folder is not None:
            checkpoints.clear(folder)
        run = _run(reference_of(problem, name), other, records)
        if run.summary["stopped"]:
            if plan.say is not None and plan.folder is not None:
                plan.say(f"{name} was stopped half way: resume with the same references runs it again")
            break
        runs[name] = run
    return runs


def _with_references(run: SimulatedRun, others: Mapping[str, SimulatedRun]) -> SimulatedRun:
    figures: dict[str, Any] = {}
    for name, other in others.items():
        reached = reference_figures(other.summary)
        figures[name] = {"mean": reached["mean"]} if reached and name == "pooled" else reached
    if others and run.folder is not None:
        before = run.summary.get("references") or {}
        figures["references"] = {**before, **{name: f"references/{name}" for name in others}}
    run = replace(run, summary={**run.summary, **figures}, references=others)
    if others:
        _write_summary(run)
    return run


def _write_models(run: SimulatedRun, plan: _Plan) -> None:
    if run.folder is None:
        return
    problem = run.problem
    data = problem.data
    facts = ModelFacts(
        model="" if run.recipe.model == OWN else run.recipe.model,
        input_shape=data.input_shape,
        outputs=data.outputs,
        task=data.task,
        labels=data.labels,
        preparation=dict(data.preparation),
        data=data.name,
        round=run.summary["rounds"],
    )
    every = plan.save_models if plan.save_models is not None else problem.peers <= _FEW
    try:
        save_model(run.folder / "models" / "mean.safetensors", run.mean_vector, run.layout, facts)
        for peer, vector in zip(problem.names, run.vectors, strict=True) if every else ():
            path = run.folder / "models" / f"{peer}.safetensors"
            save_model(path, vector, run.layout, msgspec.structs.replace(facts, peer=peer))
    except OSError as error:
        run.record.warn(f"the models were not written: {error.strerror}")


def _write_summary(run: SimulatedRun) -> None:
    if run.folder is None:
        return
    try:
        write_summary(run.folder, run.summary)
    except OSError as error:
        run.record.warn(f"the summary was not written: {error.strerror}")


def _recipe_to_resume(folder: Path | None) -> Recipe:
    if folder is None:
        raise UsageError("resume needs out: the folder of the run to go on with")
    if not (folder / "recipe.toml").exists():
        raise UsageError(f"{folder} holds no run to go on with: it has no recipe.toml")
    return read_recipe(folder / "recipe.toml")


@contextmanager
def _interrupts(records: list[Record], say: Callable[[str], None] | None) -> Iterator[None]:
    """The first Ctrl-C asks the run to stop, the second breaks it off; other threads have no say over signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    telling: list[threading.Thread] = []

    def heard(number: int, frame: FrameType | None) -> None:
        if not records or records[-1].stopped:
            raise KeyboardInterrupt
        for record in records:
            record.stop()
        if say is not None:
            # In a thread: this may have come in the midst of another line.
            telling.append(threading.Thread(target=say, args=(_STOPPING,)))
            telling[-1].start()

    before = signal.signal(signal.SIGINT, heard)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        for thread in telling:
            thread.join()
