"""``source="auto"``: exact kernels rarely, averages in between.

One step's exact eigenvalues are noise to a good part, and a rare exact kernel, averaged in
logarithms, comes nearer to their smoothed values than one in every step, at a fraction of the cost
(docs/estimators.md). It needs no representation, so it is right for any graph.

Where there are so many tasks that exact kernels are very rare, and the representation carries every
gradient, its free eigenvalues are looked at in between, times the factor that the last exact
kernels found between the two.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ntkmtl.balance._memory import Averages
from ntkmtl.balance._step import Step
from ntkmtl.balance._weigh import DECAY, Core, largest_eigenvalues, to_cpu
from ntkmtl.kernel import ExtendedNTK

__all__ = [
    "FREE_EVERY",
    "begin_anew",
    "corrected",
    "exact_due",
    "free_due",
    "note_exact",
    "note_ratio",
    "period",
    "rare",
]

FREE_EVERY = 16
"""Steps between two looks at a representation."""

_RARE = 30
"""Steps between exact kernels above which the representation is looked at in between."""

_GROWTH, _RARE_GROWTH = 1.5, 3.0
"""How the steps between two exact kernels grow at first, without and with looks in between."""

_PRICE = 0.7
"""A backward pass over a whole step of plain training."""


def period(core: Core, tasks: int) -> int:
    """Return the steps between two exact kernels that the budget allows.

    An exact kernel takes at most one backward pass for each task and mini-batch. Counted, not
    timed, so that a run can be repeated.

    Args:
        core: What the Balancer's steps work with.
        tasks: Number of tasks k.
    """
    price = _PRICE * tasks * core.options.minibatches
    return max(1, math.ceil(price / (core.options.budget - 1.0)))


def exact_due(core: Core, step: Step) -> bool:
    """Whether this step makes an exact kernel."""
    memory = core.memory
    if any(step.number >= memory.due.get(i, 0) for i in step.present):
        return True
    if memory.known(step.present) is None:
        return True
    if step.ranks is not None:
        return False  # processes must agree, and their graphs may differ
    found = _operations(step)
    return any(memory.operations.get(i) != name for i, name in found.items())


def _operations(step: Step) -> dict[int, str]:
    """Return the operation that each local loss comes out of."""
    names = {}
    for position, loss in zip(step.local, step.losses, strict=True):
        names[step.present[position]] = "leaf" if loss.grad_fn is None else loss.grad_fn.name()
    return names


def note_exact(core: Core, step: Step) -> None:
    """Set when the next exact kernel is due: soon at first, then as rarely as the budget says."""
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
    """Whether exact kernels are so rare that the representation is looked at in between."""
    return period(core, step.total) > _RARE and core.options.requires == "eigenvalues"


def free_due(core: Core, step: Step) -> bool:
    """Whether this step looks at the representation."""
    memory = core.memory
    return rare(core, step) and memory.ratio is not None and step.number % FREE_EVERY == 0


def note_ratio(core: Core, step: Step, exact: ExtendedNTK, free: ExtendedNTK) -> None:
    """Learn the factor between exact and free eigenvalues of this step."""
    memory = core.memory
    if memory.ratio is None:
        memory.ratio = Averages(step.total, core.options.ema or DECAY)
    free = to_cpu(free, step)
    found = largest_eigenvalues(exact, step) / largest_eigenvalues(free, step)
    usable = torch.where(found.isfinite(), found, 0.0)
    memory.ratio.add(usable, step.index)


def corrected(core: Core, step: Step, free: ExtendedNTK) -> ExtendedNTK:
    """Return the free kernel times the factors known, as the exact one would be."""
    ratio = core.memory.ratio
    assert ratio is not None
    factors: Tensor = ratio.values(step.index)
    factors = torch.where(factors > 0, factors, 1.0)
    return free.weighted(factors.sqrt())


def begin_anew(core: Core, signatures: dict[int, str]) -> None:
    """Forget the averages of tasks whose part of the graph is another than before."""
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
