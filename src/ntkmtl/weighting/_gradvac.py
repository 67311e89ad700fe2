"""Gradient vaccine."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import Requires, Weighting, balanced_gramian
from ntkmtl.weighting._method import EXACT, SearchRange, method
from ntkmtl.weighting._random import RandomState

__all__ = ["GradVac"]

_EPSILON = 1e-8
# A gradient of which this share of its squared norm is left has been cancelled.
_CANCELLED = 1e-14


@method(
    "gradvac",
    family="gradients",
    summary="Gradient vaccine: gradients are turned until they agree as they used to",
    paper="Wang et al.: Gradient Vaccine, ICLR 2021",
)
class GradVac(Weighting):
    r"""Each gradient is turned toward those that it used to agree with more.

    From "Gradient Vaccine", with all shared parameters as one group: for each task i and the others
    j in random order, where the cosine :math:`\phi` between the (possibly changed) :math:`g_i` and
    :math:`g_j` is below its target :math:`\hat\phi_{ij}`, the multiple
    :math:`\|g_i\| (\hat\phi \sqrt{1 - \phi^2} - \phi \sqrt{1 - \hat\phi^2}) / (\|g_j\|
    \sqrt{1 - \hat\phi^2})` of :math:`g_j` is added to :math:`g_i`, which makes it
    :math:`\hat\phi_{ij}`; then :math:`\hat\phi \leftarrow (1 - \beta) \hat\phi + \beta \phi`.
    Targets start at 0, where this is gradient surgery. The changed gradients are summed.

    As published, the multiple has no bound: two tasks whose gradients were the same for some tens
    of steps, such as one loss in two forms, have a target near 1, and once they differ the step is
    larger by orders of magnitude. Clip the gradient where tasks are that close.

    TorchJD's version is not used because it has one state for all tasks, which is forgotten when a
    batch has no labels for one of them, and draws from the global random stream. Here a pair
    without labels, or with a gradient that vanishes or was cancelled, keeps its target.

    Args:
        beta: :math:`\beta`; 0.5 as in TorchJD and LibMTL.
        seed: Seed of its own random stream; torch's initial seed if None.

    Raises:
        ValueError: ``beta`` is not in [0, 1].

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> G = torch.tensor([[2.0, -1.0], [-1.0, 1.0]])  # g_1 = (1, 1), g_2 = (-1, 0)
        >>> GradVac()(ExtendedNTK(G.reshape(2, 1, 2, 1)))  # g_1 + g_2, and g_2 + g_1 / 2
        tensor([1.5000, 2.0000], dtype=torch.float64)
    """

    requires: ClassVar[Requires] = "gramian"
    balancer_defaults = EXACT
    search_space = (SearchRange("beta", 0.0, 0.99, 0.5, reason="all that the average can be"),)

    def __init__(self, beta: float = 0.5, seed: int | None = None) -> None:
        if not 0.0 <= beta <= 1.0:
            raise ValueError(f"beta must be in [0, 1]. Found beta={beta}.")
        self.beta = float(beta)
        self._random = RandomState(seed)
        self._targets: Tensor | None = None

    def prepare(self, tasks: int, device: torch.device) -> None:
        if self._targets is None:
            self._targets = torch.zeros(tasks, tasks, dtype=torch.float64, device=device)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        self.prepare(kernel.tasks, tasks.device)
        assert self._targets is not None
        at = (tasks[:, None], tasks[None, :])
        gramian, _ = balanced_gramian(kernel.gramian())
        # Plain numbers: the k (k - 1) corrections depend on each other one by one.
        targets = self._targets[at].tolist()
        weights = self._vaccinate(gramian.tolist(), targets)
        self._targets[at] = self._targets.new_tensor(targets)
        return gramian.new_tensor(weights)

    def _vaccinate(self, gramian: list[list[float]], targets: list[list[float]]) -> list[float]:
        """Return the weights, and move the targets in place."""
        k = len(gramian)
        norms = [math.sqrt(max(gramian[i][i], 0.0)) for i in range(k)]
        weights = [1.0] * k
        for i in range(k):
            products = list(gramian[i])  # of the changed g_i with every g_j
            square = gramian[i][i]
            others = [j for j in range(k) if j != i]
            for place in torch.randperm(k - 1, generator=self._random.generator).tolist():
                j = others[place]
                if norms[j] == 0.0 or square <= _CANCELLED * gramian[i][i]:
                    continue
                norm = math.sqrt(square)
                cosine = min(max(products[j] / (norm * norms[j]), -1.0), 1.0)
                target = targets[i][j]
                if cosine < target:
                    wide = math.sqrt(max(1.0 - target * target, 0.0))
                    turn = target * math.sqrt(1.0 - cosine * cosine) - cosine * wide
                    step = norm * turn / (norms[j] * max(wide, _EPSILON))
                    square += 2.0 * step * products[j] + step * step * gramian[j][j]
                    products = [p + step * g for p, g in zip(products, gramian[j], strict=True)]
                    weights[j] += step
                targets[i][j] = (1.0 - self.beta) * target + self.beta * cosine
        return weights

    def _get_state(self) -> dict[str, Any]:
        return {"random": self._random.get(), "targets": self._targets}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._random.set(state["random"])
        self._targets = state["targets"]
