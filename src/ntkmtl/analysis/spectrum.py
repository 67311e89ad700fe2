r"""Spectra of kernels that are never in memory: eigenvalues, traces and densities from products.

The decay rates of Eq. 5 and 11 are eigenvalues of the NTK. Everything here reads a symmetric
positive semi-definite operator through ``operator @ vector`` alone, so a kernel of tens of
thousands of rows needs no more memory than a few vectors. A matrix is an operator too, which is
how small cases are checked.

The functions are pure: random vectors come from a seed of their own. Ranks and condition numbers of
spectra that are known are in :mod:`ntkmtl.analysis.kernels`; :class:`SpectralDensity` has the same
for estimated ones.

Example:
    >>> import torch
    >>> K = torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64))
    >>> [round(value, 6) for value in top_eigenvalues(K, 2).tolist()]
    [100.0, 99.0]
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from ntkmtl.analysis.kernels import FLOOR
from ntkmtl.errors import missing_extra
from ntkmtl.kernel import OutputNTKOperator

__all__ = [
    "Estimate",
    "SpectralDensity",
    "SymmetricOperator",
    "estimate_trace",
    "lanczos",
    "linear_operator",
    "spectral_density",
    "task_eigenvalues",
    "top_eigenvalues",
]

DENSE = 32
"""Rows up to which the matrix is built, one product per row: Lanczos needs room to work."""

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class SymmetricOperator(Protocol):
    """What the functions here read: a symmetric matrix, or anything that multiplies like one."""

    @property
    def shape(self) -> Any:
        """(R, R)."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of products."""

    @property
    def device(self) -> torch.device:
        """Device of products."""

    def __matmul__(self, vector: Tensor, /) -> Tensor:
        """Return the product with a vector of shape (R,)."""


class Estimate(NamedTuple):
    """A number estimated from random probes.

    Attributes:
        value: Mean over probes.
        standard_error: Standard deviation of that mean, NaN for one probe.
    """

    value: float
    standard_error: float


def _size(operator: SymmetricOperator) -> int:
    shape = tuple(operator.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(f"the operator must be square, of shape (R, R), found {shape}")
    return int(shape[0])


def _multiply(operator: SymmetricOperator) -> Callable[[Tensor], Tensor]:
    """Return the product for float64 vectors in main memory."""

    def multiply(vector: Tensor) -> Tensor:
        product = operator @ vector.to(device=operator.device, dtype=operator.dtype)
        return product.detach().to("cpu", torch.float64)

    return multiply


def _probe(size: int, generator: torch.Generator) -> Tensor:
    """Return a vector of random signs: of all probes with unit entries, least variance."""
    return torch.randint(0, 2, (size,), generator=generator).to(torch.float64) * 2 - 1


def linear_operator(operator: SymmetricOperator) -> Any:
    """Return the operator as a :class:`scipy.sparse.linalg.LinearOperator` of float64.

    Args:
        operator: A square matrix, or what multiplies by one.

    Raises:
        ValueError: It is not square.
        MissingExtraError: SciPy is not installed.

    Example:
        >>> import torch
        >>> linear_operator(torch.eye(2)).shape
        (2, 2)
    """
    return _linear(_size(operator), _multiply(operator))


def _linear(size: int, multiply: Callable[[Tensor], Tensor]) -> Any:
    try:
        from scipy.sparse.linalg import LinearOperator
    except ImportError as error:
        raise missing_extra("linear_operator", "bench", error) from error

    def product(vector: Any) -> Any:
        return multiply(torch.as_tensor(vector.reshape(-1).copy())).numpy()

    return LinearOperator((size, size), matvec=product, rmatvec=product, dtype="float64")


def top_eigenvalues(
    operator: SymmetricOperator,
    count: int = 1,
    *,
    which: Literal["largest", "smallest"] = "largest",
    tolerance: float | None = None,
    max_products: int = 1000,
    seed: int = 0,
) -> Tensor:
    """Return the largest (or smallest) eigenvalues, found by Lanczos with implicit restarts.

    ARPACK through ``scipy.sparse.linalg.eigsh``. Large eigenvalues of an NTK stand apart and take a
    few tens of products. Small ones lie close together: many products, and below rounding
    (about 1e-7 of the largest in float32) they mean nothing.

    Lanczos sees one vector of each eigenspace, and output kernels repeat eigenvalues: with respect
    to k linear heads that read the same features, each has k copies. So for ``count`` above 1 it
    searches again beside the eigenvectors that it has, until nothing turns up that belongs among
    them.

    Args:
        operator: Shape (R, R).
        count: How many, at most R.
        which: End of the spectrum.
        tolerance: Relative error allowed; 1e-10 for float64, 1e-5 for float32 if None.
        max_products: Products after which a search gives up.
        seed: Of the first vectors.

    Returns:
        float64 of shape (count,): the largest falling, or the smallest rising.

    Raises:
        ValueError: ``count`` is not in 1..R, or the operator is not square.
        RuntimeError: A search has not converged within ``max_products``.
        MissingExtraError: SciPy is not installed.

    Example:
        >>> import torch
        >>> top_eigenvalues(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
        tensor([3.], dtype=torch.float64)
        >>> K = torch.kron(torch.eye(20), torch.tensor([[2.0, 1.0], [1.0, 2.0]])).double()
        >>> [round(value, 6) for value in top_eigenvalues(K, 2).tolist()]
        [3.0, 3.0]
    """
    size = _size(operator)
    if not 1 <= count <= size:
        raise ValueError(f"count must be in 1..{size}, found {count}")
    if which not in ("largest", "smallest"):
        raise ValueError(f"which must be largest or smallest, found {which!r}")
    multiply = _multiply(operator)
    if size <= max(DENSE, 2 * count):
        dense = torch.stack([multiply(row) for row in torch.eye(size, dtype=torch.float64)])
        rising: Tensor = torch.linalg.eigvalsh((dense + dense.T) / 2)
        return rising.flip(0)[:count] if which == "largest" else rising[:count]
    if tolerance is None:
        tolerance = _TOLERANCE.get(operator.dtype, 1e-2)
    search = _Search(size, which, tolerance, max_products, seed)
    values, vectors = search(multiply, count)
    # A copy of a single value would change nothing.
    while count > 1:
        last = float(values[-1])
        extra, vector = search(_beside(multiply, vectors, search.beyond(values)), 1)
        if search.sign * (float(extra[0]) - last) <= 2 * tolerance * abs(last):
            break
        outermost_first = (search.sign * torch.cat([values, extra])).sort(descending=True).values
        values = search.sign * outermost_first[:count]
        vectors = torch.cat([vectors, vector], dim=1)
    return values


def _beside(
    multiply: Callable[[Tensor], Tensor], vectors: Tensor, shifted: float
) -> Callable[[Tensor], Tensor]:
    """Return the product of an operator that has other eigenvalues on the span of some vectors.

    Args:
        multiply: The operator's own product.
        vectors: Shape (R, m).
        shifted: What the eigenvalues on their span are.
    """
    basis: Tensor = torch.linalg.qr(vectors)[0]

    def product(vector: Tensor) -> Tensor:
        inside = basis @ (basis.T @ vector)
        outside = multiply(vector - inside)
        return outside - basis @ (basis.T @ outside) + shifted * inside

    return product


class _Search:
    """Searches for eigenvalues at one end of a spectrum, each from another first vector."""

    def __init__(
        self, size: int, which: str, tolerance: float, max_products: int, seed: int
    ) -> None:
        self.size, self.which = size, which
        self.tolerance, self.max_products = tolerance, max_products
        self.sign = 1.0 if which == "largest" else -1.0
        self.generator = torch.Generator().manual_seed(seed)

    def beyond(self, values: Tensor) -> float:
        """Return a number that is further from this end than values found here."""
        return float(values[-1]) - self.sign * (1.0 + float(values.abs().max()))

    def __call__(self, multiply: Callable[[Tensor], Tensor], count: int) -> tuple[Tensor, Tensor]:
        """Return values, the outermost first, and vectors, shape (R, count)."""
        try:
            from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigsh
        except ImportError as error:
            raise missing_extra("top_eigenvalues", "bench", error) from error
        start = torch.randn(self.size, generator=self.generator, dtype=torch.float64)
        # Vectors kept between restarts. SciPy's default of 20 costs 20 products at least; the
        # largest eigenvalues of an NTK stand far enough apart to be found with fewer. The smallest
        # do not.
        kept = min(self.size, max(2 * count + 6, 12 if self.which == "largest" else 40))
        try:
            values, vectors = eigsh(
                _linear(self.size, multiply),
                k=count,
                which="LA" if self.which == "largest" else "SA",
                v0=start.numpy(),
                ncv=kept,
                tol=self.tolerance,
                maxiter=max(1, self.max_products // max(1, kept - count)),
            )
        except ArpackNoConvergence as error:
            raise RuntimeError(
                f"{len(error.eigenvalues)} of {count} {self.which} eigenvalues converged to a "
                f"relative {self.tolerance:g} within {self.max_products} products; raise "
                "max_products or tolerance"
            ) from error
        except ArpackError as error:
            if "error -9:" not in str(error):
                raise
            # "Starting vector is zero": the product with a random vector is, so all eigenvalues
            # are.
            nothing = torch.zeros(count, dtype=torch.float64)
            return nothing, torch.eye(self.size, count, dtype=torch.float64)
        order = (self.sign * torch.as_tensor(values.copy())).argsort(descending=True)
        return torch.as_tensor(values.copy())[order], torch.as_tensor(vectors.copy())[:, order]


def task_eigenvalues(operator: OutputNTKOperator, count: int = 1, **options: Any) -> Tensor:
    """Return the largest eigenvalues of each task's own block K_ii (Eq. 8).

    Args:
        operator: Of k tasks.
        count: How many per task.
        **options: See :func:`top_eigenvalues`.

    Returns:
        float64 of shape (k, count), each row falling.

    Raises:
        ValueError: As :func:`top_eigenvalues`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> K = OutputNTKOperator(nn.Linear(1, 2, bias=False), x, task_dim=1)
        >>> task_eigenvalues(K)
        tensor([[5.],
                [5.]], dtype=torch.float64)
    """
    blocks = [operator.block(i) for i in range(operator.tasks)]
    return torch.stack([top_eigenvalues(block, count, **options) for block in blocks])


def estimate_trace(operator: SymmetricOperator, probes: int = 16, *, seed: int = 0) -> Estimate:
    """Return Hutchinson's estimate of the trace, one product per probe.

    The mean of z^T K z over vectors z of random signs. Its variance is twice the sum of the squared
    off-diagonal entries, over the number of probes.

    Args:
        operator: Shape (R, R).
        probes: Random vectors.
        seed: Of these.

    Raises:
        ValueError: ``probes`` is below 1, or the operator is not square.

    Example:
        >>> import torch
        >>> estimate_trace(torch.eye(4))
        Estimate(value=4.0, standard_error=0.0)
    """
    size = _size(operator)
    _require_positive(probes=probes)
    multiply = _multiply(operator)
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(probes):
        z = _probe(size, generator)
        values.append(z @ multiply(z))
    return _estimate(torch.stack(values))


def _estimate(values: Tensor) -> Estimate:
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), error)


def _require_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1. Found {name}={value}.")


def lanczos(operator: SymmetricOperator, start: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return the tridiagonal matrix of Lanczos, with full reorthogonalisation.

    Every new vector is made orthogonal to all before it, twice, which keeps copies of eigenvalues
    that have converged out of the matrix and costs memory for ``steps`` vectors.

    Args:
        operator: Shape (R, R).
        start: First vector, shape (R,), not zero.
        steps: At most so many products.

    Returns:
        The diagonal, float64 of shape (m,), and what stands beside it, shape (m - 1,). m is below
        ``steps`` where the vectors ran out: then the spectrum that ``start`` sees is exact.

    Raises:
        ValueError: ``start`` is zero or of the wrong shape, or ``steps`` is below 1.

    Example:
        >>> import torch
        >>> lanczos(torch.tensor([[2.0, 1.0], [1.0, 2.0]]), torch.tensor([1.0, 0.0]), 2)
        (tensor([2., 2.], dtype=torch.float64), tensor([1.], dtype=torch.float64))
    """
    size = _size(operator)
    _require_positive(steps=steps)
    if start.shape != (size,):
        raise ValueError(f"start must have shape ({size},), found {tuple(start.shape)}")
    vector = start.detach().to("cpu", torch.float64)
    norm = vector.norm()
    if not norm > 0:
        raise ValueError("start must not be zero")
    multiply = _multiply(operator)
    steps = min(steps, size)
    # Rows of a matrix that grows only as far as it is used.
    basis = torch.empty(steps, size, dtype=torch.float64)
    basis[0] = vector / norm
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    rounding = 10 * torch.finfo(operator.dtype).eps
    scale = 0.0
    for j in range(steps):
        product = multiply(basis[j])
        scale = max(scale, float(product.norm()))
        diagonal.append(basis[j] @ product)
        before = basis[: j + 1]
        rest = product - before.T @ (before @ product)
        rest = rest - before.T @ (before @ rest)
        size_of_rest = rest.norm()
        if j + 1 == steps or float(size_of_rest) <= rounding * scale:
            break
        beside.append(size_of_rest)
        basis[j + 1] = rest / size_of_rest
    off = torch.stack(beside) if beside else torch.empty(0, dtype=torch.float64)
    return torch.stack(diagonal), off


@dataclass(frozen=True)
class SpectralDensity:
    """The distribution of eigenvalues, as estimated by stochastic Lanczos quadrature.

    A sum over probes and steps: share ``weights[p, s]`` of the R eigenvalues at ``nodes[p, s]``.

    Attributes:
        nodes: Places, float64 of shape (probes, steps).
        weights: Shares, same shape; each row sums to 1.
        size: Number of eigenvalues R.
    """

    nodes: Tensor
    weights: Tensor
    size: int

    def _mean(self, values: Tensor) -> Estimate:
        """R times the mean of a function of the eigenvalues: a sum over them."""
        return _estimate(self.size * (self.weights * values).sum(dim=1))

    def moment(self, order: int) -> Estimate:
        """Estimate the sum of a power of the eigenvalues: order 1 is the trace.

        Exact for each probe up to order 2 steps - 1; what is left is the probes' own spread.

        Args:
            order: Power, not negative.

        Raises:
            ValueError: ``order`` is negative.
        """
        if order < 0:
            raise ValueError(f"order must not be negative. Found order={order}.")
        return self._mean(self.nodes**order)

    def count_above(self, threshold: float) -> Estimate:
        """Estimate how many eigenvalues are above a threshold."""
        return self._mean((self.nodes > threshold).to(torch.float64))

    def density(self, grid: Tensor, width: float, *, log: bool = False) -> Tensor:
        """Return the density on a grid, each node a normal distribution.

        Args:
            grid: Where, shape (m,).
            width: Standard deviation of each node's distribution.
            log: Density over log10 of the eigenvalue: ``grid`` and ``width`` are in powers of 10,
                and nodes that are not positive are left out.

        Returns:
            float64 of shape (m,). Integrates to 1 over a grid that covers it, with ``log`` to the
            share of positive nodes.

        Raises:
            ValueError: ``width`` is not positive.
        """
        if not width > 0:
            raise ValueError(f"width must be positive. Found width={width}.")
        nodes, weights = self.nodes.reshape(-1), self.weights.reshape(-1) / len(self.nodes)
        if log:
            nodes, weights = nodes[nodes > 0].log10(), weights[nodes > 0]
        away = (grid.to(torch.float64)[:, None] - nodes) / width
        heights: Tensor = torch.exp(-away.square() / 2) @ weights
        scaled: Tensor = heights / (width * (2 * math.pi) ** 0.5)
        return scaled

    def effective_rank(self) -> float:
        """Estimate the exponential of the entropy of the spectrum.

        See :func:`ntkmtl.analysis.effective_rank`. 0 where all eigenvalues vanish.
        """
        total = self.moment(1).value
        if total <= 0:
            return 0.0
        shares = self.nodes.clamp_min(0.0) / total
        return math.exp(self._mean(torch.special.entr(shares)).value)

    def participation_ratio(self) -> float:
        """Estimate (sum of eigenvalues)^2 / (sum of squares); 0 where all vanish."""
        squares = self.moment(2).value
        return self.moment(1).value ** 2 / squares if squares > 0 else 0.0

    def condition_number(self, floor: float = FLOOR) -> float:
        """Return the largest node over the smallest one above ``floor`` times the largest.

        An estimate of that of the eigenvalues above the floor, and on either side of it: nodes lie
        between the smallest and the largest of all eigenvalues, so one may stand in the gap below
        the smallest that counts. NaN where all vanish.

        Args:
            floor: In [0, 1).

        Raises:
            ValueError: ``floor`` is out of range.
        """
        if not 0 <= floor < 1:
            raise ValueError(f"floor must be in [0, 1). Found floor={floor}.")
        nodes = self.nodes[self.weights > 0]
        largest = float(nodes.max())
        if largest <= 0:
            return math.nan
        return largest / float(nodes[nodes > floor * largest].min())


def spectral_density(
    operator: SymmetricOperator, *, steps: int = 30, probes: int = 8, seed: int = 0
) -> SpectralDensity:
    """Estimate the distribution of eigenvalues by stochastic Lanczos quadrature.

    Each probe, a vector of random signs, is the start of :func:`lanczos`: the eigenvalues of its
    tridiagonal matrix and the squared first entries of its eigenvectors are the nodes and weights
    of Gauss quadrature for the spectrum as the probe sees it. ``steps * probes`` products.

    Args:
        operator: Shape (R, R).
        steps: Nodes per probe, at most R.
        probes: Random vectors.
        seed: Of these.

    Raises:
        ValueError: A number is below 1, or the operator is not square.

    Example:
        >>> import torch
        >>> K = 2 * torch.eye(5, dtype=torch.float64)
        >>> found = spectral_density(K, steps=3, probes=2)
        >>> round(found.moment(1).value, 6), round(found.effective_rank(), 6)
        (10.0, 5.0)
    """
    size = _size(operator)
    _require_positive(steps=steps, probes=probes)
    generator = torch.Generator().manual_seed(seed)
    nodes = torch.zeros(probes, min(steps, size), dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for p in range(probes):
        diagonal, beside = lanczos(operator, _probe(size, generator), steps)
        tridiagonal = torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1)
        values, vectors = torch.linalg.eigh(tridiagonal)
        # Where Lanczos ended early, the rest has weight 0.
        nodes[p, : len(values)] = values
        weights[p, : len(values)] = vectors[0].square()
    used = int((weights.sum(0) > 0).sum())
    return SpectralDensity(nodes[:, :used], weights[:, :used], size)
