r"""The kernel of residuals: how fast each condition of a physics-informed network is learned.

Let :math:`r_i(x_s)` be the residuals of condition i at its points. The kernel is
:math:`K_{ii}[s, t] = \langle \partial_\theta r_i(x_s), \partial_\theta r_i(x_t) \rangle` ("When and
why PINNs fail to train", Wang, Yu, Perdikaris 2022, Eq. 3.9). Its trace measures the mean rate at
which residuals decrease, its largest eigenvalue the fastest rate. Unlike the kernel of losses, it
does not depend on the size of the residuals.

Example:
    >>> import torch
    >>> w = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    >>> found = residual_ntk({"inside": x @ w, "edge": 3 * w[:1]}, [w])
    >>> found.traces.tolist(), found.max_eigenvalues.tolist()
    ([5.0, 9.0], [4.0, 9.0])
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ntkmtl.analysis.spectrum import estimate_trace, top_eigenvalues
from ntkmtl.graph import trainable, vjp

__all__ = ["ResidualNTK", "residual_ntk"]


@dataclass(frozen=True)
class ResidualNTK:
    """Traces and largest eigenvalues of the kernels of k residuals.

    Attributes:
        names: Names of the conditions, or their positions.
        points: Number B_i of points of each.
        traces: Sum over points of K_ii[s, s], float64 of shape (k,).
        trace_errors: Standard errors of the traces, 0 for exact traces, shape (k,).
        max_eigenvalues: Largest eigenvalue of each K_ii, float64 of shape (k,).
        diagonals: K_ii[s, s] by point, float64 of shape (B_i,) each; None with probes.
    """

    names: tuple[str, ...]
    points: tuple[int, ...]
    traces: Tensor
    trace_errors: Tensor
    max_eigenvalues: Tensor
    diagonals: tuple[Tensor, ...] | None

    def weights(self) -> Tensor:
        r"""Return the NTK weights of the paper, :math:`\sum_j \mathrm{tr}_j / \mathrm{tr}_i`.

        Traces are divided by the number of points, since losses are means over points. If all
        conditions have the same number of points this is exactly Eq. 6.5.

        Raises:
            ValueError: A trace is not positive.

        Example:
            >>> import torch
            >>> w = torch.ones(1, requires_grad=True)
            >>> residual_ntk([w * 1.0, w * torch.tensor([2.0, 4.0])], [w]).weights()
            tensor([11.0000,  1.1000], dtype=torch.float64)
        """
        mean = self.traces / torch.tensor(self.points, dtype=torch.float64)
        if not bool((mean > 0).all()):
            found = ", ".join(f"{n} {t:g}" for n, t in zip(self.names, mean.tolist(), strict=True))
            raise ValueError(
                f"weights need traces above 0. Found {found} per point: a residual does not depend "
                "on the parameters, or take more probes"
            )
        return mean.sum() / mean


def residual_ntk(
    residuals: Mapping[str, Tensor] | Sequence[Tensor],
    parameters: Iterable[Tensor],
    *,
    probes: int = 0,
    seed: int = 0,
) -> ResidualNTK:
    """Return traces and largest eigenvalues of the residuals' kernels.

    The graph of the residuals is kept, and no ``.grad`` changes.

    Args:
        residuals: One tensor per condition, of any shape and not squared; each entry is a point.
        parameters: With respect to what.
        probes: 0 for exact numbers, by one backward pass per point with B_i gradients in memory.
            Otherwise the number of random sign vectors that estimate the traces (Hutchinson);
            eigenvalues are then computed by Lanczos. Both need products with the kernel only, of
            two backward passes each, and no matrix.
        seed: Seed of the probes.

    Returns:
        Traces and largest eigenvalues, in the order of the residuals.

    Raises:
        ValueError: There is no residual or parameter, or a residual is empty or without a graph.
        MissingExtraError: Probes are used, and SciPy is not installed.
        RuntimeError: Lanczos has not converged.

    Example:
        >>> import torch
        >>> w = torch.tensor([1.0, 0.0], requires_grad=True)
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> residual_ntk({"inside": x @ w}, [w]).max_eigenvalues
        tensor([4.], dtype=torch.float64)
    """
    named = residuals if isinstance(residuals, Mapping) else dict(enumerate(residuals))
    leaves = list(trainable(parameters))
    if not named or not leaves:
        raise ValueError(f"found {len(named)} residuals and {len(leaves)} trainable parameters")
    for name, residual in named.items():
        if residual.numel() == 0 or not residual.requires_grad:
            raise ValueError(
                f"residual {name} of shape {tuple(residual.shape)} has "
                + ("no points" if residual.numel() == 0 else "no graph: is it detached?")
            )
        if residual.is_complex():
            raise ValueError(
                f"residual {name} is complex; give its real and its imaginary part, each as a "
                "residual of its own"
            )
    flat = [residual.reshape(-1) for residual in named.values()]
    names, points = tuple(map(str, named)), tuple(len(r) for r in flat)
    if probes < 0:
        raise ValueError(f"probes must not be negative. Found probes={probes}.")
    if probes:
        operators = [_Operator(r, leaves) for r in flat]
        traces = [estimate_trace(K, probes, seed=seed) for K in operators]
        largest = torch.cat([top_eigenvalues(K, seed=seed) for K in operators])
        values, errors = torch.tensor(traces, dtype=torch.float64).unbind(dim=1)
        return ResidualNTK(names, points, values, errors, largest, None)
    kernels = [_dense(r, leaves) for r in flat]
    diagonals = tuple(K.diagonal().clone() for K in kernels)
    return ResidualNTK(
        names,
        points,
        torch.stack([d.sum() for d in diagonals]),
        torch.zeros(len(flat), dtype=torch.float64),
        torch.stack([torch.linalg.eigvalsh(K)[-1].clamp_min(0.0) for K in kernels]),
        diagonals,
    )


def _dense(residual: Tensor, leaves: Sequence[Tensor]) -> Tensor:
    """Return the kernel of one condition, float64 of shape (B, B) on the CPU."""
    rows = [vjp((residual[s],), leaves, None) for s in range(len(residual))]
    jacobian = torch.stack(rows).detach().to("cpu", torch.float64)
    return jacobian @ jacobian.T


class _Operator:
    """The kernel of one condition as a linear operator.

    J^T v is a backward pass. It is linear in v, so J u is the derivative of <J^T v, u> with respect
    to v.
    """

    def __init__(self, residual: Tensor, leaves: Sequence[Tensor]) -> None:
        self.dtype, self.device = residual.dtype, residual.device
        self.shape = (len(residual), len(residual))
        self._seed = torch.zeros_like(residual, requires_grad=True)
        self._residual, self._leaves = residual, leaves
        pulled = torch.autograd.grad(
            residual, leaves, self._seed, create_graph=True, allow_unused=True
        )
        self._pulled = [g for g in pulled if g is not None and g.requires_grad]

    def __matmul__(self, vector: Tensor) -> Tensor:
        pulled = torch.autograd.grad(
            self._residual, self._leaves, vector, retain_graph=True, allow_unused=True
        )
        kept = [g for g in pulled if g is not None]
        (product,) = torch.autograd.grad(
            self._pulled, [self._seed], kept, retain_graph=True, materialize_grads=True
        )
        return product
