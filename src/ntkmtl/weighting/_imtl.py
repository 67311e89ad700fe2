"""Impartial multi-task learning, both halves."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._base import Requires, Weighting, check_positive
from ntkmtl.weighting._imtl_g import impartial_weights
from ntkmtl.weighting._imtl_l import require_not_negative
from ntkmtl.weighting._method import EXACT_HEADS, SearchRange, method
from ntkmtl.weighting._task_adam import TaskAdam
from ntkmtl.weighting._task_parameter import LARGEST_EXPONENT

__all__ = ["IMTL"]


@method(
    "imtl",
    family="gradients",
    summary="Impartial, both halves: equal projections on gradients of losses of one scale",
    paper="Liu et al.: Towards Impartial Multi-Task Learning, ICLR 2021",
)
class IMTL(Weighting):
    r"""Equal projections on the gradients of losses that are brought to one scale.

    The hybrid balance of "Towards Impartial Multi-Task Learning": the loss half scales the losses
    to :math:`e^{s_i} \ell_i - s_i` and learns the :math:`s_i` by descending on their sum; the
    gradient half (Eq. 5, as in ``imtl-g``) finds :math:`\alpha`, summing to 1, with equal
    projections of :math:`\sum_i \alpha_i e^{s_i} g_i` on every gradient. The weights are
    :math:`\alpha_i e^{s_i}`. All :math:`s_i` start at 0, where the method is ``imtl-g``. Each step
    uses the scales before its own update. A call without losses shows the weights and learns
    nothing. The :math:`s_i` are held between -64 and 64, as a loss that stays at zero has no best
    one.

    Two things differ from the paper. The scales have an Adam of their own, so that nothing has to
    be handed to the model's optimizer. And heads get the same weights as the shared part, or none
    (``weight_heads``), where the paper gives them :math:`e^{s_i}`.

    Args:
        learning_rate: Of the scales. Ours: in the paper it is the network's.

    Raises:
        ValueError: The learning rate is not positive, or, on use, a loss is negative.

    Example:
        >>> import torch
        >>> from ntkmtl import ExtendedNTK
        >>> K = ExtendedNTK(torch.diag(torch.tensor([1.0, 9.0])).reshape(2, 1, 2, 1))
        >>> IMTL()(K, losses=torch.tensor([1.0, 2.0]))  # first step: as imtl-g
        tensor([0.7500, 0.2500], dtype=torch.float64)
    """

    requires: ClassVar[Requires] = "gramian"
    balancer_defaults = EXACT_HEADS
    search_space = (
        SearchRange(
            "learning_rate",
            0.0001,
            0.01,
            0.001,
            log=True,
            reason="a factor of 10 around the default",
        ),
    )
    needs_positive_losses: ClassVar[bool] = True

    def __init__(self, learning_rate: float = 1e-3) -> None:
        self.learning_rate = check_positive("learning_rate", learning_rate)
        self._adam = TaskAdam(self.learning_rate, 0.0)

    def prepare(self, tasks: int, device: torch.device) -> None:
        self._adam.prepare(tasks, device)

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        if losses is not None:
            require_not_negative("imtl", losses)
        logarithms = self._adam.prepare(kernel.tasks, tasks.device)
        # A loss that stays at zero has no best scale: it would grow without end.
        scale = logarithms.clamp_(-LARGEST_EXPONENT, LARGEST_EXPONENT)[tasks].exp()
        gramian = kernel.gramian().to(scale)
        alpha = impartial_weights(gramian * scale[:, None] * scale[None, :])
        if losses is not None:
            self._adam.step(scale * losses.to(scale) - 1.0, tasks)
        return alpha * scale

    def _get_state(self) -> dict[str, Any]:
        return self._adam.state_dict()

    def _set_state(self, state: dict[str, Any]) -> None:
        self._adam.load_state_dict(state)
