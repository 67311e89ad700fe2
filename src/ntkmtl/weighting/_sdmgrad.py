"""SDMGrad: stochastic direction-oriented multi-objective descent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import Requires, Weighting, check_positive
from ntkmtl.weighting._independent import independent_products
from ntkmtl.weighting._method import EXACT, SearchRange, method
from ntkmtl.weighting._simplex import SimplexWeights, project_onto_simplex

__all__ = ["SDMGrad"]


@method(
    "sdmgrad",
    family="gradients",
    summary="Direction-oriented: the shortest combination near the mean, by independent samples",
    paper="Xiao, Ban, Ji: Direction-oriented Multi-objective Learning, NeurIPS 2023",
)
class SDMGrad(Weighting):
    r"""The shortest combination of gradients near the mean one, from independent samples.

    Algorithm 1 of "Direction-oriented Multi-objective Learning: Simple and Provable Stochastic
    Algorithms". With :math:`A` the products of gradients of two independent samples, divided by
    the squared mean norm :math:`(\frac1k \sum_i \sqrt{A_{ii}})^2` (Section 6.1), and
    :math:`u = (1/k, ..., 1/k)`, the simplex weights w take some projected steps of gradient descent
    with momentum on :math:`\frac12 |J^T (w + \lambda u)|^2`, whose gradient is
    :math:`A (w + \lambda u)`; they go on from those of the last batch. The weights are
    :math:`(w + \lambda u) / (1 + \lambda)`.

    The original draws three batches: two for A, a third for the model. Here the two are
    mini-batches of one batch, whose products are blocks of the extended NTK (see
    :func:`ntkmtl.weighting._modo.independent_products`), and the model follows the gradient of the
    whole batch: a third of the original's cost, at the price that the gradient it follows is not
    independent of w. (The published code fills one tensor for all three batches, so that its A is
    the Gramian of the batch that the model follows as well.)

    Negative diagonal entries, where noise outweighs the gradient, count as 0 for the scale; where
    all are, there is no scale to measure by and w stays.

    A task without labels keeps its w, in proportion to the others.

    Args:
        lambda_: How far to follow the mean gradient; 0.3 as in the published scripts. 0 is MGDA.
        learning_rate: Of w; 10 as published (5 in LibMTL).
        momentum: 0.5 as published.
        iterations: Steps per batch; 20 as published.

    Raises:
        ValueError: A setting is out of range; on use, if there is only one mini-batch.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> J = torch.tensor([[1.0, 1.0], [2.0, 2.0]])  # two tasks on two mini-batches, P = 1
        >>> K = ExtendedNTK(torch.einsum("iu,jv->iujv", J, J))
        >>> # The shorter gradient is task 0's: w = (1, 0), (w + .5) / 2.
        >>> SDMGrad(lambda_=1.0)(K)
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    requires: ClassVar[Requires] = "kernel"
    # Two mini-batches of a batch are the two samples; blockwise pooling has no products of them.
    balancer_defaults: ClassVar[Mapping[str, Any]] = {
        **EXACT,
        "pooling": "pooled",
        "minibatches": 2,
    }
    search_space = (
        SearchRange(
            "lambda_", 0.03, 3.0, 0.3, log=True, reason="a factor of 10 around the default"
        ),
    )

    def __init__(
        self,
        lambda_: float = 0.3,
        learning_rate: float = 10.0,
        momentum: float = 0.5,
        iterations: int = 20,
    ) -> None:
        self.lambda_ = check_positive("lambda_", lambda_, zero=True)
        self.learning_rate = check_positive("learning_rate", learning_rate)
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1). Found momentum={momentum}.")
        self.momentum = float(momentum)
        if iterations < 1:
            raise ValueError(f"iterations must be at least 1. Found iterations={iterations}.")
        self.iterations = int(iterations)
        self._weights = SimplexWeights()

    def prepare(self, tasks: int, device: torch.device) -> None:
        self._weights.prepare(tasks)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        products = independent_products(kernel, "sdmgrad").cpu()
        self._weights.prepare(kernel.tasks)
        w = self._weights.get(tasks)
        pull = self.lambda_ / len(w)
        scale = float(products.diagonal().clamp_min(0.0).sqrt().mean())
        if scale > 0:
            products = products / scale**2
            velocity = torch.zeros_like(w)
            for _ in range(self.iterations):
                velocity = self.momentum * velocity + products @ (w + pull)
                w = project_onto_simplex(w - self.learning_rate * velocity)
            self._weights.set(tasks, w)
        return ((w + pull) / (1.0 + self.lambda_)).to(kernel.blocks.device)

    def _get_state(self) -> dict[str, Any]:
        return {"weights": self._weights.values}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._weights.values = state["weights"]
