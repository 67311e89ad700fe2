"""Mixtures of experts: MMoE, CGC, PLE and DSelect-k, whose gates select a few of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ntkmtl.bench.problems.architectures._backbone import Architecture, Backbone, Head, pooled


def at_least(least: int, **counts: int) -> None:
    """Refuse what is not a whole number of at least ``least``."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise ValueError(
                f"{name} must be a whole number of at least {least}. Found {name}={count!r}."
            )


def mixed(weights: Tensor, experts: Sequence[Tensor]) -> Tensor:
    """Return the weighted sum of experts, sample by sample.

    Args:
        weights: Shape (b, n).
        experts: n outputs of shape (b, ...).

    Returns:
        Shape (b, ...).

    Example:
        >>> mixed(torch.tensor([[0.25, 0.75]]), [torch.zeros(1, 2), torch.ones(1, 2)])
        tensor([[0.7500, 0.7500]])
    """
    return torch.einsum("bn,bn...->b...", weights, torch.stack(list(experts), dim=1))


class SoftmaxGate(nn.Module):
    """softmax(W x): weights of n experts for each sample, without a constant, as in the papers.

    Args:
        inputs: Size of x.
        experts: Number n of experts.
    """

    def __init__(self, inputs: int, experts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, experts, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return weights of shape (b, n) of x of shape (b, inputs)."""
        weights: Tensor = self.linear(x).softmax(dim=1)
        return weights


class MMoE(Architecture):
    r"""Several encoders, the experts, which each task mixes by its own gate.

        f_k(x) = sum_i g_k(x)_i f_i(x),   g_k(x) = softmax(W_gk x),   y_k = h_k(f_k(x))

    Shared are the experts, which every task reads. Gates are not: task k's gate is reached by its
    own loss alone, as its head is.

    Args:
        backbone: The encoder that each expert is one of.
        heads: One maker of a head h_k per task.
        experts: Number of experts; the paper's synthetic experiments have 8.

    Raises:
        ValueError: ``experts`` is below 1, or there is no head.

    References:
        Ma, Zhao, Yi, Chen, Hong, Chi: Modeling task relationships in multi-task learning with
        multi-gate mixture-of-experts. KDD 2018.

    Example:
        >>> backbone = Backbone(lambda: [nn.Linear(3, 4)], (4,), gate=lambda x: x, gate_width=3)
        >>> network = MMoE(backbone, [lambda: nn.Linear(4, 1)] * 2, experts=5)
        >>> [tuple(z.shape) for z in network.represent(torch.zeros(5, 3))]
        [(5, 4), (5, 4)]
        >>> sum(p.numel() for p in network.shared_parameters())  # 5 (3 x 4 + 4)
        80
    """

    summary: ClassVar[str] = "several encoders as experts, mixed by a gate per task"
    private_below: ClassVar[bool] = True

    def __init__(self, backbone: Backbone, heads: Sequence[Head], *, experts: int = 8) -> None:
        at_least(1, experts=experts)
        self.number_of_experts = experts
        super().__init__(backbone, heads)

    def add_encoder(self, backbone: Backbone) -> None:
        """Make the experts and the gates."""
        self.experts = nn.ModuleList(backbone.encoder() for _ in range(self.number_of_experts))
        self.gates = nn.ModuleList(
            self.made_gate(backbone.gate_width) for _ in range(self.number_of_tasks)
        )

    def made_gate(self, inputs: int) -> nn.Module:
        """Make a gate, which maps (b, inputs) to (b, experts)."""
        return SoftmaxGate(inputs, self.number_of_experts)

    def represent(self, batch: Any) -> list[Tensor]:
        """Return each task's z, k tensors of shape (b, ...)."""
        x = self.backbone.read(batch)
        said = [expert(x) for expert in self.experts]
        return [mixed(weights, said) for weights in self.gate_weights(batch)]

    def gate_weights(self, batch: Any) -> list[Tensor]:
        """Return each task's weights of the experts, k tensors of shape (b, experts)."""
        read = pooled(self.backbone.gate(batch))
        return [gate(read) for gate in self.gates]

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the experts."""
        return self.experts.parameters()


class _Level(nn.Module):
    """Experts that all tasks read, experts of each task, and the gates over them."""

    def __init__(
        self,
        stages: Iterator[nn.Module],
        inputs: int,
        tasks: int,
        shared_experts: int,
        task_experts: int,
        last: bool,
    ) -> None:
        super().__init__()
        self.shared = nn.ModuleList(next(stages) for _ in range(shared_experts))
        self.own = nn.ModuleList(
            nn.ModuleList(next(stages) for _ in range(task_experts)) for _ in range(tasks)
        )
        self.gates = nn.ModuleList(
            SoftmaxGate(inputs, task_experts + shared_experts) for _ in range(tasks)
        )
        # What the next level's shared experts read; after the last there are none.
        self.shared_gate = (
            None if last else SoftmaxGate(inputs, tasks * task_experts + shared_experts)
        )

    def forward(
        self, xs: Sequence[Any], gates: Sequence[Tensor], shared_x: Any, shared_read: Tensor | None
    ) -> tuple[list[Tensor], Tensor | None]:
        own_experts: Any = self.own
        shared = [expert(shared_x) for expert in self.shared]
        own = [[e(x) for e in experts] for experts, x in zip(own_experts, xs, strict=True)]
        outputs = [
            mixed(gate(read), [*mine, *shared])
            for gate, read, mine in zip(self.gates, gates, own, strict=True)
        ]
        if self.shared_gate is None or shared_read is None:
            return outputs, None
        everything = [*chain.from_iterable(own), *shared]
        return outputs, mixed(self.shared_gate(shared_read), everything)


class PLE(Architecture):
    r"""Progressive layered extraction: levels of shared experts and of experts of each task.

    Task k's gate mixes its own experts and the shared ones (Eq. 1 to 3),

        g_k(x) = w_k(x) S_k(x),   w_k(x) = softmax(W_gk x),   S_k = [E_k1, ..., E_s1, ...],

    and at level j it reads what it said at the level before (Eq. 5 and 6):

        g_kj(x) = w_kj(g_k,j-1(x)) S_kj(x),   y_k = t_k(g_kN(x)).

    Task k's experts of level j read g_k,j-1, and the shared ones read a mixture of *all* experts of
    the level before, by its own gate. Each stage of the backbone is a level, its experts so
    many of that stage.

    Shared is every parameter that the losses of several tasks reach: all shared experts; below the
    last level also the tasks' own experts and the shared gate, which the next level's shared
    experts read through it; and tasks' gates two levels below the last. Not shared are the tasks'
    experts and gates of the last level, and their gates of the level below it.

    Args:
        backbone: The encoder, of at least 2 stages.
        heads: One maker of a head t_k per task.
        shared_experts: Number of shared experts per level.
        task_experts: Number of experts per task and level. The paper tunes both.

    Raises:
        ValueError: There is one stage only, a number is too small, or there is no head.

    References:
        Tang, Liu, Zhao, Gong: Progressive layered extraction (PLE): a novel multi-task learning
        (MTL) model for personalized recommendations. RecSys 2020.

    Example:
        >>> backbone = Backbone(
        ...     lambda: [nn.Linear(3, 4), nn.Linear(4, 4)], (4, 4), gate=lambda x: x, gate_width=3
        ... )
        >>> network = PLE(backbone, [lambda: nn.Linear(4, 1)] * 2)
        >>> [tuple(z.shape) for z in network.represent(torch.zeros(5, 3))]
        [(5, 4), (5, 4)]
    """

    summary: ClassVar[str] = "levels of shared experts and experts per task, mixed by gates"
    private_below: ClassVar[bool] = True

    def __init__(
        self,
        backbone: Backbone,
        heads: Sequence[Head],
        *,
        shared_experts: int = 1,
        task_experts: int = 1,
    ) -> None:
        at_least(1, shared_experts=shared_experts)
        at_least(0, task_experts=task_experts)
        self._counts = shared_experts, task_experts
        super().__init__(backbone, heads)

    def add_encoder(self, backbone: Backbone) -> None:
        """Make experts and gates of all levels."""
        if len(backbone.widths) < 2:
            raise ValueError(
                "ple needs an encoder of at least 2 stages, one per level. Found 1; with one level "
                "it is cgc."
            )
        self._add_levels(backbone)

    def _add_levels(self, backbone: Backbone) -> None:
        shared, own = self._counts
        k = self.number_of_tasks
        encoders = [backbone.made() for _ in range(shared + k * own)]
        inputs = (backbone.gate_width, *backbone.widths[:-1])
        self.levels = nn.ModuleList(
            _Level((e[j] for e in encoders), inputs[j], k, shared, own, j == len(inputs) - 1)
            for j in range(len(inputs))
        )

    def represent(self, batch: Any) -> list[Tensor]:
        """Return each task's z, k tensors of shape (b, ...)."""
        k = self.number_of_tasks
        x = self.backbone.read(batch)
        read = pooled(self.backbone.gate(batch))
        xs: list[Any] = [x] * k
        gates, shared_x, shared_read = [read] * k, x, read
        for number, level in enumerate(self.levels):
            outputs, mixture = level(xs, gates, shared_x, shared_read)
            pairs = list(zip(xs, outputs, strict=True))
            if mixture is not None:
                gates = [self.backbone.gated(number, *pair) for pair in pairs]
                shared_read = self.backbone.gated(number, shared_x, mixture)
                shared_x = self.backbone.after(number, shared_x, mixture)
            xs = [self.backbone.after(number, *pair) for pair in pairs]
        return xs

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that the losses of several tasks reach."""
        levels: list[Any] = list(self.levels)
        for above, level in zip(reversed(range(len(levels))), levels, strict=True):
            yield from level.shared.parameters()
            if above >= 1:
                yield from level.own.parameters()
                yield from level.shared_gate.parameters()
            if above >= 2 and self._counts[1]:
                # Through the task's experts of the next level and the shared gate there.
                yield from level.gates.parameters()


class CGC(PLE):
    r"""Customized gate control: :class:`PLE` with one level, whose experts are whole encoders.

        g_k(x) = w_k(x) S_k(x),   w_k(x) = softmax(W_gk x),   y_k = t_k(g_k(x))     (Eq. 1 to 4)

    with S_k task k's own experts and the shared ones. Without own experts it is :class:`MMoE`.
    Shared are the shared experts; a task's own experts and gate are reached by its loss alone.
    Arguments and source are those of :class:`PLE`.

    Example:
        >>> backbone = Backbone(lambda: [nn.Linear(3, 4)], (4,), gate=lambda x: x, gate_width=3)
        >>> network = CGC(backbone, [lambda: nn.Linear(4, 1)] * 2, task_experts=2)
        >>> sum(p.numel() for p in network.shared_parameters())  # 3 x 4 + 4
        16
    """

    summary: ClassVar[str] = "encoders as shared experts and experts per task, mixed by gates"

    def add_encoder(self, backbone: Backbone) -> None:
        """Make the experts and the gates."""
        self.backbone = backbone.whole()
        self._add_levels(self.backbone)


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
        ValueError: ``experts`` is not a power of two above 1, ``nonzeros`` is not in 1..n, or
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
