"""Losses of multi-task SAC row by row, and which task each row of a batch is of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ntkmtl.bench.reinforce.networks import Actor, TwinCritic, squash

if TYPE_CHECKING:
    from ntkmtl.bench.reinforce.replay import ReplayBatch


def target_rows(
    actor: Actor,
    target: TwinCritic,
    seen: Tensor,
    index: Tensor,
    sizes: Sequence[int],
    alpha: Tensor,
    noise: Tensor,
) -> Tensor:
    """Return the target critics' value of a new action in each row, less alpha log pi."""
    action, log_probability = squash(actor(seen, index, sizes), noise)
    soft: Tensor = target(seen, action, index, sizes).amin(dim=0) - alpha * log_probability
    return soft


def critic_rows(
    critic: TwinCritic,
    seen: Tensor,
    actions: Tensor,
    index: Tensor,
    sizes: Sequence[int],
    targets: Tensor,
) -> Tensor:
    """Return the critics' loss in each row."""
    return errors(critic(seen, actions, index, sizes), targets)


def errors(values: Tensor, targets: Tensor) -> Tensor:
    """Return the critics' loss in each row from their values, shape (2, rows)."""
    return (values - targets).square().sum(dim=0)


def actor_rows(
    actor: Actor,
    critic: TwinCritic,
    seen: Tensor,
    index: Tensor,
    sizes: Sequence[int],
    alpha: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the actor's loss in each row, and the log probability of the action drawn there."""
    return judged(critic, actor(seen, index, sizes), seen, index, sizes, alpha, noise)


def judged(
    critic: TwinCritic,
    output: Tensor,
    seen: Tensor,
    index: Tensor,
    sizes: Sequence[int],
    alpha: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the same as :func:`actor_rows` from the output of the actor."""
    action, log_probability = squash(output, noise)
    terms: Tensor = alpha * log_probability - critic(seen, action, index, sizes).amin(dim=0)
    return terms, log_probability.detach()


def of_each(batch: ReplayBatch, loss: Callable[[int, slice], Tensor]) -> list[Tensor | None]:
    """Return each task's loss from its number and its rows' place, None where it has none."""
    return [
        loss(task, place) if batch.sizes[task] else None for task, place in enumerate(batch.slices)
    ]


class TaskView:
    """Which task each row of a batch is of."""

    def __init__(self, sizes: tuple[int, ...], device: torch.device) -> None:
        self.sizes = sizes
        self.index = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(
            device
        )
        self._even = len(set(sizes)) == 1

    def alone(self, task: int) -> tuple[int, ...]:
        """Return the sizes of a batch of one task's rows only."""
        return tuple(size if i == task else 0 for i, size in enumerate(self.sizes))

    def means(self, rows: Tensor) -> list[Tensor | None]:
        """Return the mean over each task's rows, None where there are none."""
        if self._even:
            return list(rows.view(len(self.sizes), -1).mean(dim=1).unbind())
        parts = rows.split(list(self.sizes))
        return [part.mean() if len(part) else None for part in parts]

    def sums(self, rows: Tensor) -> Tensor:
        """Return the sum over each task's rows, shape (k,)."""
        if self._even:
            return rows.view(len(self.sizes), -1).sum(dim=1)
        return torch.stack([part.sum() for part in rows.split(list(self.sizes))])
