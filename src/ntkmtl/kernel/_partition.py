"""Splitting a batch into mini-batches, and the scale of each mini-batch's gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

__all__ = ["Partition", "minibatch_sizes", "require_counts"]


def minibatch_sizes(batch: int, minibatches: int, published: bool = False) -> tuple[int, ...]:
    """Return the sizes of n consecutive mini-batches of a batch.

    Sizes differ by one at most, larger ones first.

    Args:
        batch: Number of samples B.
        minibatches: Number of mini-batches n.
        published: Split with ``torch.chunk``, as the published code does: all mini-batches except
            the last hold ceil(B / n) samples, and there may be fewer than n.

    Raises:
        ValueError: n is not in 1..B.

    Example:
        >>> minibatch_sizes(10, 4)
        (3, 3, 2, 2)
        >>> minibatch_sizes(10, 4, published=True)
        (3, 3, 3, 1)
    """
    if not 1 <= minibatches <= batch:
        raise ValueError(
            f"minibatches must be between 1 and the batch size, found minibatches={minibatches} "
            f"for a batch of {batch}; use fewer mini-batches or a larger batch. Where it is the "
            "last, shorter batch of an epoch, leave it out (drop_last=True of a DataLoader)"
        )
    if published:
        size = -(-batch // minibatches)
        full, rest = divmod(batch, size)
        return (size,) * full + ((rest,) if rest else ())
    size, longer = divmod(batch, minibatches)
    return (size + 1,) * longer + (size,) * (minibatches - longer)


@lru_cache(maxsize=64)
def _indicator(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    index = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return torch.nn.functional.one_hot(index, len(sizes)).T.to(device=device, dtype=dtype)


@dataclass(frozen=True)
class Partition:
    """A batch of B samples split into n consecutive mini-batches, for k tasks.

    Attributes:
        sizes: Samples in each mini-batch; empty where each task has its own batch.
        scales: Factors that turn rows of the gradient of task i's batch loss into rows of the
            gradient of mini-batch u's mean loss, float64 of shape (k, n); (1, n) where they are the
            same for all tasks.
        shares: Share of task i's labeled samples that are in mini-batch u, same shape.
        own: One partition per task where each has its own batch; else empty.
    """

    sizes: tuple[int, ...]
    scales: Tensor
    shares: Tensor
    own: tuple[Partition, ...] = ()

    @staticmethod
    def of(
        batch: int,
        minibatches: int,
        counts: Tensor | None = None,
        *,
        published: bool = False,
    ) -> Partition:
        """Split a batch.

        Args:
            batch: Number of samples B.
            minibatches: Number of mini-batches n.
            counts: Number of labels (pixels, say) of each sample for each task, shape (k, B),
                checked by :func:`require_counts`. The batch's loss is then the mean over labels.
                None for one label per sample.
            published: See :func:`minibatch_sizes`.

        Raises:
            ValueError: n is not in 1..B.
        """
        if counts is None:
            return _even(batch, minibatches, published)
        sizes = minibatch_sizes(batch, minibatches, published)
        counts = counts.detach().to(device="cpu", dtype=torch.float64)
        part = counts @ _indicator(sizes, torch.float64, torch.device("cpu")).T
        total = part.sum(dim=1, keepdim=True)
        # A mini-batch without labels has gradient zero, so any scale is right.
        scales = torch.where(part > 0, total / part, 0.0)
        shares = torch.where(total > 0, part / total, 1.0 / len(sizes))
        return Partition(sizes, scales, shares)

    @staticmethod
    def per_task(batches: Sequence[int], minibatches: int, *, published: bool = False) -> Partition:
        """Split one batch per task, of different sizes.

        Args:
            batches: Number of samples of each task's batch.
            minibatches: Number of mini-batches n of each.
            published: See :func:`minibatch_sizes`.

        Raises:
            ValueError: n is not in 1..B for some batch, or the numbers of mini-batches differ.
        """
        own = tuple(Partition.of(batch, minibatches, published=published) for batch in batches)
        if len({part.minibatches for part in own}) > 1:
            raise ValueError(
                f"batches of {sorted(set(batches))} samples do not all make the same number of "
                "mini-batches when split as the published code does; leave preset out"
            )
        return Partition(
            (),
            torch.cat([part.scales for part in own]),
            torch.cat([part.shares for part in own]),
            own,
        )

    def of_task(self, task: int) -> Partition:
        """Return the partition of one task's batch."""
        if self.own:
            return self.own[task]
        i = task if len(self.scales) > 1 else 0
        return Partition(self.sizes, self.scales[i : i + 1], self.shares[i : i + 1])

    @property
    def minibatches(self) -> int:
        """Number of mini-batches n."""
        return self.scales.shape[1]

    @cached_property
    def scale_products(self) -> Tensor:
        """Products of the scales of two mini-batches, shape (k, n, n) or (1, n, n)."""
        return self.scales[:, :, None] * self.scales[:, None, :]

    def indicator(self, like: Tensor) -> Tensor:
        """Return the 0/1 matrix of shape (n, B) that sums rows by mini-batch."""
        return _indicator(self.sizes, like.dtype, like.device)


def require_counts(counts: Tensor, tasks: int, batch: int) -> None:
    """Check the number of labels per task and sample.

    Raises:
        TypeError: They are not a tensor of real numbers.
        ValueError: Their shape is not (tasks, batch), or one is negative or not finite.
    """
    if not isinstance(counts, Tensor) or counts.is_complex():
        found = counts.dtype if isinstance(counts, Tensor) else type(counts)
        raise TypeError(f"counts must be a tensor of shape (k, B) of real numbers, found {found}")
    if counts.shape != (tasks, batch):
        raise ValueError(
            f"counts must have shape ({tasks}, {batch}), one number of labels per task and sample, "
            f"found {tuple(counts.shape)}"
        )
    if not bool(((counts >= 0) & counts.isfinite()).all()):
        raise ValueError("counts must be finite and not negative")


@lru_cache(maxsize=64)
def _even(batch: int, minibatches: int, published: bool) -> Partition:
    """Return the partition for one label per sample and task; cached, as every step uses it."""
    sizes = minibatch_sizes(batch, minibatches, published)
    shares = torch.tensor([sizes], dtype=torch.float64) / batch
    return Partition(sizes, 1.0 / shares, shares)
