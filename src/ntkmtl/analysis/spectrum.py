r"""Matrix-free spectra of kernels: eigenvalues, traces and densities from products with vectors.

The decay rates of Eq. 5 and 11 are eigenvalues of the NTK. All functions here use a symmetric
positive semi-definite operator only by ``operator @ vector``, so a kernel with tens of thousands of
rows needs the memory of a few vectors. A matrix is an operator too.

Random vectors depend on a ``seed`` argument, not on the global random state. Ranks and condition
numbers of known spectra are in :mod:`ntkmtl.analysis.kernels`, those of estimated spectra in
:class:`SpectralDensity`.

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
"""Up to this number of rows the matrix is built, as Lanczos does not work on small matrices."""

_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


class SymmetricOperator(Protocol):
    """Protocol of a symmetric operator: a matrix, or any object that multiplies vectors."""

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
        standard_error: Standard error of the mean, NaN for one probe.
    """

    value: float
    standard_error: float


def _size(operator: SymmetricOperator) -> int:
    shape = tuple(operator.shape)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(f"the operator must be square, of shape (R, R), found {shape}")
    return int(shape[0])


def _multiply(operator: SymmetricOperator) -> Callable[[Tensor], Tensor]:
    """Return the product as a function of float64 vectors on the CPU."""

    def multiply(vector: Tensor) -> Tensor:
        product = operator @ vector.to(device=operator.device, dtype=operator.dtype)
        return product.detach().to("cpu", torch.float64)

    return multiply


def _probe(size: int, generator: torch.Generator) -> Tensor:
    """Return a vector of random signs, the probe with the least variance."""
    return torch.randint(0, 2, (size,), generator=generator).to(torch.float64) * 2 - 1


def linear_operator(operator: SymmetricOperator) -> Any:
    """Return the operator as a :class:`scipy.sparse.linalg.LinearOperator` of float64.

    Args:
        operator: A square matrix, or what multiplies by one.

    Raises:
        ValueError: The operator is not square.
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
    """Return the largest (or smallest) eigenvalues, computed by Lanczos with implicit restarts.

    Uses ARPACK through ``scipy.sparse.linalg.eigsh``. Large eigenvalues of an NTK are well
    separated and take a few tens of products. Small ones lie close together, take many products,
    and are meaningless below rounding errors (in float32 about 1e-7 of the largest).

    Lanczos finds one vector of each eigenspace. But kernels of outputs have repeated eigenvalues:
    with k linear heads on the same features, each eigenvalue occurs k times. So for ``count`` above
    1 the search is repeated with the known eigenvectors deflated, until it finds no further
    eigenvalue among the largest ``count``.

    Args:
        operator: Shape (R, R).
        count: Number of eigenvalues, at most R.
        which: End of the spectrum.
        tolerance: Allowed relative error; None for 1e-10 in float64 and 1e-5 in float32.
        max_products: Number of products after which a search fails.
        seed: Seed of the start vectors.

    Returns:
        float64 of shape (count,): the largest in descending, or the smallest in ascending order.

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
    # With count = 1 a repeated eigenvalue would not change the result.
    while count > 1:
        last = float(values[-1])
        extra, vector = search(_deflated(multiply, vectors, search.beyond(values)), 1)
        if search.sign * (float(extra[0]) - last) <= 2 * tolerance * abs(last):
            break
        outermost_first = (search.sign * torch.cat([values, extra])).sort(descending=True).values
        values = search.sign * outermost_first[:count]
        vectors = torch.cat([vectors, vector], dim=1)
    return values


def _deflated(
    multiply: Callable[[Tensor], Tensor], vectors: Tensor, shifted: float
) -> Callable[[Tensor], Tensor]:
    """Return the product of the operator deflated by some vectors.

    Args:
        multiply: The operator's product.
        vectors: Eigenvectors as columns, shape (R, m).
        shifted: The eigenvalue that the deflated operator has on their span.
    """
    basis: Tensor = torch.linalg.qr(vectors)[0]

    def product(vector: Tensor) -> Tensor:
        inside = basis @ (basis.T @ vector)
        outside = multiply(vector - inside)
        return outside - basis @ (basis.T @ outside) + shifted * inside

    return product


class _Search:
    """Searches for eigenvalues at one end of a spectrum, each time from a new start vector."""

    def __init__(
        self, size: int, which: str, tolerance: float, max_products: int, seed: int
    ) -> None:
        self.size, self.which = size, which
        self.tolerance, self.max_products = tolerance, max_products
        self.sign = 1.0 if which == "largest" else -1.0
        self.generator = torch.Generator().manual_seed(seed)

    def beyond(self, values: Tensor) -> float:
        """Return a number that lies further inside the spectrum than the given values."""
        return float(values[-1]) - self.sign * (1.0 + float(values.abs().max()))

    def __call__(self, multiply: Callable[[Tensor], Tensor], count: int) -> tuple[Tensor, Tensor]:
        """Return eigenvalues, the outermost first, and eigenvectors of shape (R, count)."""
        try:
            from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigsh
        except ImportError as error:
            raise missing_extra("top_eigenvalues", "bench", error) from error
        start = torch.randn(self.size, generator=self.generator, dtype=torch.float64)
        # Vectors kept between restarts. SciPy's default of 20 costs at least 20 products. Fewer
        # suffice for the largest eigenvalues of an NTK, which are well separated; the smallest are
        # not.
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
            # "Starting vector is zero": the product with a random vector is zero, and so are all
            # eigenvalues.
            nothing = torch.zeros(count, dtype=torch.float64)
            return nothing, torch.eye(self.size, count, dtype=torch.float64)
        order = (self.sign * torch.as_tensor(values.copy())).argsort(descending=True)
        return torch.as_tensor(values.copy())[order], torch.as_tensor(vectors.copy())[:, order]


def task_eigenvalues(operator: OutputNTKOperator, count: int = 1, **options: Any) -> Tensor:
    """Return the largest eigenvalues of each task's block K_ii (Eq. 8).

    Args:
        operator: The output kernel of k tasks.
        count: Number of eigenvalues per task.
        **options: See :func:`top_eigenvalues`.

    Returns:
        float64 of shape (k, count), each row in descending order.

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

    The estimate is the mean of z^T K z over random sign vectors z. Its variance is twice the sum of
    the squared off-diagonal entries, divided by the number of probes.

    Args:
        operator: Shape (R, R).
        probes: Number of random vectors.
        seed: Seed of the random vectors.

    Returns:
        The mean and its standard error.

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
    """Return the tridiagonal matrix of Lanczos with full reorthogonalization.

    Each new vector is orthogonalized twice against all earlier ones. This prevents spurious copies
    of converged eigenvalues, and needs memory for ``steps`` vectors.

    Args:
        operator: Shape (R, R).
        start: Start vector, shape (R,), not zero.
        steps: Maximal number of products.

    Returns:
        The diagonal, float64 of shape (m,), and the off-diagonal, shape (m - 1,). m is smaller than
        ``steps`` if the vectors span an invariant subspace; then its eigenvalues are exact.

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
    # torch.empty: the system allocates memory only for the rows that are written.
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
    """The distribution of eigenvalues, estimated by stochastic Lanczos quadrature.

    Each probe p estimates that a share ``weights[p, s]`` of the R eigenvalues lies at
    ``nodes[p, s]``.

    Attributes:
        nodes: Positions on the axis of eigenvalues, float64 of shape (probes, steps).
        weights: Shares, same shape; each row sums to 1.
        size: Number of eigenvalues R.
    """

    nodes: Tensor
    weights: Tensor
    size: int

    def _mean(self, values: Tensor) -> Estimate:
        """Estimate the sum of a function over all R eigenvalues."""
        return _estimate(self.size * (self.weights * values).sum(dim=1))

    def moment(self, order: int) -> Estimate:
        """Return an estimate of the sum of a power of the eigenvalues; order 1 gives the trace.

        Up to order 2 steps - 1 the only error is the randomness of the probes.

        Args:
            order: The power, not negative.

        Raises:
            ValueError: ``order`` is negative.
        """
        if order < 0:
            raise ValueError(f"order must not be negative. Found order={order}.")
        return self._mean(self.nodes**order)

    def count_above(self, threshold: float) -> Estimate:
        """Return an estimate of the number of eigenvalues above ``threshold``."""
        return self._mean((self.nodes > threshold).to(torch.float64))

    def density(self, grid: Tensor, width: float, *, log: bool = False) -> Tensor:
        """Return the density on a grid, smoothed by a normal distribution around each node.

        Args:
            grid: Points of the grid, shape (m,).
            width: Standard deviation of the normal distributions.
            log: Return the density over log10 of the eigenvalue. ``grid`` and ``width`` are then
                in powers of 10, and nodes that are not positive are left out.

        Returns:
            float64 of shape (m,). Its integral is 1, with ``log`` the share of positive nodes.

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
        """Return an estimate of the exponential of the entropy of the spectrum.

        See :func:`ntkmtl.analysis.effective_rank`. 0 if all eigenvalues are zero.
        """
        total = self.moment(1).value
        if total <= 0:
            return 0.0
        shares = self.nodes.clamp_min(0.0) / total
        return math.exp(self._mean(torch.special.entr(shares)).value)

    def participation_ratio(self) -> float:
        """Return an estimate of (sum of eigenvalues)^2 / (sum of squares); 0 if all are zero."""
        squares = self.moment(2).value
        return self.moment(1).value ** 2 / squares if squares > 0 else 0.0

    def condition_number(self, floor: float = FLOOR) -> float:
        """Return the largest node divided by the smallest node above ``floor`` times the largest.

        This estimates the condition number of the eigenvalues above the floor. It may be too small
        or too large, as a node may lie in a gap between eigenvalues. NaN if all are zero.

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

    Each probe, a vector of random signs, is the start vector of :func:`lanczos`. The eigenvalues of
    the tridiagonal matrix are the nodes of a Gauss quadrature, the squared first entries of its
    eigenvectors the weights. Takes ``steps * probes`` products.

    Args:
        operator: Shape (R, R).
        steps: Number of nodes per probe, at most R.
        probes: Number of random vectors.
        seed: Seed of the random vectors.

    Returns:
        Nodes and weights of all probes.

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
        # If Lanczos ended early, the remaining nodes have weight 0.
        nodes[p, : len(values)] = values
        weights[p, : len(values)] = vectors[0].square()
    used = int((weights.sum(0) > 0).sum())
    return SpectralDensity(nodes[:, :used], weights[:, :used], size)
