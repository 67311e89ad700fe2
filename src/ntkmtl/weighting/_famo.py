"""FAMO: fast adaptive multitask optimization."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl.weighting._base import LossWeighting, check_positive
from ntkmtl.weighting._method import SearchRange, method
from ntkmtl.weighting._task_adam import TaskAdam

__all__ = ["FAMO"]

_EPSILON = 1e-8


@method(
    "famo",
    family="losses",
    summary="Fast adaptive optimization: equal rates of loss decrease, from losses alone",
    paper="Liu et al.: FAMO, NeurIPS 2023",
)
class FAMO(LossWeighting):
    r"""Weights that make all losses fall at the same rate, from losses alone.

    Algorithm 1 of the paper: with :math:`z = \mathrm{softmax}(\xi)`, :math:`d_i = \ell_i - b_i`
    and :math:`c = (\sum_i z_i / d_i)^{-1}`, the weights are :math:`w_i = c z_i / d_i`, which sum to
    1. After the update, ``after_step`` with the losses of the same batch moves the logits
    :math:`\xi` by one step of Adam along
    :math:`J_{\mathrm{softmax}}^T (\log d^{before} - \log d^{after})`.

    A task without labels in a batch is left out of the softmax of that step; its logit stays.

    Args:
        learning_rate: Of the logits; 0.025 as published.
        gamma: Weight decay of the logits; 0.001 as published for NYUv2, QM9 and CelebA (0.01 for
            CityScapes).
        min_loss: Lower bound b of every loss.

    Raises:
        ValueError: A setting is negative or not finite, or, on use, a loss is below ``min_loss``.

    Example:
        >>> import torch
        >>> FAMO()(losses=torch.tensor([1.0, 3.0]))  # equal z: proportional to 1 / loss
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    search_space = (
        SearchRange(
            "learning_rate",
            0.0025,
            0.25,
            0.025,
            log=True,
            reason="a factor of 10 around the default",
        ),
        SearchRange(
            "gamma", 0.0001, 0.01, 0.001, log=True, reason="a factor of 10 around the default"
        ),
    )
    needs_after_step: ClassVar[bool] = True
    takes_logarithms: ClassVar[bool] = True
    needs_positive_losses: ClassVar[bool] = True

    def __init__(
        self, learning_rate: float = 0.025, gamma: float = 1e-3, min_loss: float = 0.0
    ) -> None:
        self.learning_rate = check_positive("learning_rate", learning_rate)
        self.gamma = check_positive("gamma", gamma, zero=True)
        if not math.isfinite(min_loss):
            raise ValueError(f"min_loss must be finite. Found min_loss={min_loss}.")
        self.min_loss = float(min_loss)
        self._logits = TaskAdam(self.learning_rate, start=0.0)
        self._before: Tensor | None = None

    def prepare(self, tasks: int, device: torch.device) -> None:
        logits = self._logits.prepare(tasks, device)
        if self._before is None:
            self._before = torch.full_like(logits, float("nan"))

    def _distance(self, losses: Tensor) -> Tensor:
        distance = losses - self.min_loss + _EPSILON
        if bool((distance <= 0).any()):
            raise ValueError(
                f"famo needs losses above min_loss={self.min_loss}, found {losses.tolist()}; "
                "set min_loss below them"
            )
        return distance

    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        self.prepare(len(losses), losses.device)
        assert self._before is not None
        logits = self._logits.prepare(len(self._before), losses.device)
        share = torch.softmax(logits[tasks], dim=0) / self._distance(losses)
        self._before.fill_(float("nan"))
        self._before[tasks] = losses
        return share / share.sum()

    def after_step(self, losses: Tensor, tasks: Tensor) -> None:
        if self._before is None or bool(self._before[tasks].isnan().any()):
            raise ValueError(
                "after_step was called with losses of tasks that the last backward did not have"
            )
        logits = self._logits.prepare(len(self._before), losses.device)[tasks]
        fall = self._distance(self._before[tasks]).log() - self._distance(losses).log()
        z = torch.softmax(logits, dim=0)
        self._logits.step(z * (fall - (z * fall).sum()) + self.gamma * logits, tasks)
        self._before.fill_(float("nan"))

    def _get_state(self) -> dict[str, Any]:
        state = self._logits.state_dict()
        return {"logits": state.pop("values"), **state, "before": self._before}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._before = state["before"]
        self._logits.load_state_dict({**state, "values": state["logits"]})
