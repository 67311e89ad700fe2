"""From a kernel to weights: moving averages, the method, priorities and length."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ntkmtl.balance._core import Core
from ntkmtl.balance._memory import Averages
from ntkmtl.balance._options import Options
from ntkmtl.balance._step import Step
from ntkmtl.graph import find_cut, leaves
from ntkmtl.kernel import ExtendedNTK

HIDDEN = (
    "the shared parameters lie within a reentrant checkpoint, which hides them from the graph: "
    "call torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
)

DECAY = 0.5
"""Decay of the moving average of ``source="auto"`` if the user gives none (``ema``)."""

__all__ = [
    "DECAY",
    "HIDDEN",
    "keep_held",
    "largest_eigenvalues",
    "observe",
    "prefer",
    "require_finite_weights",
    "to_cpu",
    "weigh",
    "weights_of",
]


def weigh(core: Core, kernel: ExtendedNTK | None, step: Step) -> Tensor:
    """Return the method's weights times priorities, float64 of shape (k,) on the CPU."""
    weights = core.options.weighting(kernel, losses=step.raw, tasks=step.index)
    # Random methods draw on every process: all use the weights of the first.
    weights = weights if step.ranks is None else step.ranks.first(weights)
    return prefer(core, weights, step)


def prefer(core: Core, weights: Tensor, step: Step) -> Tensor:
    """Multiply weights by the user's priorities, p_i / mean(p)."""
    given = core.options.priorities
    if given is None:
        return weights
    if isinstance(given, Mapping):
        numbers = [float(given.get(name, 1.0)) for name in step.names]
    else:
        numbers = [float(p) for p in given]
    factors = torch.tensor(numbers, dtype=torch.float64)
    factors /= factors.mean()
    return weights * factors[step.index].to(weights.device)


def require_finite_weights(weights: Tensor, step: Step) -> None:
    """Raise if a method made a weight that is NaN or infinite, before anything remembers it."""
    values = weights.tolist()
    if not all(map(math.isfinite, values)):
        step.require_finite(weights, "weight")


def keep_held(core: Core, weights: Tensor, step: Step) -> Tensor:
    """Leave the tasks that a ``hold`` block knows at their weights: others are new in it."""
    held = core.held
    if not held:
        return weights
    known = zip(step.present, weights.tolist(), strict=True)
    return torch.tensor([held.get(i, weight) for i, weight in known], dtype=torch.float64)


def to_cpu(kernel: ExtendedNTK, step: Step) -> ExtendedNTK:
    """Copy a kernel to the CPU, and with it everything that waits for a check, in one transfer.

    Raises:
        NonFiniteError: A loss, an entry of the kernel, or a gradient of a head is not finite.
        ValueError: Another check failed.
    """
    values = kernel.values if kernel.has_all_blocks else kernel.blocks
    if values.device.type == "cpu":
        step.bring()
    else:
        values, shares = step.bring(values, kernel.shares)
        kernel = kernel.replaced(values).with_shares(shares)
    if step.scale != 1.0:
        kernel = kernel / step.scale**2
    step.require_finite(kernel.blocks.sum(dim=(1, 2)), "gradient")
    return kernel


def largest_eigenvalues(kernel: ExtendedNTK, step: Step) -> Tensor:
    """Return the largest eigenvalue of each task's block, float64 on the CPU."""
    if step.ranks is None:
        return kernel.max_eigenvalues()
    return step.ranks.max_eigenvalues(kernel)


def observe(core: Core, kernel: ExtendedNTK, step: Step) -> tuple[Tensor, Tensor | None]:
    """Return weights, and eigenvalues if the method reads them, from a kernel on the CPU."""
    kernel = kernel if core.prepare is None else core.prepare(kernel)
    step.kernel = kernel
    require_shared_below(core.options, kernel, step)
    if not step.alone and step.ranks is None:
        step.alone = _sharing_nothing(core.options, kernel, step)
    if not step.alone:
        weights, values = _observe(core, kernel, step)
        return keep_held(core, weights, step), values
    # A task that shares nothing is not balanced, and must not change the others' mean.
    together = [i for i in range(len(step.present)) if i not in step.alone]
    found, values = _observe(core, kernel.select(together), step.narrowed(together))
    weights = prefer(core, torch.ones(len(step.present), dtype=torch.float64), step)
    weights[together] = found
    if core.options.every > 1 or core.options.source == "auto":
        core.memory.remember(weights[step.alone], step.index[step.alone], step.number)
    weights = keep_held(core, weights, step)
    if values is None:
        return weights, None
    eigenvalues = torch.zeros(len(step.present), dtype=torch.float64)
    eigenvalues[together] = values
    return weights, eigenvalues


def _sharing_nothing(options: Options, kernel: ExtendedNTK, step: Step) -> list[int]:
    """Return the positions of the tasks that reach no shared parameter: heads on detached features.

    A cut that is found tells them. Where the user names features or shared parameters, their kernel
    is zero, and so is that of a task whose gradient is.
    """
    some = kernel.blocks.flatten(1).any(dim=1).tolist()
    if all(some) or not any(some):
        return []
    reached = [list(leaves([loss])[0]) for loss in step.losses]
    shared = options.shared
    if shared is None:
        below = [p for own, one in zip(reached, some, strict=True) if one for p in own]
        shared = [p for p in below if isinstance(p, nn.Parameter)] or below
    known = {id(p) for p in shared}
    return [
        i for i, own in enumerate(reached) if not some[i] and known.isdisjoint(id(p) for p in own)
    ]


def _observe(core: Core, kernel: ExtendedNTK, step: Step) -> tuple[Tensor, Tensor | None]:
    options = core.options
    eigenvalues = None
    if options.requires == "eigenvalues":
        eigenvalues = _averaged(core, largest_eigenvalues(kernel, step), step)
        weights = weights_of(core, eigenvalues, step)
    elif options.requires == "gramian" and options.ema:
        smooth = _smoothed(core, kernel.gramian(), step)
        weights = weigh(core, ExtendedNTK(smooth[:, None, :, None]), step)
    else:
        weights = weigh(core, kernel, step)
    factor = 1.0
    require_finite_weights(weights, step)
    if options.length != "method":
        factor = length_factor(core, kernel, weights, step)
        weights = weights * factor
        require_finite_weights(weights, step)
    if options.source == "auto" and eigenvalues is not None:
        _remember_everyone(core, step, factor)
    if options.every > 1 or options.source == "auto":
        core.memory.remember(weights, step.index, step.number)
    return weights, eigenvalues


def _remember_everyone(core: Core, step: Step, factor: float) -> None:
    """Update the stored weights of absent tasks, as the mean of all averages has changed."""
    known, values = _all_averages(core, step)
    if known is None or values is None or len(step.present) == step.total:
        return
    kernel = ExtendedNTK(blocks=values[:, None, None])
    weights = core.options.weighting(kernel, losses=None, tasks=known)
    everyone = step.of_tasks(known)
    core.memory.remember(prefer(core, weights, everyone) * factor, known, step.number)


def require_shared_below(options: Options, kernel: ExtendedNTK, step: Step) -> None:
    """Raise if no loss depends on the shared parameters; every task's kernel is then zero.

    Raises:
        ValueError: The parameters given as ``shared`` belong to another network, or lie within a
            reentrant checkpoint.
    """
    if options.shared is None or not step.losses or options.source == "representation":
        return
    if any(value != 0.0 for value in kernel.blocks.flatten().tolist()):
        return
    below = {id(p) for p in leaves(step.losses)[0]}
    if not any(id(p) in below for p in options.shared):
        if find_cut(step.losses, parallel=step.parallel).hides_parameters:
            raise ValueError(HIDDEN)
        raise ValueError(
            "no loss depends on the shared parameters. Was the network copied or recreated after "
            "the Balancer? Make the Balancer from the parameters of the one that trains"
        )


def _averaged(core: Core, fresh: Tensor, step: Step) -> Tensor:
    """Return the eigenvalues after averaging over steps, if the options say so."""
    options, memory = core.options, core.memory
    if options.source == "auto":
        if memory.logs is None:
            memory.logs = Averages(step.total, options.ema or DECAY)
        memory.logs.add(fresh, step.index)
        return memory.logs.values(step.index)
    return _smoothed(core, fresh, step) if options.ema else fresh


def _smoothed(core: Core, fresh: Tensor, step: Step) -> Tensor:
    """Update the moving average of a vector or matrix at the tasks with labels; return it."""
    memory, decay = core.memory, core.options.ema
    if memory.average is None:
        memory.average = torch.full((step.total,) * fresh.ndim, math.nan, dtype=torch.float64)
    at = (step.index,) if fresh.ndim == 1 else (step.index[:, None], step.index[None, :])
    old = memory.average[at]
    mixed = torch.where(old.isnan(), fresh, decay * old + (1.0 - decay) * fresh)
    memory.average[at] = mixed
    return mixed


def weights_of(core: Core, eigenvalues: Tensor, step: Step) -> Tensor:
    """Return weights from eigenvalues; with a moving average, absent tasks count too.

    So tasks that take turns are balanced with each other.
    """
    known, values = _all_averages(core, step)
    if known is None or values is None or len(step.present) == step.total:
        return weigh(core, ExtendedNTK(blocks=eigenvalues[:, None, None]), step)
    everyone = core.options.weighting(
        ExtendedNTK(blocks=values[:, None, None]), losses=None, tasks=known
    )
    weights = everyone[torch.searchsorted(known, step.index)]
    return prefer(core, weights, step)


def _all_averages(core: Core, step: Step) -> tuple[Tensor | None, Tensor | None]:
    """Return the positions of the tasks that have an average, and these averages."""
    memory = core.memory
    if memory.logs is not None:
        known = torch.unique(torch.cat([memory.logs.known, step.index]))
        return known, memory.logs.values(known)
    if memory.average is not None and memory.average.ndim == 1:
        known = (~memory.average.isnan()).nonzero().flatten()
        return known, memory.average[known]
    return None, None


def length_factor(core: Core, kernel: ExtendedNTK, weights: Tensor, step: Step) -> float:
    r"""Return the factor that gives the combined gradient the length of ``options.length``.

    With the Gramian G of the gradients, :math:`\sqrt{w^T G w}` is the length of their weighted sum,
    and :math:`\sqrt{1^T G 1}` that of plain training's gradient.

    Raises:
        ValueError: The kernel has no blocks between tasks.
    """
    length = core.options.length
    if length == "method":
        return 1.0
    if not kernel.has_all_blocks:
        raise ValueError(
            f"length={length!r} needs products between the tasks' gradients, which do not exist "
            "where tasks have representations of their own; set source='exact', or leave length out"
        )
    gramian = kernel.gramian()
    own = math.sqrt(max(float(weights @ gramian @ weights), 0.0))
    if own == 0.0:
        return 1.0  # a zero gradient has no direction to scale
    if length == "plain":
        # Gradients of log losses are divided by the losses; plain training uses the losses.
        plain = torch.ones_like(weights)
        if step.slope is not None:
            plain = torch.where(step.slope > 0, 1.0 / step.slope, 0.0)
        return math.sqrt(max(float(plain @ gramian @ plain), 0.0)) / own
    if isinstance(length, float):
        return length / own
    memory = core.memory
    if memory.length is None:
        memory.length = own
    return memory.length / own
