"""Adding weighted gradients to ``.grad``: all of them, or none if one is not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from ntkmtl._device import read
from ntkmtl.balance._core import Core
from ntkmtl.balance._step import Step
from ntkmtl.errors import NonFiniteError
from ntkmtl.graph import (
    TaskGradients,
    accumulate,
    add_to_grad,
    as_real,
    differentiate,
    has_hooks,
    leaves,
    plain_backward,
)

__all__ = [
    "HeadGradients",
    "add",
    "checked",
    "dense",
    "extra_gradients",
    "fill_checked",
    "from_flat",
    "in_two_passes",
    "may_overflow",
    "ordinary",
    "repeated",
    "require_one_kind",
    "undone_if_not_finite",
    "weighted_gradients",
]

_SMALL = 1 << 16
"""Number of entries up to which gradients are concatenated to be checked at once."""
_LARGE = 1e15
"""Weights up to this are safe in float32: products with gradients up to 1e23 are finite."""


def may_overflow(
    core: Core, step: Step, weights: Sequence[float], gradients: Sequence[Tensor] = ()
) -> bool:
    """Whether weighted gradients must be checked before they are added to ``.grad``.

    True for float16 and for extreme weights. False with a gradient scaler, which does the check.

    Args:
        core: The Balancer's options and state.
        step: The step.
        weights: Weights of the local tasks.
        gradients: The gradients to be weighted, if known.
    """
    if step.scaled or step.parallel:
        return False
    if core.half is None:
        core.half = any(p.dtype is torch.float16 for p in leaves(step.losses)[0])
    if core.half or any(g.dtype is torch.float16 for g in gradients):
        return True
    return max(map(abs, weights), default=0.0) > _LARGE


def ordinary(core: Core, step: Step, weights: Tensor, *, careful: bool = False) -> None:
    """Run one ordinary backward pass of the weighted sum, with all hooks.

    If weighted gradients may overflow and there are no hooks, or if hooks run once ``.grad`` is
    filled, gradients are checked before they are added to ``.grad``.

    Args:
        core: The Balancer's options and state.
        step: The step.
        weights: Weights of the tasks of ``step.present``, on the CPU.
        careful: Check gradients first in any case, unless there are hooks.

    Raises:
        NonFiniteError: A weight or a weighted gradient is not finite.
    """
    local = step.of_local(weights)
    losses = list(step.losses)
    for name, loss, weight in zip(step.local_names, losses, local, strict=True):
        step.require_representable(name, weight, loss.dtype)
    if step.extra is not None:
        losses.append(step.extra)
        local = [*local, 1.0]
    if not losses:
        return
    if (careful or step.late or may_overflow(core, step, local)) and not step.parallel:
        parameters = list(leaves(losses)[0])
        if step.late or not any(map(has_hooks, parameters)):
            fill_checked(step, weighted_gradients(losses, local, parameters, retain=False), local)
            return
    plain_backward(losses, local)


def repeated(core: Core, step: Step, weights: Tensor) -> None:
    """Run an ordinary backward pass without the gradients of a kernel, and undo it if it fails.

    Without a kernel, gradients that are not finite show only in ``.grad``. If ``.grad`` was empty,
    it is checked afterwards and emptied again. If it holds gradients of other batches, the new ones
    are checked before they are added; with hooks, a copy of ``.grad`` is kept to restore it.

    Raises:
        NonFiniteError: A gradient is not finite.
    """
    if step.scaled or step.parallel:
        step.bring()
    if step.scaled:
        ordinary(core, step, weights)  # the scaler checks all gradients
        return
    parameters = step.scan.leaves
    empty = all(p.grad is None for p in parameters)
    # Hooks run in an ordinary pass only, which adds to ``.grad`` at once.
    if not step.late and (empty or step.parallel or any(map(has_hooks, parameters))):
        with undone_if_not_finite(step):
            ordinary(core, step, weights)
    else:
        ordinary(core, step, weights, careful=True)


def checked(step: Step) -> AbstractContextManager[None]:
    """Return :func:`undone_if_not_finite`, or nothing where gradients are checked elsewhere.

    With a scaler, that checks them; with several processes nothing does. Where hooks run once
    ``.grad`` is filled, gradients are checked before they are added.
    """
    if step.scaled or step.parallel or step.late:
        return nullcontext()
    return undone_if_not_finite(step)


@contextmanager
def undone_if_not_finite(step: Step) -> Iterator[None]:
    """Check ``.grad`` after a backward pass, and restore it if an entry is not finite.

    Raises:
        NonFiniteError: An entry is not finite.
    """
    parameters = step.scan.leaves
    before = [(p, None if p.grad is None else p.grad.clone()) for p in parameters]
    yield
    known = [dense(p.grad) for p, _ in before if p.grad is not None]
    try:
        (length,) = step.bring(_length(known)) if known else (torch.zeros(()),)
        if bool(length.isfinite()) or _finite_entries(known):
            return
        extra = [] if step.extra is None else ["extra"]
        step.fail("gradient", math.nan, name=" or ".join([*step.local_names, *extra]))
    except NonFiniteError:
        for p, gradient in before:
            if gradient is None or p.grad is None or gradient.layout is not torch.strided:
                p.grad = gradient
            else:
                p.grad.copy_(gradient)  # in place: DDP keeps views of its buckets here
        raise


def _length(gradients: Sequence[Tensor]) -> Tensor:
    """Return a norm of all entries: finite only if all entries are, except that it may overflow."""
    alike = len({(g.dtype, g.device) for g in gradients}) == 1
    if alike and sum([g.numel() for g in gradients]) <= _SMALL:
        joined = torch.cat([g.reshape(-1) for g in gradients])
        length: Tensor = torch.linalg.vector_norm(as_real(joined), dtype=torch.float64)
        return length
    if alike:
        norms = torch.stack(torch._foreach_norm(list(gradients)))
    else:
        device = gradients[0].device
        norms = torch.stack([torch.linalg.vector_norm(g).to(device) for g in gradients])
    return as_real(norms).sum(dtype=torch.float64)


def _finite_entries(gradients: Sequence[Tensor]) -> bool:
    """Whether every entry is finite; exact, but slower than a norm."""
    device = gradients[0].device
    found = torch.stack([as_real(g).isfinite().all().to(device) for g in gradients])
    return bool(read(found.all())[0])


def weighted_gradients(
    losses: Sequence[Tensor],
    weights: Sequence[float],
    parameters: Sequence[Tensor],
    *,
    retain: bool,
) -> list[tuple[Tensor, Tensor]]:
    """Return parameters with copies of their gradients of the weighted sum; ``.grad`` stays."""
    if not parameters:
        return []
    seeds = [torch.full_like(loss, w) for loss, w in zip(losses, weights, strict=True)]
    found = differentiate(losses, parameters, seeds, retain=retain)
    # The engine may return one tensor for two parameters, as for both terms of a sum.
    return [(p, g.clone()) for p, g in zip(parameters, found, strict=True) if g is not None]


def fill_checked(
    step: Step, pairs: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]
) -> None:
    """Add weighted gradients to ``.grad``, unless one is not finite.

    Args:
        step: The step.
        pairs: Parameters and gradients.
        weights: Weights of the local tasks. An error names the task with the largest weight.

    Raises:
        NonFiniteError: A gradient is not finite.
    """
    if not pairs:
        return
    entries = [dense(g) for _, g in pairs]
    (length,) = step.bring(_length(entries))
    if not (bool(length.isfinite()) or _finite_entries(entries)):
        step.fail("weighted gradient", math.inf, largest=weights[: len(step.local)])
    add(step, pairs)


def add(step: Step, pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Add all known gradients of a step to ``.grad``, and run hooks that wait for it.

    Raises:
        ValueError: Some parameters have hooks of both kinds; see :func:`require_one_kind`.
    """
    if pairs:
        require_one_kind(step)
    if step.late is False:
        add_to_grad(pairs)
    else:
        accumulate(pairs)


def require_one_kind(step: Step) -> None:
    """Raise if hooks of two kinds exist, which one ordinary backward pass alone runs once each.

    Raises:
        ValueError: They do.
    """
    if step.mixed:
        raise ValueError(
            "some parameters have hooks on their gradients (register_hook) and some have hooks "
            "that run once .grad is filled (register_post_accumulate_grad_hook, or on the node "
            "that fills it): both run once in a single ordinary backward pass only, and this "
            "method needs another way here. Use hooks of one kind, or a method that weighs whole "
            "gradients with weight_heads=True and hooked=True. No .grad was changed"
        )


def extra_gradients(step: Step) -> list[tuple[Tensor, Tensor]]:
    """Return the gradients of the loss outside the balance, by parameter."""
    if step.extra is None:
        return []
    return weighted_gradients([step.extra], [1.0], list(leaves([step.extra])[0]), retain=False)


def in_two_passes(
    core: Core,
    step: Step,
    heads: Sequence[Tensor],
    on_heads: Sequence[float],
    shared: Sequence[Tensor],
    on_shared: Sequence[float],
    extra: Tensor | None,
) -> None:
    """Run one pass to the heads' parameters and one to the shared ones, with different weights.

    A loss outside the balance is added in both, so that each parameter's hooks run once.

    Raises:
        ValueError: Hooks need a single pass; see :func:`require_one_kind`.
    """
    losses, keep = step.losses, step.extra is not extra
    require_one_kind(step)
    for name, loss, one, other in zip(step.local_names, losses, on_shared, on_heads, strict=True):
        step.require_representable(name, one, loss.dtype)
        step.require_representable(name, other, loss.dtype)
    careful = step.late or may_overflow(core, step, [*on_shared, *on_heads])
    if extra is not None:
        losses, on_heads, on_shared = [*losses, extra], [*on_heads, 1.0], [*on_shared, 1.0]
    if careful:
        pairs = weighted_gradients(losses, on_heads, heads, retain=True)
        pairs += weighted_gradients(losses, on_shared, shared, retain=keep)
        fill_checked(step, pairs, on_shared)
        return
    if heads:
        plain_backward(losses, on_heads, inputs=heads, retain=True)
    plain_backward(losses, on_shared, inputs=shared, retain=keep)


def dense(gradient: Tensor) -> Tensor:
    """Return a gradient; of a sparse one its stored values."""
    return gradient if gradient.layout is torch.strided else gradient.coalesce().values()


def from_flat(parameters: Sequence[Tensor], flat: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Split a flat gradient into pairs of a parameter and its gradient.

    A complex entry takes two places of the flat gradient.
    """
    sizes = [p.numel() * (2 if p.is_complex() else 1) for p in parameters]
    return [(p, _shaped(part, p)) for p, part in zip(parameters, flat.split(sizes), strict=True)]


def _shaped(part: Tensor, parameter: Tensor) -> Tensor:
    if not parameter.is_complex():
        return part.view_as(parameter).clone()
    return torch.view_as_complex(part.view(*parameter.shape, 2).clone())


class HeadGradients:
    """The gradients of the heads' parameters, which are checked and then weighted.

    Args:
        gradients: Gradients of the tasks with labels in this process.
    """

    def __init__(self, gradients: TaskGradients) -> None:
        self._counts = [len(head) for head in gradients.heads]
        self._parameters = [p for head in gradients.heads for p, _ in head]
        self._gradients = [g for head in gradients.heads for _, g in head]

    def await_finite(self, step: Step) -> None:
        """Schedule a check for NaN and infinity, done with the step's next transfer to the CPU.

        The check raises :class:`NonFiniteError`, which names the task.
        """
        if not self._gradients:
            return
        entries = [dense(g) for g in self._gradients]

        def check(length: Tensor) -> None:
            if not (bool(length.isfinite()) or _finite_entries(entries)):
                self._find(step, entries)

        step.waiting.append((_length(entries), check))

    def _find(self, step: Step, entries: Sequence[Tensor]) -> None:
        """Raise :class:`NonFiniteError` for the task whose gradient is not finite."""
        worst = torch.zeros(len(step.present), dtype=torch.float64)
        start = 0
        for position, count in zip(step.local, self._counts, strict=True):
            for g in entries[start : start + count]:
                real = as_real(g)
                if not bool(real.isfinite().all()):
                    worst[position] = real[~real.isfinite()][0]
            start += count
        step.require_finite(worst, "gradient")

    def weighted(self, weights: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """Return parameters with their gradients, multiplied by the tasks' weights."""
        if not self._parameters:
            return []
        per_gradient = [w for w, n in zip(weights, self._counts, strict=True) for _ in range(n)]
        # Multiplied out of place even by 1: the engine may return the same tensor twice.
        if all(g.layout is torch.strided for g in self._gradients):
            scaled = list(torch._foreach_mul(self._gradients, per_gradient))
        else:
            scaled = [g * w for g, w in zip(self._gradients, per_gradient, strict=True)]
        return list(zip(self._parameters, scaled, strict=True))
