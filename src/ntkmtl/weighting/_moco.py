"""MoCo: multi-objective gradient correction; and gradients that are followed over steps."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl._device import with_cpu_default
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._pooling import gram
from ntkmtl.weighting._base import Requires, Weighting, check_jacobian, check_positive
from ntkmtl.weighting._method import EXACT, method
from ntkmtl.weighting._simplex import SimplexWeights, project_onto_simplex
from ntkmtl.weighting._tracked import TrackedGradients, norms

__all__ = ["MoCo"]


@method(
    "moco",
    family="gradients",
    summary="Gradient correction: the shortest convex combination of tracked gradients",
    paper="Fernando et al.: Mitigating Gradient Bias in Multi-objective Learning, ICLR 2023",
)
class MoCo(Weighting):
    r"""The shortest convex combination of gradients that are tracked over steps.

    Algorithm 1 of "Mitigating Gradient Bias in Multi-objective Learning", in the form of its
    authors' code (as LibMTL has it): with gradients :math:`h_i`,

    .. math::
        y_i &\leftarrow y_i - \beta_t (y_i - h_i), \qquad \beta_t = \beta / t^{\sigma_\beta} \\
        \lambda &\leftarrow \mathrm{softmax}(\lambda - \gamma_t (Y Y^T + \rho I) \lambda),
        \qquad \gamma_t = \gamma / t^{\sigma_\gamma}

    and the model follows :math:`\sum_i \lambda_i y_i`. The code takes
    :math:`h_i = \ell_i g_i / |g_i|`, and a softmax where the paper projects onto the simplex; both
    can be had. It bounds no norm of y. A gradient that is zero stays zero.

    The weights reported are :math:`\lambda`: the factors of the tracked gradients, which sum to 1.
    Memory is that of k gradients more. They must be gradients of the same parameters in every step,
    so ``source="exact"``; features of different samples cannot be averaged over steps.

    A task without labels keeps its y, its count t of updates, and, in proportion to the others, its
    :math:`\lambda`.

    Args:
        beta: Learning rate of the tracked gradients; 0.5 as published.
        beta_sigma: Its decay; 0.5 as published.
        gamma: Learning rate of the weights; 0.1 as published.
        gamma_sigma: Its decay; 0.5 as published.
        rho: Pull toward equal weights; 0 as published.
        normalize: Whether gradients are scaled to the length of their losses, as in the code;
            False for the paper's algorithm.
        simplex: ``"softmax"`` as in the code, or ``"projection"`` as in the paper.

    Raises:
        ValueError: A setting is out of range.

    Example:
        >>> import torch
        >>> J, losses = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.tensor([2.0, 1.0])
        >>> moco = MoCo(beta=1.0, gamma=1.0, simplex="projection")
        >>> # h = (2, 0), (0, 1): lambda = (.5, .5) - (4, 1) * .5 = (-1.5, 0), on the simplex (0, 1)
        >>> moco.combine(J, losses)
        (tensor([0., 1.]), tensor([0., 1.], dtype=torch.float64))
    """

    requires: ClassVar[Requires] = "jacobian"
    tracks_gradients: ClassVar[bool] = True
    balancer_defaults = EXACT

    def __init__(
        self,
        beta: float = 0.5,
        beta_sigma: float = 0.5,
        gamma: float = 0.1,
        gamma_sigma: float = 0.5,
        rho: float = 0.0,
        normalize: bool = True,
        simplex: str = "softmax",
    ) -> None:
        self.beta = check_positive("beta", beta)
        if self.beta > 1:
            raise ValueError(f"beta must be in (0, 1]. Found beta={beta}.")
        self.beta_sigma = check_positive("beta_sigma", beta_sigma, zero=True)
        self.gamma = check_positive("gamma", gamma)
        self.gamma_sigma = check_positive("gamma_sigma", gamma_sigma, zero=True)
        self.rho = check_positive("rho", rho, zero=True)
        self.normalize = bool(normalize)
        if simplex not in ("softmax", "projection"):
            raise ValueError(f"simplex must be 'softmax' or 'projection'. Found {simplex!r}.")
        self.simplex = simplex
        self._weights = SimplexWeights()
        self._tracked = TrackedGradients()
        self._steps = 0

    def prepare(self, tasks: int, device: torch.device) -> None:
        self._weights.prepare(tasks)
        self._tracked.prepare(tasks)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        raise ValueError(
            "moco follows the gradients entry by entry, which no kernel holds; call combine"
        )

    @with_cpu_default
    def combine(
        self, jacobian: Tensor, losses: Tensor | None = None, tasks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of the tracked gradients, and the weights.

        Args:
            jacobian: See the base class.
            losses: See the base class; needed unless ``normalize`` is off.
            tasks: See the base class.

        Raises:
            ValueError: Losses are missing, or gradients have another length than before.
        """
        tasks = check_jacobian(jacobian, losses, tasks, "moco")
        self.prepare(len(jacobian), jacobian.device)
        factors = None
        if self.normalize:
            if losses is None:
                raise ValueError("moco scales gradients to their losses: pass losses")
            length = norms(jacobian)
            factors = torch.where(length > 0, losses.to(length) / length, 0.0)
        rates = self.beta / self._tracked.count(tasks, "moco") ** self.beta_sigma
        tracked = self._tracked.update(jacobian, tasks, rates, "moco", factors)
        self._steps += 1
        old = self._weights.get(tasks)
        slope = gram(tracked).cpu() @ old + self.rho * old
        moved = old - self.gamma / self._steps**self.gamma_sigma * slope
        softmax = self.simplex == "softmax"
        new = torch.softmax(moved, dim=0) if softmax else project_onto_simplex(moved)
        self._weights.set(tasks, new)
        return (new.to(tracked) @ tracked).to(jacobian.dtype), new

    def _get_state(self) -> dict[str, Any]:
        own = {"weights": self._weights.values, "steps": self._steps}
        return own | self._tracked.state_dict()

    def _set_state(self, state: dict[str, Any]) -> None:
        self._weights.values = state["weights"]
        self._steps = int(state["steps"])
        self._tracked.load_state_dict(state)
