"""Excess risks."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl._device import with_cpu_default
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import (
    Requires,
    Weighting,
    check_jacobian,
    check_known,
    check_positive,
)
from ntkmtl.weighting._method import EXACT, SearchRange, method

__all__ = ["ExcessMTL"]


@method(
    "excess-mtl",
    family="gradients",
    summary="More weight for tasks of larger excess risk, from accumulated squared gradients",
    paper="He et al.: Robust Multi-Task Learning with Excess Risks, ICML 2024",
)
class ExcessMTL(Weighting):
    r"""More weight for tasks that are further from convergence, whatever their noise.

    "Robust Multi-Task Learning with Excess Risks": the excess risk of a task, its distance to the
    best loss it could have, is estimated by :math:`E_i = g_i^T H_i^{-1} g_i` (Eq. 6) with
    :math:`H_i = \mathrm{diag}(\sum_t g_{i,t}^2)^{1/2}` (Eq. 7), divided by its value at the start,
    and moves the weights on the simplex, :math:`w_i \propto w_i \exp(\eta E_i)` (Eq. 9). They start
    at :math:`1/k`.

    It needs squares of the gradients entry by entry, added up over all steps: one number per task
    and shared parameter is kept, and saved with the state. With ``source="representation"`` the
    entries are those of the features, of which every batch must have equally many. The shared part
    gets the weighted sum of the gradients and heads their own gradients; in the published code the
    weights apply to heads too, and sum to k.

    TorchJD's version is not used because it has one state for all tasks, which is forgotten when a
    batch has no labels for one of them. Nor are the constants of 1e-7 under roots and quotients, so
    that the scale of the losses does not matter: an entry that was always zero counts as 0. The
    weights of tasks with labels keep their sum, so that the others lose nothing.

    Args:
        step_size: :math:`\eta`; 0.01 as in the published code.
        warmup: Epochs, ended by ``end_epoch``, whose mean excess risk is the start that later ones
            are compared with, while weights stay equal. With 0, as in the published code, it is the
            first one.

    Raises:
        ValueError: A setting is out of range, or, on use, the number of entries changes.

    Example:
        >>> import torch
        >>> w = ExcessMTL(step_size=1.0)
        >>> for scale in (3.0, 4.0):  # E_1 = 3, then 16 / 5; E_2 = 4, then 9 / 5
        ...     g, weights = w.combine(torch.diag(torch.tensor([scale, 7.0 - scale])))
        >>> weights  # softmax((16 / 5) / 3, (9 / 5) / 4)
        tensor([0.6495, 0.3505], dtype=torch.float64)
    """

    requires: ClassVar[Requires] = "jacobian"
    balancer_defaults = EXACT
    search_space = (
        SearchRange(
            "step_size", 0.001, 0.1, 0.01, log=True, reason="a factor of 10 around the default"
        ),
    )

    def __init__(self, step_size: float = 0.01, warmup: int = 0) -> None:
        self.step_size = check_positive("step_size", step_size)
        if warmup < 0:
            raise ValueError(f"warmup must not be negative. Found warmup={warmup}.")
        self.warmup = int(warmup)
        self._epoch = 0
        self._squares: Tensor | None = None
        self._start: Tensor | None = None
        self._sum: Tensor | None = None
        self._count: Tensor | None = None
        self._log_weights: Tensor | None = None

    def prepare(self, tasks: int, device: torch.device) -> None:
        if self._start is None:
            self._start = torch.full((tasks,), float("nan"), dtype=torch.float64)
            self._sum = torch.zeros_like(self._start)
            self._count = torch.zeros_like(self._start)
            self._log_weights = torch.zeros_like(self._start)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        raise ValueError(
            "excess-mtl needs the gradients entry by entry, which no kernel holds; call combine"
        )

    @with_cpu_default
    def combine(
        self, jacobian: Tensor, losses: Tensor | None = None, tasks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the gradients and the weights. See the base class."""
        tasks = check_jacobian(jacobian, losses, tasks, "excess-mtl").cpu()
        self.prepare(len(jacobian), jacobian.device)
        assert self._start is not None
        check_known(tasks, len(self._start), "excess-mtl")
        weights = self._weights(self._excess(jacobian, tasks), tasks)
        return weights.to(jacobian) @ jacobian, weights

    def _excess(self, jacobian: Tensor, tasks: Tensor) -> Tensor:
        """Return the excess risks, float64 of shape (k,), and add up the squares."""
        assert self._start is not None
        # A sum over steps stands still in bfloat16 once it is 256 times what is added.
        dtype = torch.promote_types(jacobian.dtype, torch.float32)
        if self._squares is None:
            self._squares = jacobian.new_zeros(len(self._start), jacobian.shape[1], dtype=dtype)
        if self._squares.shape[1] != jacobian.shape[1]:
            raise ValueError(
                f"excess-mtl adds up squares of the same {self._squares.shape[1]} entries in every "
                f"step, found {jacobian.shape[1]}; with source='representation' every batch must "
                "have the same size, with source='exact' it need not"
            )
        if self._squares.device != jacobian.device:
            self._squares = self._squares.to(jacobian.device)
        excess = []
        for row, task in zip(jacobian, tasks.tolist(), strict=True):
            square = row.to(dtype).square()
            total = self._squares[task].add_(square)
            share = torch.where(total > 0, square / total.sqrt(), 0.0)
            excess.append(share.sum(dtype=torch.float64))
        return torch.stack(excess).cpu()

    def _weights(self, excess: Tensor, tasks: Tensor) -> Tensor:
        assert self._start is not None
        assert self._sum is not None
        assert self._count is not None
        assert self._log_weights is not None
        if self._epoch < self.warmup:
            self._sum[tasks] += excess
            self._count[tasks] += 1
            return torch.full_like(excess, 1.0 / len(excess))
        start = self._start[tasks]
        mean = torch.where(self._count[tasks] > 0, self._sum[tasks] / self._count[tasks], excess)
        mean = torch.where(mean > 0, mean, excess)
        start = torch.where(start.isnan() & (mean > 0), mean, start)
        self._start[tasks] = start
        relative = torch.where(start.isnan(), 0.0, excess / start)
        before = self._log_weights[tasks]
        after = before + self.step_size * relative
        # Among themselves: tasks that were not asked lose nothing by it.
        after = after - after.logsumexp(dim=0) + before.logsumexp(dim=0)
        self._log_weights[tasks] = after
        return torch.softmax(after, dim=0)

    def end_epoch(self) -> None:
        self._epoch += 1

    def _get_state(self) -> dict[str, Any]:
        return {
            "epoch": self._epoch,
            "squares": self._squares,
            "start": self._start,
            "sum": self._sum,
            "count": self._count,
            "log_weights": self._log_weights,
        }

    def _set_state(self, state: dict[str, Any]) -> None:
        self._epoch = int(state["epoch"])
        self._squares, self._start = state["squares"], state["start"]
        self._sum, self._count = state["sum"], state["count"]
        self._log_weights = state["log_weights"]
