"""SoftAdapt."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ntkmtl.weighting._base import LossWeighting, check_positive
from ntkmtl.weighting._losses import nonzero
from ntkmtl.weighting._method import SearchRange, method

__all__ = ["SoftAdapt"]

Variant = Literal["original", "normalized", "loss-weighted"]


@method(
    "softadapt",
    family="losses",
    summary="A softmax of how quickly each loss changes: what falls slowest counts most",
    paper="Heydari, Thompson, Mehmood: SoftAdapt, arXiv 2019",
)
class SoftAdapt(LossWeighting):
    r"""Weights from the rates of change of the losses; they sum to 1.

    Section 3.1 of "SoftAdapt: Techniques for Adaptive Loss Weighting of Neural Networks with
    Multi-Part Loss Functions": with the change :math:`s_i = \ell_i(t) - \ell_i(t-1)` since the last
    step,

    - ``"original"``: :math:`w_i = e^{\beta s_i} / \sum_j e^{\beta s_j}`,
    - ``"normalized"``: the same of :math:`s_i / \sum_j |s_j|`,
    - ``"loss-weighted"``: :math:`w_i = \ell_i e^{\beta s_i} / \sum_j \ell_j e^{\beta s_j}`.

    The paper's finite differences of higher order are left out. Losses of small batches change by
    chance as well; the paper then takes means over several steps.

    The first step has no change, and neither has a task at its first labels: :math:`s_i = 0`. A
    task without labels keeps the loss that it had last.

    Args:
        beta: :math:`\beta`; 0.1 as in the authors' code. Negative values prefer what falls
            fastest.
        variant: One of the three above.

    Raises:
        TypeError: ``beta`` is not a number.
        ValueError: A setting is not finite or unknown, or, on use of ``"loss-weighted"``, a loss is
            negative.

    Example:
        >>> import torch
        >>> w = SoftAdapt()
        >>> w(losses=torch.tensor([5.0, 5.0]))
        tensor([0.5000, 0.5000], dtype=torch.float64)
        >>> w(losses=torch.tensor([4.0, 2.0]))  # s = (-1, -3): 1 / (1 + exp(-.2)), ...
        tensor([0.5498, 0.4502], dtype=torch.float64)
    """

    search_space = (
        SearchRange("beta", 0.01, 10.0, 0.1, log=True, reason="the right one depends on the units"),
    )

    def __init__(self, beta: float = 0.1, variant: Variant = "original") -> None:
        check_positive("beta", abs(beta) if isinstance(beta, int | float) else beta, zero=True)
        if variant not in get_args(Variant):
            known = ", ".join(get_args(Variant))
            raise ValueError(f"variant must be one of {known}. Found variant={variant!r}.")
        self.beta = float(beta)
        self.variant = variant
        self._last: Tensor | None = None

    def prepare(self, tasks: int, device: torch.device) -> None:
        if self._last is None:
            self._last = torch.full((tasks,), float("nan"), dtype=torch.float64, device=device)

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        self.prepare(len(losses), losses.device)
        assert self._last is not None
        last = self._last[tasks]
        changes = torch.where(last.isnan(), 0.0, losses - last)
        self._last[tasks] = losses
        if self.variant == "normalized":
            total = changes.abs().sum()
            changes = changes / total if float(total) > 0 else changes
        weights = torch.softmax(self.beta * changes, dim=0)
        if self.variant != "loss-weighted":
            return weights
        live = nonzero(losses, "softadapt", "multiplies by losses")
        if not bool(live.any()):
            return weights
        # In logarithms: a product may be below the least float64.
        return torch.softmax(torch.where(live, losses.log(), -torch.inf) + self.beta * changes, 0)

    def _get_state(self) -> dict[str, Any]:
        return {"last": self._last}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._last = state["last"]
