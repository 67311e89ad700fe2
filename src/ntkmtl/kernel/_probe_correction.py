r"""Correction of the representation's kernel by a few random probes.

The kernel of the representation (``pooled``, ``blockwise`` or ``kernel``) costs almost nothing; it
is called the *free* estimate here. For task i it is wrong by a factor :math:`r_i` that drifts
slowly, while the kernel itself changes from batch to batch. A probe estimates the kernel of one
batch without bias but with much noise. So probes only estimate the factors: the mean over steps of
the ratio of the probe's estimate to the free one.

The ratio is taken between the traces of the task's block. For n > 1 the largest eigenvalue of the
mean of m outer products a a^T is a biased estimate (for m = 1 it is :math:`|a|^2`), but
:math:`E |a_i|^2 = \mathrm{tr} K_{ii}` holds for every n. The relative variance of this trace is
:math:`2 |K_{ii}|_F^2 / (m\, \mathrm{tr}^2 K_{ii})`, the smallest among the quadratic forms
compared in docs/estimators.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ntkmtl.kernel._extended import ExtendedNTK

__all__ = ["ProbeCorrection"]


class ProbeCorrection:
    r"""For each task the factor between the shared parameters' kernel and the free estimate.

    :math:`r_i = (S_i + c\, \bar r) / (W_i + c)`. Here :math:`W_i = \sum_s \beta^{t-s} m_s` is the
    discounted number of probes, :math:`S_i` the same sum over the ratios of traces, and
    :math:`\bar r = \sum_i S_i / \sum_i W_i` the mean ratio of all tasks. Dividing by :math:`W_i`
    removes the bias of a start at zero; the c pseudo-probes pull tasks with few probes towards the
    mean. A factor common to all tasks changes no weight.

    Args:
        tasks: Number of all tasks k.
        decay: :math:`\beta`, the discount per update, in [0, 1).
        prior: c, the number of pseudo-probes.

    Raises:
        ValueError: A number is out of range.

    Example:
        >>> import torch
        >>> correction = ProbeCorrection(2, prior=0.0)
        >>> free = ExtendedNTK(blocks=torch.tensor([[[1.0]], [[1.0]]], dtype=torch.float64))
        >>> slopes = torch.tensor([[[2.0], [3.0]]])  # m = 1 direction, k = 2 tasks, n = 1
        >>> correction.update(slopes, free)
        >>> correction(free).max_eigenvalues()
        tensor([4., 9.], dtype=torch.float64)
    """

    def __init__(self, tasks: int, *, decay: float = 0.95, prior: float = 4.0) -> None:
        if tasks < 1:
            raise ValueError(f"tasks must be at least 1, found {tasks}")
        if not 0.0 <= decay < 1.0:
            raise ValueError(f"decay must be in [0, 1), found {decay}")
        if not prior >= 0.0:
            raise ValueError(f"prior must not be negative, found {prior}")
        self.tasks = tasks
        self.decay = float(decay)
        self.prior = float(prior)
        self._sum = torch.zeros(tasks, dtype=torch.float64)
        self._count = torch.zeros(tasks, dtype=torch.float64)

    def __repr__(self) -> str:
        return f"ProbeCorrection({self.tasks}, decay={self.decay}, prior={self.prior})"

    def _index(self, tasks: Tensor | Sequence[int] | None, found: int) -> Tensor:
        index = torch.arange(self.tasks) if tasks is None else torch.as_tensor(tasks).cpu()
        if index.shape != (found,):
            raise ValueError(
                f"the kernel has {found} tasks, but {index.numel()} are named; give the positions "
                "of the tasks that it holds"
            )
        return index

    def update(
        self,
        slopes: Tensor,
        free: ExtendedNTK,
        tasks: Tensor | Sequence[int] | None = None,
    ) -> None:
        """Update the factors by the probes of one step.

        Tasks that are not listed keep their factor, and so do tasks whose free estimate is zero.

        Args:
            slopes: Result of :func:`probe_slopes`, shape (m, k', n).
            free: The free estimate of the same step, for the same mini-batches and with the same
                scale of the losses.
            tasks: Positions of its k' tasks among all tasks; None for all.

        Raises:
            ValueError: The shapes do not match, or a slope is not finite.
        """
        index = self._index(tasks, free.tasks)
        if slopes.ndim != 3 or slopes.shape[1:] != free.blocks.shape[:2]:
            raise ValueError(
                f"slopes must have shape (m, {free.tasks}, {free.minibatches}) to fit the kernel, "
                f"found {tuple(slopes.shape)}"
            )
        found = slopes.detach().to("cpu", torch.float64)
        bad = index[~found.isfinite().all(dim=2).all(dim=0)].tolist()
        if bad:
            raise ValueError(f"slopes of tasks {bad} are not finite")
        probed = found.square().sum(dim=2).mean(dim=0)
        said = free.blocks.detach().to("cpu", torch.float64).diagonal(dim1=1, dim2=2).sum(dim=1)
        seen = said > 0
        here, ratio, m = index[seen], probed[seen] / said[seen], len(found)
        self._sum[here] = self.decay * self._sum[here] + m * ratio
        self._count[here] = self.decay * self._count[here] + m

    def factors(self, tasks: Tensor | Sequence[int] | None = None) -> Tensor:
        """Return the factors r of some tasks, float64 of shape (k',); 1 before the first update.

        Args:
            tasks: Positions of the tasks; None for all.
        """
        index = torch.arange(self.tasks) if tasks is None else torch.as_tensor(tasks).cpu()
        counted = float(self._count.sum())
        common = float(self._sum.sum()) / counted if counted > 0 else 1.0
        total = self._sum[index] + self.prior * common
        count = self._count[index] + self.prior
        return torch.where(count > 0, total / count, common)

    def __call__(
        self, free: ExtendedNTK, tasks: Tensor | Sequence[int] | None = None
    ) -> ExtendedNTK:
        """Return the free estimate with each block K_ij multiplied by sqrt(r_i r_j).

        Diagonal blocks and their eigenvalues are multiplied by r_i. Cosines between tasks do not
        change.

        Args:
            free: The free estimate of this step.
            tasks: Positions of its tasks among all tasks; None for all.

        Raises:
            ValueError: The number of positions does not match the kernel.
        """
        index = self._index(tasks, free.tasks)
        return free.weighted(self.factors(index).sqrt())

    def state_dict(self) -> dict[str, Tensor]:
        """Return the moving averages as tensors."""
        return {"sum": self._sum.clone(), "count": self._count.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state from :meth:`state_dict`.

        Raises:
            ValueError: An entry is missing, or is for another number of tasks.
        """
        for name in ("sum", "count"):
            if name not in state or state[name].shape != (self.tasks,):
                found = tuple(state[name].shape) if name in state else "none"
                raise ValueError(
                    f"state of the probe correction needs {name!r} of shape ({self.tasks},), found "
                    f"{found}"
                )
        self._sum = state["sum"].detach().to("cpu", torch.float64).clone()
        self._count = state["count"].detach().to("cpu", torch.float64).clone()
