"""What a mixing matrix does in the long run, from its eigenvalues and singular values.

A matrix may be dense or CSR, and its rows sum to 1. One that looks the same from every node (rings, tori, hypercubes,
exponential graphs) has its eigenvalues in a Fourier transform of one row, whatever its size. Any other is made dense up
to `SYMMETRIC_NODES` or `DENSE_NODES`; beyond, sparse solvers find the extreme values alone.
"""

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs, eigsh

from p2pfl.errors import TopologyError
from p2pfl.graphs.topology import Ints

Dense: TypeAlias = npt.NDArray[np.float64]
Matrix: TypeAlias = Dense | csr_array  # [nodes, nodes]
Eigenvalues: TypeAlias = Dense | npt.NDArray[np.complex128]  # [nodes]

SYMMETRIC_NODES = 4096  # all eigenvalues of a symmetric matrix up to here: 4 s
DENSE_NODES = 1024  # the same, and matrix equations, for any other matrix: a second or two
NOTHING = 1e-12  # what rounding leaves of 0: below it a product of mixing matrices is the exact average
_SUMS = 1e-9  # how far rows and columns may be from 1
_ONE = 1e-9  # of the largest: eigenvalues closer than this are one
_SAME = 1e-14  # relative, between weights that rounding alone sets apart


def is_doubly_stochastic(matrix: Matrix) -> bool:
    """Whether rows and columns sum to 1 to 1e-9: only then every node counts the same in the network's average."""
    sums = np.concatenate([np.asarray(matrix.sum(axis=axis)).ravel() for axis in (0, 1)])
    return bool(np.abs(sums - 1).max() <= _SUMS)


def is_symmetric(matrix: Matrix) -> bool:
    """Whether it equals its transpose to the last digits."""
    return _largest(matrix - matrix.T) <= _SAME


def is_normal(matrix: Matrix) -> bool:
    """Whether it commutes with its transpose, so that singular values are absolute eigenvalues."""
    return _largest(matrix @ matrix.T - matrix.T @ matrix) <= NOTHING


def spectrum(matrix: Matrix) -> Eigenvalues:
    """All eigenvalues, the largest first; by absolute value where they are complex. To 1e-13 for normal matrices.

    Takes any square matrix, a Laplacian too. Without the Fourier transform it takes nodes² memory and nodes³ time.
    """
    return _ordered(matrix, _by_translation(matrix))


def whole_spectrum(matrix: Matrix) -> Eigenvalues | None:
    """As `spectrum`, None where that takes more than seconds."""
    transformed = _by_translation(matrix)
    return None if transformed is None and matrix.shape[0] > _dense_up_to(matrix) else _ordered(matrix, transformed)


def _ordered(matrix: Matrix, transformed: npt.NDArray[np.complex128] | None) -> Eigenvalues:
    if transformed is None:
        if is_symmetric(matrix):
            return np.asarray(np.linalg.eigvalsh(_dense(matrix))[::-1])
        transformed = np.linalg.eigvals(_dense(matrix)).astype(np.complex128)
    if np.abs(transformed.imag).max(initial=0) <= NOTHING and is_symmetric(matrix):
        return np.asarray(np.sort(transformed.real)[::-1])
    return np.asarray(transformed[np.lexsort((transformed.imag, transformed.real, -np.abs(transformed).round(12)))])


def spectral_gap(matrix: Matrix, rounds: int = 1) -> float:
    """1 minus the second largest |eigenvalue|: 1 is consensus in one round, 0 is never.

    Exact up to `SYMMETRIC_NODES` (`DENSE_NODES` if not symmetric), and by Fourier transform; else to 1e-8.

    Args:
        matrix: of one round, or the product of several.
        rounds: how many rounds the matrix stands for; the gap is that of a round among them.

    Raises:
        TopologyError: too large, and the sparse solver does not find the eigenvalue.
    """
    if matrix.shape[0] == 1:
        return 1.0
    if _by_translation(matrix) is not None or matrix.shape[0] <= _dense_up_to(matrix):
        return _gap(float(np.abs(beside_consensus(spectrum(matrix))).max()), rounds)
    if is_symmetric(matrix):
        return _gap(_extreme(matrix), rounds)
    rest = LinearOperator(matrix.shape, matvec=lambda x: matrix @ x - x.mean(), dtype=np.float64)
    try:
        found = eigs(rest, k=1, which="LM", v0=_start(matrix), return_eigenvectors=False)
    except ArpackNoConvergence as error:
        raise TopologyError(_not_found(matrix)) from error
    return _gap(float(np.abs(found).max()), rounds)


def singular_gap(matrix: Matrix, rounds: int = 1) -> float:
    """1 − ‖W − J‖₂^(1/rounds), J the exact average: what a round takes off the distance to it, at the least.

    Below the gap by eigenvalues where the matrix is not normal; negative where a round can take models further from
    the plain average, as weights do that are not doubly stochastic. As exact as `spectral_gap`.

    Args:
        matrix: of one round, or the product of several.
        rounds: how many rounds the matrix stands for.

    Raises:
        TopologyError: too large, and the sparse solver does not find the value.
    """
    nodes = matrix.shape[0]
    if nodes == 1:
        return 1.0
    # Symmetric and transformed ones are normal; asking a large dense matrix would cost as much as the answer.
    if is_doubly_stochastic(matrix) and (_by_translation(matrix) is not None or is_symmetric(matrix)):
        return spectral_gap(matrix, rounds)
    if nodes <= DENSE_NODES:
        return _gap(float(np.linalg.norm(_dense(matrix) - 1 / nodes, 2)), rounds)

    def squared(x: Dense) -> Dense:
        forward = matrix @ x - x.mean()
        return np.asarray(matrix.T @ forward - forward.mean())

    operator = LinearOperator(matrix.shape, matvec=squared, dtype=np.float64)
    try:
        found = eigsh(operator, k=1, which="LM", v0=_start(matrix), return_eigenvectors=False)
    except ArpackNoConvergence as error:
        raise TopologyError(_not_found(matrix)) from error
    return _gap(math.sqrt(max(float(found[0]), 0.0)), rounds)


def effective_neighbors(matrix: Matrix, gamma: float) -> float:
    """How many peers' noise each model effectively averages: n_W(γ), from 1 (alone) to the number of nodes (complete).

    Exact, for normal matrices; `noise.effective_neighbors_over` takes any other, and several in turn.

    Args:
        matrix: normal; [nodes, nodes].
        gamma: how much of a difference outlives a step of learning, below 1; a higher learning rate is a lower gamma.

    Source: Vogels, Hendrikx and Jaggi, "Beyond spectral gap: the role of the topology in decentralized learning",
    2022, section 3.
    """
    return effective_neighbors_of(spectrum(matrix), gamma)


def effective_neighbors_of(eigenvalues: Eigenvalues, gamma: float) -> float:
    """As `effective_neighbors`, from all eigenvalues."""
    squares = np.abs(eigenvalues) ** 2
    return float(1 / (1 - gamma) / np.mean(squares / (1 - gamma * squares)))


def noise_floor_of(eigenvalues: Eigenvalues) -> float:
    """The consensus distance that unit noise at every node and round keeps up: (1/n) Σ_{i≥2} |λ_i|²/(1−|λ_i|²).

    The stationary variance about the mean of x ← W(x + noise). Exact, for normal doubly stochastic matrices.

    Args:
        eigenvalues: all of them, as `spectrum` gives them. Infinite where a second one has absolute value 1.
    """
    squares = np.abs(beside_consensus(eigenvalues)) ** 2
    if squares.max(initial=0) > 1 - NOTHING:
        return math.inf
    return float(np.sum(squares / (1 - squares)) / len(eigenvalues))


def gap_of(eigenvalues: Eigenvalues) -> float:
    """As `spectral_gap` of one round, from all eigenvalues."""
    return 1 - float(np.abs(beside_consensus(eigenvalues)).max(initial=0))


def distinct_values(eigenvalues: Dense) -> list[float]:
    """The different ones among ascending eigenvalues; those closer than 1e-9 of the largest are one, at their mean."""
    apart = np.diff(eigenvalues) > _ONE * eigenvalues[-1]
    return [float(np.mean(same)) for same in np.split(eigenvalues, np.flatnonzero(apart) + 1)]


def beside_consensus(eigenvalues: Eigenvalues) -> Eigenvalues:
    """All eigenvalues but the one that keeps the average, which is 1."""
    others = np.ones(len(eigenvalues), dtype=np.bool_)
    others[np.argmin(np.abs(eigenvalues - 1))] = False
    return eigenvalues[others]


def has_whole_spectrum(matrix: Matrix) -> bool:
    """Whether `spectrum` finds all eigenvalues within seconds."""
    return _by_translation(matrix) is not None or matrix.shape[0] <= _dense_up_to(matrix)


def looks_the_same_everywhere(matrix: Matrix) -> bool:
    """Whether every node sees what node 0 sees: nodes in a circle, a torus or a hypercube, linked by distance alone."""
    return _by_translation(matrix) is not None


def _gap(radius: float, rounds: int) -> float:
    # A root would make much of what rounding left of nothing: 1e-16 over 6 rounds is .002 a round.
    return 1.0 if radius < NOTHING and rounds > 1 else float(1 - radius ** (1 / rounds))


def _by_translation(matrix: Matrix) -> npt.NDArray[np.complex128] | None:
    """The eigenvalues, if what a node gives another depends only on the way between them; else None.

    Tried are nodes in a circle, in rows and columns that close into circles, and as corners of a hypercube.
    """
    nodes = matrix.shape[0]
    sparse = csr_array(matrix)
    if (sparse.data == 0).any():
        sparse = csr_array(matrix, copy=True)
        sparse.eliminate_zeros()
    if not sparse.has_sorted_indices:
        sparse = sparse.sorted_indices()
    entries = np.diff(sparse.indptr)
    if entries.min() != entries.max():
        return None
    each = int(entries[0])
    columns, values = sparse.indices.reshape(nodes, each), sparse.data.reshape(nodes, each)
    few = np.unique([0, 1 % nodes, nodes // 5, nodes // 3, nodes // 2, nodes - 1])  # nearly all shapes fail with these
    for shape in _shapes(nodes):
        if not _translated(columns[few], values[few], few, shape):
            continue
        first = np.unravel_index(columns[0], shape)
        kernel = np.zeros(shape)
        kernel[first] = values[0]
        here = np.unravel_index(np.repeat(np.arange(nodes), each), shape)
        way = tuple(
            (a - b) % size for a, b, size in zip(np.unravel_index(sparse.indices, shape), here, shape, strict=True)
        )
        if np.allclose(kernel[way], sparse.data, rtol=_SAME, atol=_SAME):
            # A row of W times a wave: the inverse direction of the transform, which for real weights is its conjugate.
            return np.asarray(np.fft.fftn(kernel).conj().ravel())
    return None


def _translated(columns: Ints, values: Dense, rows: Ints, shape: tuple[int, ...]) -> bool:
    """Whether these rows hold the same values at the same ways from themselves; columns and values are [rows, each]."""
    pairs = zip(np.unravel_index(columns, shape), np.unravel_index(rows, shape), shape, strict=True)
    ways = np.ravel_multi_index(tuple((there - here[:, np.newaxis]) % size for there, here, size in pairs), shape)
    order = np.argsort(ways, axis=1)
    ways, values = np.take_along_axis(ways, order, axis=1), np.take_along_axis(values, order, axis=1)
    return bool((ways == ways[0]).all() and np.allclose(values, values[0], rtol=_SAME, atol=_SAME))


def _shapes(nodes: int) -> Iterator[tuple[int, ...]]:
    yield (nodes,)
    for rows in range(2, nodes // 2 + 1):
        if nodes % rows == 0:
            yield rows, nodes // rows
    if nodes > 4 and nodes & (nodes - 1) == 0:
        yield (2,) * (nodes.bit_length() - 1)


def _extreme(matrix: Matrix) -> float:
    """The second largest |eigenvalue| of a symmetric matrix of many nodes."""
    rest = LinearOperator(matrix.shape, matvec=lambda x: matrix @ x - x.mean(), dtype=np.float64)
    try:
        found = eigsh(rest, k=1, ncv=40, maxiter=100, which="LM", v0=_start(matrix), return_eigenvectors=False)
        return abs(float(found[0]))
    except ArpackNoConvergence:
        # Eigenvalues as dense about 1 as those of a long chain: turn them inside out around a point just outside.
        shifted = csr_array(matrix)
        try:
            near = float(_nearest(shifted, 1).min())
            lowest = float((shifted.diagonal() + abs(shifted.diagonal()) - abs(shifted).sum(axis=1)).min())
            # The rows bound the other end (Gershgorin); mostly that is enough, and the end itself is dense too.
            return max(near, -float(_nearest(shifted, -1).min())) if -lowest > near else near
        except (ArpackNoConvergence, RuntimeError) as error:
            raise TopologyError(_not_found(matrix)) from error


def _nearest(matrix: csr_array, end: int) -> Dense:
    """The two eigenvalues of a symmetric matrix nearest to 1 or −1."""
    found: Dense = eigsh(matrix, k=2, sigma=end * (1 + 1e-9), v0=_start(matrix), return_eigenvectors=False)
    return found


def _start(matrix: Matrix) -> Dense:
    """Where a sparse solver begins: always the same, so that its answer is."""
    return np.random.default_rng(0).standard_normal((matrix.shape[0],))


def _dense_up_to(matrix: Matrix) -> int:
    return SYMMETRIC_NODES if is_symmetric(matrix) else DENSE_NODES


def _not_found(matrix: Matrix) -> str:
    return (
        f"the gap of {matrix.shape[0]} nodes was not found by the sparse solver: take at most {SYMMETRIC_NODES} nodes"
    )


def _dense(matrix: Matrix) -> Dense:
    dense: Dense = matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
    return dense


def _largest(matrix: Matrix) -> float:
    return float(abs(matrix).max()) if min(matrix.shape) else 0.0
