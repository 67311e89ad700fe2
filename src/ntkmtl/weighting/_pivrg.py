"""PIVRG: performance-informed variance reduction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl._warnings import warn
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import Requires, Weighting, check_positive
from ntkmtl.weighting._fair import fair_weights
from ntkmtl.weighting._method import EXACT, method

__all__ = ["PIVRG"]


@method(
    "pivrg",
    family="gradients",
    summary="Performance-informed: a fair allocation in which worse tasks count more",
    paper="Qin, Wang, Yan: Revisiting Fairness in Multitask Learning, CVPR 2025",
)
class PIVRG(Weighting):
    r"""A fair allocation in which tasks that perform worse count more.

    The method of "Revisiting Fairness in Multitask Learning: A Performance-Driven Approach for
    Variance Reduction", as in its published code. A task's score is its performance on validation
    data against its single-task network, :math:`\Delta m_i` in percent, lower being better. With

    .. math:: T = \max\left(\frac{\max_i \Delta m_i - \min_i \Delta m_i}{\log b}, T_0\right),
        \qquad p = k\,\mathrm{softmax}(\Delta m / T),

    so that no two p differ by more than a factor b, the weights solve
    :math:`(G w)_i = \sqrt{p_i / w_i}`. With :math:`w = v / p` that is
    :math:`(D G D) v = v^{-1/2}`, :math:`D = \mathrm{diag}(1 / p)`, the 2-fair allocation of scaled
    gradients, which :func:`ntkmtl.weighting._fair.fair_weights` solves to machine precision (the
    published code: least squares from equal weights).

    ``ntkmtl compare`` and ``ntkmtl run`` train the single-task networks first and give the scores.
    In your own loop, call :meth:`observe` with them after each epoch, as
    ``balancer.weighting.observe(...)``. All are 0 in the first epoch, where the method is FairGrad
    with alpha 2; if the second epoch ends and none were ever given, a warning says so. (For NYUv2
    and CityScapes the published code takes its scores from the training data; a score is the mean
    over the task's metrics.)

    A task without labels is left out of the softmax of that step; its score stays.

    Args:
        bound: Largest ratio b of two p; 2 as published for NYUv2 and CelebA, 1.8 for QM9 and
            CityScapes.
        min_temperature: :math:`T_0` in percent; 10 as published for NYUv2 and CelebA, 100 for QM9,
            20 for CityScapes.

    Raises:
        ValueError: A setting is out of range.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> K = ExtendedNTK(torch.eye(2).reshape(2, 1, 2, 1))
        >>> pivrg = PIVRG(bound=8.0)
        >>> pivrg.observe([100.0, 0.0])  # T = 100 / log 8: p = (16 / 9, 2 / 9)
        >>> pivrg(K)  # G is the identity: w = p ** (1 / 3), a factor of 2 apart
        tensor([1.2114, 0.6057], dtype=torch.float64)
    """

    requires: ClassVar[Requires] = "gramian"
    needs_scores: ClassVar[bool] = True
    balancer_defaults = EXACT

    def __init__(self, bound: float = 2.0, min_temperature: float = 10.0) -> None:
        self.bound = check_positive("bound", bound)
        if self.bound <= 1:
            raise ValueError(f"bound must be above 1. Found bound={bound}.")
        self.min_temperature = check_positive("min_temperature", min_temperature)
        self._scores: Tensor | None = None
        self._count: int | None = None
        self._epochs = 0

    def prepare(self, tasks: int, device: torch.device) -> None:
        self._count = tasks

    def observe(self, scores: Sequence[float] | Tensor) -> None:
        """Take over how well each task performs.

        Args:
            scores: Delta-m of every task in percent, in the order of the tasks; lower is better.
                NaN leaves a task's score as it is.

        Raises:
            ValueError: The number of scores is not that of the tasks, or one is infinite.
        """
        new = torch.as_tensor(scores, dtype=torch.float64).detach().cpu()
        if new.ndim != 1 or self._count not in (None, len(new)):
            raise ValueError(
                f"pivrg takes one score for each of {self._count or 'the'} tasks, found shape "
                f"{tuple(new.shape)}"
            )
        if bool(new.isinf().any()):
            raise ValueError(f"scores must be finite, or NaN for none, found {new.tolist()}")
        old = torch.zeros_like(new) if self._scores is None else self._scores
        self._scores = torch.where(new.isnan(), old, new)

    def importance(self, tasks: Tensor) -> Tensor:
        """Return p of the tasks at these positions, float64, with mean 1."""
        if self._scores is None:
            return torch.ones(len(tasks), dtype=torch.float64)
        scores = self._scores[tasks.cpu()]
        spread = float(scores.max() - scores.min())
        temperature = max(spread / math.log(self.bound), self.min_temperature)
        return len(tasks) * torch.softmax(scores / temperature, dim=0)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        gramian = kernel.gramian()
        p = self.importance(tasks).to(gramian)
        return fair_weights(gramian / p[:, None] / p[None, :], 2.0) / p

    def end_epoch(self) -> None:
        self._epochs += 1
        # Scores of the first epoch may come after it has ended, but not after the second.
        if self._epochs == 2 and self._scores is None:
            warn(
                "pivrg was not told how the tasks perform, so it is FairGrad with alpha=2 until it "
                "is: call balancer.weighting.observe(delta_m of each task) after each epoch"
            )

    def _get_state(self) -> dict[str, Any]:
        return {"scores": self._scores}

    def _set_state(self, state: dict[str, Any]) -> None:
        self._scores = state["scores"]
