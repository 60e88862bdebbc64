"""Mixing of all peers' vectors at once: the rows of one array, by the weights that live peers use.

A row of the result is the sum of few rows: a sparse product, computed for blocks of rows that stay in the cache. Where
every peer hears most others, the product is dense for a block of rows at a time, never as a whole.
"""

from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from p2pfl.graphs.mixing import mixing_csr
from p2pfl.graphs.topology import Topology

_BLOCK = 1 << 18  # elements of a block of rows
_GATHERED = 1 << 16  # elements of rows that are gathered for their distances: twice so many stay in the cache
_DENSE = 0.2  # share of weights that are not 0, above which a dense product is faster: it does 70 GFLOP/s a core
_LONG = 1 << 13  # elements of a row from which a call of torch costs little beside the work on a row


class Centered(NamedTuple):
    """Rows less their mean, and the squared norm of each."""

    rows: torch.Tensor  # [nodes, size]
    squares: torch.Tensor  # [nodes] float64


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
        self._nodes: int = weights.shape[0]
        self._height = min(64, max(8, self._nodes // 8))  # few rows do not pay the reading of all others
        self._weights = weights.astype(np.float32 if dtype == torch.float32 else np.float64)
        self._dense = dense
        self._links = torch.from_numpy(np.array(links, dtype=np.int64).reshape(-1, 2))  # by receiver
        self._starts = np.searchsorted(self._links[:, 0].numpy(), np.arange(weights.shape[0] + 1))

    def mix(self, rows: torch.Tensor, out: torch.Tensor, begin: int, end: int) -> None:
        """Write rows begin … end of the product of the weights with `rows` [nodes, size] to `out` [nodes, size].

        Of `whole_blocks`, a row has the same bits however all rows are divided.
        """
        if rows.device.type != "cpu":
            self._mix_on_device(rows, out)
            return
        height = self._height if self._dense else max(1, _BLOCK // rows.shape[1])
        values = rows.numpy()
        for low in range(begin, end, height):
            high = min(low + height, end)
            some: csr_array = self._weights[low:high]
            if self._dense:
                weights = torch.from_numpy(some.toarray()).clone()  # numpy aligns less, and bits may hang on that
                torch.mm(weights, rows, out=out[low:high])
            else:
                out[low:high] = torch.from_numpy(some @ values)

    def whole_blocks(self, begin: int, end: int) -> tuple[int, int]:
        """The rows of the blocks that begin from `begin` up to `end`: of a dense product, a block is one call."""
        if not self._dense:
            return begin, end
        first, last = (min(-(-at // self._height) * self._height, self._nodes) for at in (begin, end))
        return first, last

    def centered(self, rows: torch.Tensor) -> Centered | None:
        """What `distances` of any rows of a dense mixing need, worked out once; None where they do not."""
        if not self._dense:
            return None
        centered = rows - rows.mean(dim=0)
        return Centered(centered, torch.linalg.vector_norm(centered, dim=1).double().square())

    def distances(
        self, rows: torch.Tensor, begin: int, end: int, centered: Centered | None = None
    ) -> npt.NDArray[np.float64]:
        """[end − begin] mean squared distance of each row to those it hears; NaN where it hears none.

        Args:
            centered: of these rows, where they are asked for in pieces.
        """
        links = self._links[self._starts[begin] : self._starts[end]].to(rows.device)
        if self._dense:
            squares = self._by_products(centered or self.centered(rows), links, begin, end)
        elif rows.shape[1] >= _LONG and rows.device.type == "cpu":
            squares = _one_by_one(rows, links)
        else:
            squares = _by_gathers(rows, links)
        receivers = links[:, 0].cpu().numpy() - begin
        heard = np.bincount(receivers, minlength=end - begin).astype(np.float64)
        heard[heard == 0] = np.nan
        mean: npt.NDArray[np.float64] = np.bincount(receivers, weights=squares, minlength=end - begin) / heard
        return mean

    def _by_products(
        self, centered: Centered | None, links: torch.Tensor, begin: int, end: int
    ) -> npt.NDArray[np.float64]:
        """‖x − y‖² = ‖x‖² + ‖y‖² − 2 x·y, about the mean: near consensus nothing is left of these else."""
        assert centered is not None  # the mixing is dense
        rows, squares = centered
        blocks = [
            torch.mm(rows[low : min(low + self._height, end)], rows.t()) for low in range(begin, end, self._height)
        ]
        products = torch.cat(blocks).double()
        pairs = squares[links[:, 0]] + squares[links[:, 1]] - 2 * products[links[:, 0] - begin, links[:, 1]]
        return pairs.clamp_(min=0).cpu().numpy()

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


def column_width(rows: int) -> int:
    """Columns of so many rows that are averaged together; the bits of an average are those of its block of columns."""
    return max(16, _BLOCK // rows)


def level(rows: torch.Tensor, begin: int, end: int) -> None:
    """Write the rows' average to every row, in columns begin … end; see `spread`."""
    width = column_width(len(rows))
    for low in range(begin, end, width):
        columns = rows[:, low : min(low + width, end)]
        columns[:] = columns.mean(dim=0)


def spread(rows: torch.Tensor, mean: torch.Tensor, begin: int, end: int) -> tuple[float, float]:
    """Columns begin … end: write the rows' average to `mean` [size]; Σ‖x_i − x̄‖² and ‖x̄‖² of these columns.

    Where `begin` is a multiple of `column_width`, the average has the same bits however the columns are divided.
    """
    apart, norm = 0.0, 0.0
    width = column_width(len(rows))
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
    at_once = min(max(1, _GATHERED // rows.shape[1]), max(1, len(links)))
    ones, others = (torch.empty(at_once, rows.shape[1], dtype=rows.dtype, device=rows.device) for _ in range(2))
    found = torch.empty(len(links), dtype=rows.dtype, device=rows.device)
    receivers, senders = links.t().contiguous()
    for low in range(0, len(links), at_once):
        high = min(low + at_once, len(links))
        apart = torch.index_select(rows, 0, receivers[low:high], out=ones[: high - low])
        apart.sub_(torch.index_select(rows, 0, senders[low:high], out=others[: high - low]))
        torch.linalg.vector_norm(apart, dim=1, out=found[low:high])
    return found.double().square().cpu().numpy()
