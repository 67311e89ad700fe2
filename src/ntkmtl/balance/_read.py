"""The argument ``losses`` in all its forms, checked and converted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from ntkmtl._device import read
from ntkmtl.balance._step import Samples
from ntkmtl.kernel._ranks import Ranks
from ntkmtl.weighting._losses import logarithm, reciprocals

__all__ = [
    "Loss",
    "Losses",
    "in_order",
    "joint_losses",
    "logarithms",
    "read_loss",
    "task_names",
    "without_labels",
]

Loss = Tensor | tuple[Tensor, Tensor] | None
"""A mean loss, losses of single samples, a pair of those and a mask, or None for no label."""
Losses = Sequence[Loss] | Mapping[str, Loss]


def task_names(losses: Any, known: Sequence[str] | None = None) -> tuple[tuple[str, ...], Losses]:
    """Return the tasks' names (keys or positions), and the losses as a sequence or dict.

    Args:
        losses: What the user passed.
        known: Names of the tasks, where they are known: a dict may then leave out all of them.

    Raises:
        TypeError: The losses are neither a sequence nor a dict.
        ValueError: There are no losses.
    """
    if isinstance(losses, Mapping):
        names = tuple(losses)
        if not all(isinstance(name, str) for name in names):
            raise TypeError(f"names of tasks must be strings, found {list(names)!r}")
        values: Losses = losses
    elif isinstance(losses, Tensor):
        if losses.ndim == 0:
            raise TypeError(
                "losses must be a sequence or a dict of k losses, one per task; found one scalar. "
                "Pass the losses before they are added up"
            )
        values = list(losses)
        names = tuple(str(i) for i in range(len(values)))
    elif isinstance(losses, Set):
        raise TypeError(
            "losses must be a sequence or a dict of k losses, one per task; a set has no order"
        )
    elif isinstance(losses, Iterable) and not isinstance(losses, str | bytes):
        values = list(losses)  # a generator is read once
        names = tuple(str(i) for i in range(len(values)))
    else:
        raise TypeError(
            f"losses must be a sequence or a dict of k losses, one per task; found {type(losses)}"
        )
    if not names and not (known and isinstance(losses, Mapping)):
        raise ValueError("losses is empty; give one loss per task, None for a task without a label")
    return names, values


def in_order(losses: Losses, names: Sequence[str]) -> list[Loss]:
    """Return the losses in the order of the tasks, None for those that are missing in a dict.

    Raises:
        ValueError: A name is unknown, or the number of losses is wrong.
    """
    if isinstance(losses, Mapping):
        unknown = sorted(set(losses) - set(names))
        if unknown:
            raise ValueError(
                f"losses of unknown tasks {unknown}; the tasks are {list(names)}. Name all of them "
                "with Balancer(..., tasks=[...])"
            )
        return [losses.get(name) for name in names]
    if len(losses) != len(names):
        raise ValueError(
            f"found {len(losses)} losses for {len(names)} tasks; give None for a task without a "
            "label"
        )
    return list(losses)


def read_loss(
    loss: Any, name: str, *, needs_gradient: bool = True
) -> tuple[Tensor, Samples | None] | None:
    """Return a task's mean loss, and its samples' losses if given; None without a label.

    Raises:
        TypeError: The loss is not a tensor.
        ValueError: It has a wrong shape, or no gradient.
    """
    if loss is None:
        return None
    if isinstance(loss, Tensor) and loss.ndim == 0 and loss.requires_grad and not loss.is_complex():
        return loss, None
    samples = _samples(loss, name)
    mean = samples.values if samples.values.ndim == 0 else samples.mean()
    if mean is None:
        return None
    if needs_gradient and not mean.requires_grad:
        raise ValueError(
            f"the loss of task {name} does not require a gradient: give None for a task without a "
            "label in this batch; else look for a detach() or torch.no_grad() on its way, or for a "
            "network all of whose parameters are frozen"
        )
    return mean, samples if samples.values.ndim == 1 else None


def _samples(loss: Any, name: str) -> Samples:
    mask = None
    if isinstance(loss, tuple):
        if len(loss) != 2 or not all(isinstance(part, Tensor) for part in loss):
            raise TypeError(
                f"the loss of task {name} must be a tensor, or a pair (values, mask) of tensors; "
                f"found a tuple of {[type(part).__name__ for part in loss]}"
            )
        loss, mask = loss
    if not isinstance(loss, Tensor):
        raise TypeError(f"the loss of task {name} must be a tensor or None, found {type(loss)}")
    if loss.is_complex():
        raise ValueError(
            f"the loss of task {name} is complex; a loss is a real number: take its real part or "
            "its absolute value"
        )
    if mask is not None:
        if loss.ndim != 1 or mask.shape != loss.shape:
            raise ValueError(
                f"(values, mask) of task {name} must have one shape (B,), found "
                f"{tuple(loss.shape)} and {tuple(mask.shape)}"
            )
        return Samples(loss, _which_count(mask.detach(), name))
    if loss.ndim > 1 and loss.numel() != 1:
        raise ValueError(
            f"the loss of task {name} must be a scalar, the mean over the batch, or losses of "
            f"single samples of shape (B,); found shape {tuple(loss.shape)}; take its mean over "
            "all but the samples"
        )
    if loss.ndim != 1 or loss.numel() == 1:
        return Samples(loss.reshape(()))
    return Samples(loss)


def _which_count(mask: Tensor, name: str) -> Tensor:
    """Return a mask as booleans.

    Raises:
        ValueError: It has values other than 0 and 1.
    """
    chosen = mask.to(torch.bool)
    if mask.dtype is not torch.bool and not bool((mask == chosen).all()):
        raise ValueError(
            f"the mask of task {name} holds numbers other than 0 and 1; a mask says which samples "
            "count. Multiply the values by the weights of their samples instead"
        )
    return chosen


def without_labels(values: Sequence[Loss], counts: Any) -> list[Loss]:
    """Replace the losses of tasks that have no label by ``counts`` with None.

    Raises:
        TypeError: ``counts`` is not a tensor of real numbers.
        ValueError: It has a wrong shape.
    """
    if not isinstance(counts, Tensor) or counts.is_complex():
        found = counts.dtype if isinstance(counts, Tensor) else type(counts)
        raise TypeError(f"counts must be a tensor of shape (k, B) of real numbers, found {found}")
    if counts.ndim != 2 or len(counts) != len(values) or not counts.shape[1]:
        raise ValueError(
            f"counts must have shape ({len(values)}, B), one number of labels per task and sample, "
            f"found {tuple(counts.shape)}"
        )
    empty = (counts == 0).all(dim=1).tolist()
    return [None if none else value for value, none in zip(values, empty, strict=True)]


def joint_losses(
    live: Sequence[Tensor], here: Sequence[int], tasks: int, ranks: Ranks | None
) -> tuple[Tensor, list[int]]:
    """Return float64 losses of the tasks with labels, and the positions of those tasks.

    In distributed training each loss is the mean over the processes that have a label.

    Args:
        live: Losses of the tasks with labels in this process.
        here: Positions of those tasks.
        tasks: Number of all tasks.
        ranks: All processes, None if there is only one.

    Raises:
        ValueError: A process has no label at all.
    """
    with torch.no_grad():
        if len({loss.device for loss in live}) == 1:
            own = torch.stack(list(live)).to(torch.float64)
        else:
            own = torch.stack([read(loss)[0] for loss in live] or [torch.zeros(0)]).reshape(-1)
    if ranks is None:
        return own, list(here)
    (own,) = read(own)
    table = torch.zeros(2, tasks, dtype=torch.float64)
    table[0, list(here)] = own
    table[1, list(here)] = 1.0
    tables = torch.stack(ranks.gather(table))
    if not bool(tables[:, 1].any(dim=1).all()):
        raise ValueError(
            "one of the processes has no label for any task in this batch; give every process a "
            "batch with at least one"
        )
    total, count = tables.sum(dim=0)
    present = count.nonzero().flatten().tolist()
    return (total / count)[present], present


def logarithms(raw: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return the logarithms of the losses and their slopes, 1 / loss.

    A loss of zero has slope 0, as nothing is left to learn. Losses that are not finite stay so.

    Raises:
        ValueError: A loss is negative.
    """
    for name, value in zip(names, raw.tolist(), strict=True):
        if -math.inf < value < 0:
            raise ValueError(
                f"log_losses needs losses that are not negative, found {value} for task {name}; "
                "shift the loss, or set log_losses=False"
            )
    logs = torch.where(raw == -math.inf, raw, logarithm(raw))
    return logs, reciprocals(raw)
