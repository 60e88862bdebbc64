"""The event engine: the rounds of live peers, driven in virtual time.

Every peer is a `protocol.rounds.SynchronousRound`, the very state machine that live peers run: its offers, fetches,
retries, deadlines, budgets and skipped rounds are theirs. The engine delivers messages and bodies when the recipe's
world lets them arrive, and lets steps take their time; peers are rounds apart as they come. Two things are not those of
live peers:

- Membership is an oracle. Live peers hold it together by gossip over a mesh of control connections, which a thousand
  peers cannot have. Here one table says who is a member from which round until which; a change holds for the second
  round after the latest that any peer has begun, as live peers announce it. A crash is noticed `DETECTION_S` after it
  happened, by all at once; leaving and joining at once. Who joins is granted a round, asks a member for the model with
  which that begins, fetches it, and takes part. The views are the same values with the same digests.
- Numbers come later. What happens when depends on no number, so training, mixing and evaluation are done when a round
  is over, for all peers together (see `deferred`), and take no virtual time but for the steps of training.

With `batched = false` every peer's training is that of its own `TorchLearner`, and where nothing is lost or late the
models are bit for bit those of peers over HTTP or inside one process.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from p2pfl.errors import RecipeError
from p2pfl.events import Sink
from p2pfl.learning.by_name import metrics_of
from p2pfl.learning.learner import Evaluation
from p2pfl.simulation.comings_and_goings import DETECTION_S, ComingsAndGoings
from p2pfl.simulation.deferred import Deferred, Trainer
from p2pfl.simulation.engine import Begin, Ending, Keeper
from p2pfl.simulation.one_by_one import OneByOne
from p2pfl.simulation.peers import Peers
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.round_reports import RoundReports
from p2pfl.simulation.together import Together
from p2pfl.simulation.virtual_time import VirtualTime
from p2pfl.simulation.world import World

__all__ = ["DETECTION_S", "EventEngine"]

_SELDOM = 50_000  # new objects between looks for garbage; events leave no cycles, and looking took a seventh of it all


class EventEngine:
    """Runs a problem in virtual time; see `simulation.engine.Engine`."""

    def __init__(self, sink: Sink | None = None) -> None:
        """sink: takes the events of all peers, as live peers write them; their `time_s` is virtual."""
        self._sink = sink

    def objection(self, problem: Problem) -> str:
        """Why this engine cannot run the problem, with the mend; empty where it can."""
        recipe = problem.recipe
        if recipe.algorithm not in ("d-psgd", "alone"):
            return f"{recipe.algorithm} is no algorithm of live peers; run it with engine = matrix"
        if recipe.device not in ("cpu", "auto"):
            return f"the event engine computes on the CPU, not on {recipe.device}; say device = cpu, or engine = matrix"
        try:
            World(recipe, problem.names)
        except RecipeError as error:
            return str(error)
        return ""

    def run(self, problem: Problem, keeper: Keeper, begin: Begin) -> Ending:
        """All rounds of the recipe from `begin.round` on; virtual time begins at 0 wherever the run does.

        Raises:
            TrainingError: a loss or a model is not finite.
            RecipeError: a setting of the world that cannot be, or churn in a run that goes on: a checkpoint knows
                neither what time it was nor who was there.
            ModelError, DataError: a model or examples that no live peer could take.
        """
        recipe = problem.recipe
        world = World(recipe, problem.names)
        if begin.round and world.churn:
            raise RecipeError(
                f"a run with churn cannot go on from round {begin.round}: who comes and goes would do so anew; "
                "run it from its beginning, into another folder"
            )
        trainer = _trainer(problem, keeper)
        work = Deferred(trainer, problem.peers, isinstance(trainer, Together))
        vectors = _initial(problem, trainer) if begin.vectors is None else begin.vectors.to(trainer.layout.torch_dtype)
        clock = VirtualTime()
        layout, everything = trainer.layout, self._sink is not None
        peers = Peers(problem, world, clock, work, layout, vectors.unbind(0), begin.round, everything)
        reports = RoundReports(work, trainer, peers.index, vectors, layout.framed_bytes, self._sink)
        peers.tell = reports.event
        peers.tell_mixed, peers.tell_sent = reports.mixed, reports.sent
        done = begin.round

        def over() -> bool:
            """Close the rounds that nobody is in any more; whether the run ends with them."""
            nonlocal done
            while peers.past > done:
                stopped = keeper.stopped
                last = stopped or done + 1 == recipe.rounds
                due = last or (done + 1) % recipe.evaluate_every == 0
                keeper.report(reports.close(done, due and problem.test is not None, lambda mean: _one(trainer, mean)))
                done += 1
                keeper.keep(done, lambda: reports.vectors)
                if last:
                    return True
            return False

        with _settled(one_thread=not isinstance(trainer, Together)):
            peers.begin()
            ComingsAndGoings(peers, clock, recipe.rounds).plan(world.churn)
            clock.run(over)
            ended = not over() and done < recipe.rounds and not keeper.stopped
        peers.finish()
        reports.release(end=True)
        facts = {
            "simulated_s": clock.now,
            "things_that_happened": clock.happened,
            "trained": "together" if isinstance(trainer, Together) else "one by one",
        }
        if ended:
            facts["ended"] = f"nobody was left after round {done}"
            keeper.warn(f"after {clock.now:g} virtual seconds nobody is left: the run ends after {done} rounds")
        return Ending(reports.vectors, done, dict(reports.failures), facts)


@contextmanager
def _settled(one_thread: bool) -> Iterator[None]:
    """The process as the engine likes it, and as it was at the end."""
    threads, thresholds = torch.get_num_threads(), gc.get_threshold()
    if one_thread:
        torch.set_num_threads(1)  # bits of live peers are those of one thread
    gc.set_threshold(_SELDOM, *thresholds[1:])
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        gc.set_threshold(*thresholds)


def _trainer(problem: Problem, keeper: Keeper) -> Trainer:
    metrics = metrics_of(problem.data)
    if problem.recipe.batched:
        try:
            return Together(problem, metrics)
        except Exception as error:  # a user's module may refuse torch.func with whatever error; alone it still runs
            why = str(error).strip().partition("\n")[0]
            keeper.warn(f"the model cannot be trained for many peers at once ({why}); they train one by one")
    return OneByOne(problem, metrics)


def _initial(problem: Problem, trainer: Trainer) -> torch.Tensor:
    """[peers, size], all with the initial weights."""
    parameters = [parameter.detach().reshape(-1) for parameter in problem.build().parameters()]
    return torch.cat(parameters).to(trainer.layout.torch_dtype).repeat(problem.peers, 1)


def _one(trainer: Trainer, vector: torch.Tensor) -> Evaluation:
    return trainer.evaluate((0,), vector[None])[0]
