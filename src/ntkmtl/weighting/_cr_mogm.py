"""Correlation-reduced multi-objective gradient manipulation."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting import create
from ntkmtl.weighting._base import Requires, Weighting
from ntkmtl.weighting._method import EXACT, SearchRange, method

__all__ = ["CRMOGM"]

_INNER = "inner."


@method(
    "cr-mogm",
    family="gradients",
    summary="Another method's weights, averaged over the steps",
    paper="Zhou et al.: Stochastic Multi-Objective Gradient Manipulation, NeurIPS 2022",
)
class CRMOGM(Weighting):
    r"""The weights of another method, averaged over the steps.

    "On the Convergence of Stochastic Multi-Objective Gradient Manipulation and Beyond": weights
    that depend on the gradients of one mini-batch are correlated with them, which biases the step;
    the moving average :math:`\lambda_t = \alpha \lambda_{t-1} + (1 - \alpha) \hat\lambda_t` of the
    method's weights :math:`\hat\lambda_t` is used instead. It starts at :math:`\hat\lambda_1`. The
    decay is constant here, as in TorchJD, whose version is not used because it has one state for
    all tasks; the paper lets it grow toward 1 as the learning rate falls.

    A task without labels in a batch keeps its average.

    Args:
        inner: The method: a name, or a weighting that reads the Gramian. ``pivrg``, which also
            needs scores, and ``consmtl``, which also trains the heads, are refused.
        alpha: Decay in [0, 1]; 0.9 as in TorchJD.

    Raises:
        ValueError: ``alpha`` is out of range, or the method reads something else than the Gramian.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> w = CRMOGM("imtl-g", alpha=0.5)
        >>> for last in (9.0, 1.0):  # imtl-g: (0.75, 0.25), then (0.5, 0.5)
        ...     w(ExtendedNTK(torch.diag(torch.tensor([1.0, last])).reshape(2, 1, 2, 1)))
        tensor([0.7500, 0.2500], dtype=torch.float64)
        tensor([0.6250, 0.3750], dtype=torch.float64)
    """

    requires: ClassVar[Requires] = "gramian"
    balancer_defaults = EXACT
    search_space = (SearchRange("alpha", 0.0, 0.99, 0.9, reason="all that the average can be"),)

    def __init__(self, inner: str | Weighting = "mgda", alpha: float = 0.9) -> None:
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"alpha must be in [0, 1]. Found alpha={alpha}.")
        self.inner = inner
        self.alpha = float(alpha)
        self._inner = create(inner) if isinstance(inner, str) else inner
        if self._inner.requires != "gramian":
            raise ValueError(
                f"inner must be a method that reads the Gramian. Found {inner!r}, which reads the "
                f"{self._inner.requires}."
            )
        if self._inner.has_head_objective or self._inner.needs_scores:
            more = "a part in the heads' training" if self._inner.has_head_objective else "scores"
            raise ValueError(
                f"inner must be a method that needs nothing but the Gramian. Found {inner!r}, "
                f"which also needs {more}; use it by itself."
            )
        self._average: Tensor | None = None

    def prepare(self, tasks: int, device: torch.device) -> None:
        self._inner.prepare(tasks, device)
        if self._average is None:
            self._average = torch.full((tasks,), float("nan"), dtype=torch.float64, device=device)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        self.prepare(kernel.tasks, tasks.device)
        assert self._average is not None
        fresh = self._inner.weigh(kernel, losses, tasks)
        last = self._average[tasks].to(fresh.device)
        last = torch.where(last.isnan(), fresh, last)
        weights = self.alpha * last + (1.0 - self.alpha) * fresh
        self._average[tasks] = weights.to(self._average.device)
        return weights

    def end_epoch(self) -> None:
        self._inner.end_epoch()

    def _get_state(self) -> dict[str, Any]:
        inner = self._inner.state_dict()
        return {"average": self._average, **{_INNER + key: inner[key] for key in inner}}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._average = state["average"]
        self._inner.load_state_dict(
            {key.removeprefix(_INNER): state[key] for key in state if key.startswith(_INNER)}
        )
