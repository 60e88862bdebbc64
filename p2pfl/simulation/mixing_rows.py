"""Mixing of all peers' vectors at once: the rows of one array, by the weights that live peers use.

A row of the result is the sum of few rows: a sparse product, computed for blocks of rows that stay in the cache. Where
every peer hears most others, the product is dense for a block of rows at a time, never as a whole.
"""

from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from p2pfl.graphs.mixing import mixing_csr
from p2pfl.graphs.topology import Topology

_BLOCK = 1 << 18  # elements of a block of rows
_DENSE = 0.2  # share of weights that are not 0, above which a dense product is faster: it does 70 GFLOP/s a core
_LONG = 1 << 13  # elements of a row from which a call of torch costs little beside the work on a row


class RowMixing:
    """The mixing of one topology."""

    def __init__(self, topology: Topology, dtype: torch.dtype) -> None:
        """Raises TopologyError where there are no weights."""
        weights = mixing_csr(topology)
        self._take(weights, topology.links, self.is_dense(weights), dtype)

    @classmethod
    def of(cls, weights: csr_array, links: npt.NDArray[np.int64], dense: bool, dtype: torch.dtype) -> Self:
        """Of weights [nodes, nodes] and links [k, 2] as they are: of a shard, whose numbers of nodes are its own."""
        mixing = cls.__new__(cls)
        mixing._take(weights, links, dense, dtype)
        return mixing

    @staticmethod
    def is_dense(weights: csr_array) -> bool:
        """Whether dense products are faster."""
        nodes: int = weights.shape[0]
        return bool(weights.nnz > _DENSE * nodes**2 and nodes > 8)

    def _take(self, weights: csr_array, links: npt.NDArray[np.int64], dense: bool, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._weights = weights.astype(np.float32 if dtype == torch.float32 else np.float64)
        self._dense = dense
        self._links = torch.from_numpy(np.array(links, dtype=np.int64).reshape(-1, 2))  # by receiver
        self._starts = np.searchsorted(self._links[:, 0].numpy(), np.arange(weights.shape[0] + 1))

    def mix(self, rows: torch.Tensor, out: torch.Tensor, begin: int, end: int) -> None:
        """Write rows begin … end of the product of the weights with `rows` [nodes, size] to `out` [nodes, size]."""
        if rows.device.type != "cpu":
            self._mix_on_device(rows, out)
            return
        height = max(1, _BLOCK // rows.shape[1])
        if self._dense:
            height = max(height, 64)  # a product of few rows does not pay its reading of all others
        values = rows.numpy()
        for low in range(begin, end, height):
            high = min(low + height, end)
            some: csr_array = self._weights[low:high]
            if self._dense:
                torch.mm(torch.from_numpy(some.toarray()), rows, out=out[low:high])
            else:
                out[low:high] = torch.from_numpy(some @ values)

    def distances(self, rows: torch.Tensor, begin: int, end: int) -> npt.NDArray[np.float64]:
        """[end − begin] mean squared distance of each row to those it hears; NaN where it hears none."""
        links = self._links[self._starts[begin] : self._starts[end]].to(rows.device)
        if self._dense:
            squares = self._by_products(rows, links, begin, end)
        elif rows.shape[1] >= _LONG and rows.device.type == "cpu":
            squares = _one_by_one(rows, links)
        else:
            squares = _by_gathers(rows, links)
        receivers = links[:, 0].cpu().numpy() - begin
        heard = np.bincount(receivers, minlength=end - begin).astype(np.float64)
        heard[heard == 0] = np.nan
        mean: npt.NDArray[np.float64] = np.bincount(receivers, weights=squares, minlength=end - begin) / heard
        return mean

    def _by_products(self, rows: torch.Tensor, links: torch.Tensor, begin: int, end: int) -> npt.NDArray[np.float64]:
        """‖x − y‖² = ‖x‖² + ‖y‖² − 2 x·y, about the mean: near consensus nothing is left of these else."""
        centered = rows - rows.mean(dim=0)
        squares = torch.linalg.vector_norm(centered, dim=1).double().square()
        products = torch.mm(centered[begin:end], centered.t()).double()
        pairs = squares[links[:, 0]] + squares[links[:, 1]] - 2 * products[links[:, 0] - begin, links[:, 1]]
        return pairs.clamp_(min=0).cpu().numpy()  # type: ignore[no-any-return]  # torch has no annotations there

    def _mix_on_device(self, rows: torch.Tensor, out: torch.Tensor) -> None:
        """By gathering and adding, which every device has."""
        weights = self._weights.tocoo()
        data = torch.from_numpy(weights.data).to(rows.device)
        receivers, senders = (torch.from_numpy(index.astype(np.int64)).to(rows.device) for index in weights.coords)
        out.zero_()
        at_once = max(1, (_BLOCK << 4) // rows.shape[1])
        for low in range(0, len(data), at_once):
            chosen = slice(low, low + at_once)
            out.index_add_(0, receivers[chosen], rows[senders[chosen]] * data[chosen].unsqueeze(1))


def spread(rows: torch.Tensor, mean: torch.Tensor, begin: int, end: int) -> tuple[float, float]:
    """Columns begin … end: write the rows' average to `mean` [size]; Σ‖x_i − x̄‖² and ‖x̄‖² of these columns."""
    apart, norm = 0.0, 0.0
    width = max(16, _BLOCK // len(rows))
    for low in range(begin, end, width):
        columns = rows[:, low : min(low + width, end)]
        average = torch.mean(columns, dim=0, out=mean[low : min(low + width, end)])
        apart += _squared(columns - average)
        norm += _squared(average)
    return apart, norm


def _squared(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dim=-1).cpu().double().square().sum())


def _one_by_one(rows: torch.Tensor, links: torch.Tensor) -> npt.NDArray[np.float64]:
    scratch = torch.empty_like(rows[0])
    found = np.empty(len(links))
    for position, (receiver, sender) in enumerate(links.tolist()):
        torch.sub(rows[receiver], rows[sender], out=scratch)
        found[position] = float(torch.dot(scratch, scratch))
    return found


def _by_gathers(rows: torch.Tensor, links: torch.Tensor) -> npt.NDArray[np.float64]:
    at_once = max(1, _BLOCK // rows.shape[1])
    pieces = [
        torch.linalg.vector_norm(rows[some[:, 0]] - rows[some[:, 1]], dim=1).double().square()
        for some in torch.split(links, at_once)
    ]
    return torch.cat(pieces).cpu().numpy() if pieces else np.empty(0)
