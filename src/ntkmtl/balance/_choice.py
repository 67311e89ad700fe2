"""Which source of the kernel a budget allows: counted, not timed, so that a run can be repeated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from ntkmtl.kernel._autograd import TaskGradients, vjp
from ntkmtl.kernel._features import Features

__all__ = ["Choice", "choose", "exact_price"]


@dataclass(frozen=True)
class Choice:
    """What ``source="auto"`` settled on.

    Attributes:
        source: ``"exact"``, ``"probe"`` or ``"representation"``.
        pooling: How the features' rows make a kernel.
        every: The kernel is computed in each ``every``-th step.
        price: Operations of an exact kernel over those of a step of plain training.
        reason: One sentence.
    """

    source: str
    pooling: str
    every: int
    price: float
    reason: str

    def state(self) -> dict[str, Any]:
        """Return it as plain values."""
        return dict(vars(self))


def _operations(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def exact_price(
    differentiate: Callable[[], TaskGradients],
    features: Features,
    parameters: list[Any],
    minibatches: int,
) -> float:
    """Return what an exact kernel costs, relative to a step of plain training.

    Counted are the multiplications of matrix products and convolutions, with the trunk and the
    heads walked once each for the purpose. A forward pass is taken as half its backward pass.

    Args:
        differentiate: Differentiates the losses with respect to the features, and keeps the graph.
        features: The representation.
        parameters: The shared parameters.
        minibatches: The paper's n.

    Returns:
        Operations of n k passes over the trunk over those of a whole step; infinite if nothing that
        can be counted was seen.
    """
    kept: list[TaskGradients] = []
    heads = _operations(lambda: kept.append(differentiate()))
    gradients = kept[0]
    k = len(gradients.features[0])

    def walk(task: int | None) -> None:
        if features.separate:
            chosen = range(k) if task is None else (task,)
            outputs = [features.tensors[i] for i in chosen]
            cotangents = [gradients.features[0][i] for i in chosen]
        else:
            outputs = list(features.outputs)
            cotangents = [per_task[task or 0] for per_task in gradients.features]
        vjp(outputs, parameters, cotangents)

    trunk = _operations(lambda: walk(None))
    rows = k * trunk
    if features.separate:
        rows = sum(_operations(partial(walk, i)) for i in range(k))
    plain = 1.5 * (heads + trunk)
    return minibatches * rows / plain if plain > 0 and rows > 0 else float("inf")


def choose(price: float, budget: float, *, separate: bool, has_trunk: bool) -> Choice:
    """Choose the most accurate source that fits a budget, as docs/estimators.md found them.

    Args:
        price: See :func:`exact_price`.
        budget: What a step may cost, relative to plain training; above 1.
        separate: Whether each task has a representation of its own.
        has_trunk: Whether the trunk can be run again.
    """
    spare = budget - 1.0
    if price <= spare:
        return Choice("exact", "pooled", 1, price, "exact kernels fit the budget in each step")
    pooling = "pooled" if separate else "blockwise"
    if separate and price <= 10 * spare:
        reason = "exact kernels fit the budget in each tenth step"
        return Choice("exact", pooling, 10, price, reason)
    if has_trunk:
        reason = f"{pooling}, corrected by one probe in ten steps: exact kernels cost too much"
        return Choice("probe", pooling, 1, price, reason)
    reason = f"{pooling}, uncorrected: exact kernels cost too much, and no trunk was given to probe"
    return Choice("representation", pooling, 1, price, reason)
