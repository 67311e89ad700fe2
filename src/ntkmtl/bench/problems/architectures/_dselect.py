"""DSelect-k: a gate that selects at most k experts and is smooth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ntkmtl.bench.problems.architectures._backbone import Backbone, Head
from ntkmtl.bench.problems.architectures._experts import MMoE, at_least


def smooth_step(t: Tensor, gamma: float = 1.0) -> Tensor:
    r"""Return the cubic smooth-step of each entry.

        S(t) = 0                                     for t <= -gamma / 2,
               -2 t^3 / gamma^3 + 3 t / (2 gamma) + 1/2   in between,
               1                                     for t >= gamma / 2.

    It is continuously differentiable, and exactly 0 or 1 outside of an interval of length gamma.

    Args:
        t: Any shape.
        gamma: Length of the interval, above 0.

    Example:
        >>> smooth_step(torch.tensor([-1.0, -0.25, 0.0, 0.5]))
        tensor([0.0000, 0.1562, 0.5000, 1.0000])
    """
    # At the ends of the interval, value and slope of the cubic are those of the constants.
    t = t.clamp(-gamma / 2, gamma / 2)
    return -2 / gamma**3 * t**3 + 3 / (2 * gamma) * t + 0.5


class _Constant(nn.Module):
    """The same numbers for every sample, whatever its content."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(size))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias.expand(len(x), -1)


class DSelectKGate(nn.Module):
    r"""Weights of n experts, at most ``nonzeros`` of which are not zero once z is binary.

    Each of ``nonzeros`` selectors r picks one expert by its number in binary, of m = log2 n digits
    S(z_1), ..., S(z_m) (the single-expert selector of the paper):

        r(z)_i = prod over digits j of  S(z_j) where digit j of i is 1, else 1 - S(z_j),

    and the gate is q = sum over selectors of softmax(alpha)_s r(z_s). Its weights are not negative
    and sum to 1, exactly so for any z as n is a power of two. The paper's penalty on the selectors'
    entropy, which makes them binary sooner, is not a part of the gate; losses here have none.

    Args:
        inputs: Size of what the gate reads.
        experts: Number n of experts, a power of two.
        nonzeros: Most experts that a sample selects, the paper's k.
        gamma: Interval of the smooth-step.
        static: Whether z and alpha are parameters (the paper's static gate), not linear in the
            input (per-example gating).

    Raises:
        ValueError: ``experts`` is no power of two above 1, ``nonzeros`` is not in 1..n, or
            ``gamma`` is not positive.
    """

    codes: Tensor

    def __init__(
        self, inputs: int, experts: int, nonzeros: int, gamma: float = 1.0, static: bool = False
    ) -> None:
        super().__init__()
        at_least(2, experts=experts)
        at_least(1, nonzeros=nonzeros)
        if experts & (experts - 1):
            raise ValueError(
                "dselect-k numbers experts in binary: experts must be a power of two. Found "
                f"experts={experts}."
            )
        if nonzeros > experts:
            raise ValueError(
                f"nonzeros must not be above experts. Found nonzeros={nonzeros}, experts={experts}."
            )
        if not gamma > 0.0:
            raise ValueError(f"gamma must be above 0. Found gamma={gamma}.")
        digits = experts.bit_length() - 1
        self.nonzeros, self.gamma, self.digits = nonzeros, float(gamma), digits
        self.z, self.alpha = (
            _Constant(size) if static else nn.Linear(inputs, size)
            for size in (nonzeros * digits, nonzeros)
        )
        numbers = torch.arange(experts)[:, None] >> torch.arange(digits)
        self.register_buffer("codes", (numbers & 1).bool(), persistent=False)
        # The published code's start: near the middle of the smooth-step, where its slope is.
        for layer, bound in ((self.z, gamma / 100), (self.alpha, 0.05)):
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound)

    def selectors(self, x: Tensor) -> Tensor:
        """Return r of each selector, shape (b, nonzeros, n), of x of shape (b, inputs)."""
        z = self.z(x).view(len(x), self.nonzeros, self.digits)
        steps = smooth_step(z, self.gamma)[:, :, None, :]
        found = steps.new_ones(len(x), self.nonzeros, len(self.codes))
        for digit in range(self.digits):
            step = steps[..., digit]
            found = found * torch.where(self.codes[:, digit], step, 1 - step)
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return weights of shape (b, n) of x of shape (b, inputs)."""
        alpha = self.alpha(x).softmax(dim=1)
        return torch.einsum("bs,bsn->bn", alpha, self.selectors(x))


class DSelectK(MMoE):
    r"""MMoE whose gates select at most ``nonzeros`` experts: :class:`DSelectKGate`.

    Shared are the experts, as in :class:`MMoE`, not the gates.

    Args:
        backbone: The encoder that each expert is one of.
        heads: One maker of a head per task.
        experts: Number of experts, a power of two.
        nonzeros: Most experts that a task selects, the paper's k.
        gamma: Interval of the smooth-step; 1 in the published code.
        static: Whether a task selects the same experts for all samples.

    Raises:
        ValueError: As for :class:`DSelectKGate`, or there is no head.

    References:
        Hazimeh, Zhao, Chowdhery, Sathiamoorthy, Chen, Mazumder, Hong, Chi: DSelect-k:
        Differentiable selection in the mixture of experts with applications to multi-task learning.
        NeurIPS 2021.
    """

    summary: ClassVar[str] = "several encoders as experts, of which each task selects a few"

    def __init__(
        self,
        backbone: Backbone,
        heads: Sequence[Head],
        *,
        experts: int = 8,
        nonzeros: int = 2,
        gamma: float = 1.0,
        static: bool = False,
    ) -> None:
        self._gate = {"nonzeros": nonzeros, "gamma": gamma, "static": static}
        super().__init__(backbone, heads, experts=experts)

    def made_gate(self, inputs: int) -> nn.Module:
        """Make a gate, which maps (b, inputs) to (b, experts)."""
        return DSelectKGate(
            inputs,
            self.number_of_experts,
            int(self._gate["nonzeros"]),
            float(self._gate["gamma"]),
            bool(self._gate["static"]),
        )
