"""What a simulation gives back: its figures as DataFrames, and the models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from p2pfl.errors import UsageError
from p2pfl.layout import Layout
from p2pfl.recipe import Recipe
from p2pfl.simulation.problem import Problem
from p2pfl.simulation.record import Record
from p2pfl.simulation.resolve import part_counts
from p2pfl.simulation.rows import ROUNDS, edges_frame, metrics_frame

if TYPE_CHECKING:
    import pandas as pd

_BLOCK = 1 << 22  # elements that are averaged at once in float64


@dataclass(frozen=True)
class SimulatedRun:
    """A simulation that has ended. Its tables are made when asked for.

    Attributes:
        summary: what `p2pfl simulate --json` prints.
        vectors: [peers, size] the models after the last whole round, on the CPU.
        layout: where a vector's tensors lie.
        folder: of the files, None where nothing was written.
        references: the runs of alone, pooled or fedavg, by name.
    """

    problem: Problem
    summary: Mapping[str, Any]
    vectors: torch.Tensor
    layout: Layout
    folder: Path | None
    record: Record = field(repr=False)
    references: Mapping[str, "SimulatedRun"] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """As it ran, every setting definite."""
        return self.problem.recipe

    @property
    def peers(self) -> tuple[str, ...]:
        """The names of the peers, in the order of `vectors`."""
        return self.problem.names

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        """A row for each peer and round, with the columns of metrics.csv."""
        return self._with_earlier("metrics.csv", metrics_frame(self.record.metrics, self.record.extra or ()))

    @cached_property
    def rounds(self) -> "pd.DataFrame":
        """A row for each round, with the columns of rounds.csv: what is of the network, and means over its peers."""
        import pandas as pd

        # Columns in which nothing stands would be of objects otherwise.
        rows = [[float("nan") if cell is None else cell for cell in cells.values()] for cells in self.record.rounds]
        return self._with_earlier("rounds.csv", pd.DataFrame(rows, columns=list(ROUNDS)))

    @cached_property
    def edges(self) -> "pd.DataFrame":
        """A row for each share that was received: round, from, to, bytes."""
        import numpy as np

        return self._with_earlier("edges.csv", edges_frame(self.record.edges, np.array(self.peers)))

    @cached_property
    def partition(self) -> "pd.DataFrame":
        """Training examples by peer and label."""
        import pandas as pd

        labels, counts = part_counts(self.problem)
        rows = [
            (peer, label, count)
            for peer, row in zip(self.peers, counts.tolist(), strict=True)
            for label, count in zip(labels, row, strict=True)
        ]
        return pd.DataFrame(rows, columns=["peer", "label", "count"])

    def model(self, peer: str | int | None = None) -> nn.Module:
        """A module with the weights of a peer, by name or position; of the peers' average without one.

        Raises:
            UsageError: there is no such peer.
        """
        if peer is None:
            vector = self.mean_vector
        else:
            at = self.peers.index(peer) if peer in self.peers else peer
            if not isinstance(at, int) or not 0 <= at < len(self.peers):
                last = self.peers[-1]
                raise UsageError(
                    f"there is no peer {peer!r}; they are {self.peers[0]} to {last}, None is their average"
                )
            vector = self.vectors[at]
        module = self.problem.build()
        views = self.layout.views(vector)
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(views[name])
        return module.eval()

    @cached_property
    def mean_vector(self) -> torch.Tensor:
        """[size] the average of the peers that were there at the end, summed in float64."""
        last = self.record.last
        chosen = self.vectors
        if last is not None and not last.present.all():
            chosen = chosen[torch.from_numpy(last.present)]
        elif last is None and self.record.first_round:
            table = self.metrics  # nothing was left to run
            there = set(table.loc[table["round"] == self.record.first_round - 1, "peer"])
            chosen = chosen[[peer in there for peer in self.peers]]
        wide = max(1, _BLOCK // len(chosen))
        blocks = [chosen[:, begin : begin + wide].double().mean(dim=0) for begin in range(0, self.layout.size, wide)]
        return torch.cat(blocks).to(self.layout.torch_dtype)

    def _with_earlier(self, name: str, frame: "pd.DataFrame") -> "pd.DataFrame":
        """The rows of the rounds before those of this process, where the run went on, from its file; then these."""
        import pandas as pd

        if not self.record.first_round or self.folder is None:
            return frame
        types = dict.fromkeys(("peer", "from", "to"), str)
        earlier = pd.read_csv(self.folder / name, dtype=types, keep_default_na=False, na_values=[""])
        earlier = earlier[earlier["round"] < self.record.first_round]
        kept = [part for part in (earlier, frame) if len(part)]
        return pd.concat(kept, ignore_index=True) if kept else frame
