"""``source="auto"``: exact kernels in a few steps, averaged eigenvalues in between.

The exact eigenvalues of one step are noisy. Their smoothed values are estimated better by rare
exact kernels averaged in logarithms than by one exact kernel in every step, at a fraction of the
cost (docs/estimators.md). No representation is needed, so this is right for any graph.

With many tasks, exact kernels become very rare. If every gradient passes through the
representation, its eigenvalues, which cost almost nothing ("free"), are then used in between. They
are multiplied by the ratio of exact and free eigenvalues averaged over the last exact kernels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ntkmtl.balance._core import Core
from ntkmtl.balance._memory import Averages
from ntkmtl.balance._step import Step
from ntkmtl.balance._weigh import DECAY, largest_eigenvalues, to_cpu
from ntkmtl.kernel import ExtendedNTK

__all__ = [
    "FREE_EVERY",
    "clear_changed",
    "correct",
    "exact_due",
    "free_due",
    "note_exact",
    "note_ratio",
    "period",
    "rare",
]

FREE_EVERY = 16
"""Steps from one kernel of the representation to the next."""

_RARE = 30
"""Steps between exact kernels above which the representation's kernel is used in between."""

_GROWTH, _RARE_GROWTH = 1.5, 3.0
"""Growth of the steps between exact kernels at the start, without and with free kernels."""

_PRICE = 0.7
"""Time of a backward pass relative to a step of plain training."""


def period(core: Core, tasks: int) -> int:
    """Return the number of steps between two exact kernels that the budget allows.

    An exact kernel takes at most one backward pass per task and mini-batch. Passes are counted
    instead of timed, so that runs are reproducible.

    Args:
        core: The Balancer's options and state.
        tasks: Number of tasks k.
    """
    price = _PRICE * tasks * core.options.minibatches
    return max(1, math.ceil(price / (core.options.budget - 1.0)))


def exact_due(core: Core, step: Step) -> bool:
    """Whether this step computes an exact kernel."""
    memory = core.memory
    if any(step.number >= memory.due.get(i, 0) for i in step.present):
        return True
    if memory.known(step.present) is None:
        return True
    if step.ranks is not None:
        return False  # all processes must decide alike, and their graphs may differ
    found = _operations(step)
    return any(memory.operations.get(i) != name for i, name in found.items())


def _operations(step: Step) -> dict[int, str]:
    """Return the name of the operation that returned each local loss."""
    names = {}
    for position, loss in zip(step.local, step.losses, strict=True):
        names[step.present[position]] = "leaf" if loss.grad_fn is None else loss.grad_fn.name()
    return names


def note_exact(core: Core, step: Step) -> None:
    """Schedule the next exact kernel: soon at the start, then as often as the budget allows."""
    memory = core.memory
    longest = period(core, step.total)
    growth = _RARE_GROWTH if rare(core, step) else _GROWTH
    longest = max(longest, core.options.every)
    for i in step.present:
        gap = max(1, core.options.every, math.ceil(growth * memory.gap.get(i, 0)))
        memory.gap[i] = min(longest, gap)
        memory.due[i] = step.number + memory.gap[i]
    memory.operations.update(_operations(step))


def rare(core: Core, step: Step) -> bool:
    """Whether exact kernels are so rare that the representation's kernel is used in between."""
    return period(core, step.total) > _RARE and core.options.requires == "eigenvalues"


def free_due(core: Core, step: Step) -> bool:
    """Whether this step computes the representation's kernel."""
    memory = core.memory
    return rare(core, step) and memory.ratio is not None and step.number % FREE_EVERY == 0


def note_ratio(core: Core, step: Step, exact: ExtendedNTK, free: ExtendedNTK) -> None:
    """Update the average ratio of exact and free eigenvalues."""
    memory = core.memory
    if memory.ratio is None:
        memory.ratio = Averages(step.total, core.options.ema or DECAY)
    free = to_cpu(free, step)
    found = largest_eigenvalues(exact, step) / largest_eigenvalues(free, step)
    usable = torch.where(found.isfinite(), found, 0.0)
    memory.ratio.add(usable, step.index)


def correct(core: Core, step: Step, free: ExtendedNTK) -> ExtendedNTK:
    """Return the free kernel with each task's eigenvalues multiplied by its average ratio."""
    ratio = core.memory.ratio
    assert ratio is not None
    factors: Tensor = ratio.values(step.index)
    factors = torch.where(factors > 0, factors, 1.0)
    return free.weighted(factors.sqrt())


def clear_changed(core: Core, signatures: dict[int, str]) -> None:
    """Clear the averages of tasks whose cut has changed."""
    memory = core.memory
    changed = [
        i
        for i, signature in signatures.items()
        if memory.signatures.setdefault(i, signature) != signature
    ]
    if not changed:
        return
    memory.signatures.update({i: signatures[i] for i in changed})
    at = torch.tensor(changed)
    for averages in (memory.logs, memory.ratio):
        if averages is not None:
            averages.clear(at)
    if memory.average is not None and memory.average.ndim == 1:
        memory.average[at] = math.nan
