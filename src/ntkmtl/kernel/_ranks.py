"""Data exchanged between the processes of distributed training, so that all get the same weights.

The mini-batches of all processes together make one larger kernel. Processes exchange the kernel, or
the rows that it is computed from, but never the model.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ntkmtl.graph import as_real
from ntkmtl.kernel._extended import ExtendedNTK
from ntkmtl.kernel._partition import Partition
from ntkmtl.kernel._pooling import gram, kernel_from_rows, minibatch_sums

__all__ = ["Ranks"]

_BUFFER = 1 << 25
"""Largest number of bytes sent, and received, in one exchange."""

_SOLVED_ALONE = 32
"""Mini-batches of all processes up to which each process computes the eigenvalues of all tasks."""

_EXTRA = 1 << 16
"""Latency of the two further messages to each process that slices need, in bytes."""


class Ranks:
    """The processes of a group, two or more.

    The Gramian of rows on R processes is computed in one of two ways. Either every process gathers
    all rows and so receives R - 1 times its own rows. Or each process receives one slice of the
    columns of all rows, and the Gramians of the slices are summed; this moves its own rows once,
    and the Gramian. Where both are possible, the one that moves fewer bytes is used.

    Args:
        group: The process group, the default one if None.

    Attributes:
        size: Number of processes R.
        rank: Number of this process.
        mean: None, or the share of each of this process's mini-batches in its task's samples on all
            processes, shape (k, n): then kernels are averaged over mini-batches, see
            :meth:`averaging`.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self.mean: Tensor | None = None
        # NCCL accepts GPU tensors only.
        backend = str(dist.get_backend(group))
        self._on_gpu = "nccl" in backend and "gloo" not in backend

    @staticmethod
    def current(group: dist.ProcessGroup | None = None) -> Ranks | None:
        """Return the processes that train together, None if there is only this one."""
        if not (dist.is_available() and dist.is_initialized()):
            return None
        return Ranks(group) if dist.get_world_size(group) > 1 else None

    def _for_backend(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach().contiguous()
        return tensor.cuda() if self._on_gpu else tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all processes, which have the same shape, in order of rank."""
        own = self._for_backend(tensor)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own, group=self.group)
        return [part.to(tensor.device) for part in parts]

    def first(self, tensor: Tensor) -> Tensor:
        """Return the first process's tensor."""
        own = self._for_backend(tensor).clone()
        source = 0 if self.group is None else dist.get_global_rank(self.group, 0)
        dist.broadcast(own, src=source, group=self.group)
        return own.to(tensor.device)

    def averaging(self, shares: Tensor) -> Ranks:
        """Return a copy whose kernels are averaged over mini-batches and processes.

        This is enough for methods that read the Gramian, and cheaper: rows are averaged before they
        are multiplied, so the Gramian has k rows instead of k n R.

        Args:
            shares: Share of each of this process's mini-batches in the task's samples on all
                processes, shape (k, n).
        """
        other = copy.copy(self)
        other.mean = shares
        return other

    def _exchange(self, part: Tensor) -> Tensor:
        """Send each process its slice of the columns, and return the slices received.

        Args:
            part: Shape (rows, columns), the same shape on every process.

        Returns:
            Shape (R, rows, ceil(columns / R)), in order of rank.
        """
        rows, columns = part.shape
        width = -(-columns // self.size)
        padded = torch.nn.functional.pad(part.detach(), (0, width * self.size - columns))
        sent = self._for_backend(padded.view(rows, self.size, width).transpose(0, 1))
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        return received

    def _columns(self, rows: int, item: int) -> int:
        """Return the number of columns to exchange at once."""
        return self.size * max(1, _BUFFER // (rows * self.size * item))

    def _sum_of_grams(self, parts: Iterable[Tensor], product: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the sum of ``product(slices)`` over all parts and processes."""
        total: Tensor | None = None
        device = None
        for part in parts:
            device = part.device
            partial = product(self._exchange(part))
            total = partial if total is None else total.add_(partial)
        assert total is not None
        dist.all_reduce(total, group=self.group)
        return total.to(device)

    def gram(self, matrix: Tensor) -> Tensor:
        """Return the Gramian of the rows of all processes' matrices.

        Each process receives one slice of the columns of all rows. So it sends and receives about
        the size of its own matrix, for any number of processes. Besides that matrix it holds two
        buffers of at most 32 MiB and a float64 copy of one of them.

        Args:
            matrix: Shape (rows, P), the same shape on every process.

        Returns:
            float64 of shape (R * rows, R * rows), in order of rank. With :attr:`mean`, the Gramian
            of the sum of the matrices, shape (rows, rows).
        """
        parts = matrix.split(self._columns(len(matrix), matrix.element_size()), dim=1)

        def product(slices: Tensor) -> Tensor:
            return gram(slices.flatten(0, 1)) if self.mean is None else _gram_of_sum(slices)

        return self._sum_of_grams(parts, product)

    def max_eigenvalues(self, kernel: ExtendedNTK) -> Tensor:
        """Return the largest eigenvalue of each diagonal block.

        The cost grows with the cube of the number of mini-batches, R n. Where that is large, tasks
        are divided among the processes.

        Args:
            kernel: The same on every process.

        Returns:
            float64 of shape (k,), the same on every process.
        """
        if kernel.is_diagonal or kernel.minibatches <= _SOLVED_ALONE:
            return kernel.max_eigenvalues()
        own = slice(self.rank, None, self.size)
        found = torch.zeros(kernel.tasks, dtype=torch.float64, device=kernel.blocks.device)
        if self.rank < kernel.tasks:
            found[own] = ExtendedNTK(blocks=kernel.blocks[own]).max_eigenvalues()
        # The others' entries are zero, so the sum is exact.
        summed = self._for_backend(found)
        dist.all_reduce(summed, group=self.group)
        return summed.to(found.device)

    def shares(self, shares: Tensor, has_label: Tensor) -> Tensor:
        """Return the shares of the mini-batches of all processes in the task's samples.

        Args:
            shares: Shares of this process's mini-batches in its own samples, shape (k, n).
            has_label: Whether this process has a label for the task, shape (k,).

        Returns:
            Shape (k, size * n). All processes with a label have the same total share.
        """
        counted = shares * has_label.to(shares)[:, None]
        everywhere = torch.cat(self.gather(counted), dim=1)
        total = everywhere.sum(dim=1, keepdim=True)
        return torch.where(total > 0, everywhere / total, 1.0 / everywhere.shape[1])

    def pooled(
        self, gradients: Tensor | Sequence[Tensor], partition: Partition, *, full: bool
    ) -> ExtendedNTK:
        """Return the pooled kernel of the mini-batches of all processes (Eq. 17).

        Args:
            gradients: As for :func:`kernel_from_rows`, those of this process.
            partition: Its mini-batches.
            full: Whether to compute blocks between tasks.
        """
        sums = minibatch_sums(gradients, partition)
        k, n, columns = sums.shape
        if self.mean is not None:
            means = self._means(partition).to(sums)
            return _averaged(self.gram(torch.einsum("ku,kud->kd", means, sums)))
        scales = self._scales(partition, k)
        entries = self._entries(k, n, full)
        if self._slices_are_less(sums.numel(), entries, sums.numel(), sums.element_size()):
            step = self._columns(k * n, sums.element_size())
            parts = sums.view(k * n, columns).split(step, dim=1)
            return self._joined(parts, scales, full)
        everywhere = torch.cat(self.gather(sums), dim=1)
        joint = Partition(
            (1,) * (self.size * n), scales, torch.full_like(scales, 1 / self.size / n)
        )
        return kernel_from_rows(list(everywhere), joint, "pooled", full=full)

    def through_features(
        self,
        gradients: Tensor | Sequence[Tensor],
        features: Tensor,
        partition: Partition,
        *,
        constant: float,
        full: bool,
    ) -> ExtendedNTK:
        """Return the kernel for ``pooling="kernel"`` over the mini-batches of all processes.

        It is the Gramian of one vector per mini-batch: the sum over its samples of the outer
        products of gradients and features. These are exchanged by slices, or all samples are
        gathered.

        Args:
            gradients: As for :func:`kernel_from_rows`, those of this process.
            features: The vectors whose Gram matrix is the kernel between samples, shape (B, ...).
            partition: This process's mini-batches.
            constant: Number added to that Gram matrix.
            full: Whether to compute blocks between tasks.
        """
        k, n = len(gradients), partition.minibatches
        sizes = [tuple(part.tolist()) for part in self.gather(torch.tensor(partition.sizes))]
        longest = max(sum(part) for part in sizes)
        rows = [_precise(g) for g in gradients]
        inputs = between = _precise(features)
        if constant:
            inputs = torch.nn.functional.pad(between, (0, 1), value=math.sqrt(constant))
        inputs = inputs.to(rows[0])
        width, across = rows[0].shape[1], inputs.shape[1]
        gathered = longest * (k * width + between.shape[1])
        products = (k if self.mean is not None else k * n) * width * across
        entries = k * k if self.mean is not None else self._entries(k, n, full)
        # With all samples gathered, each process computes R^2 times as many products. So slices
        # are worth up to twice the bytes.
        sliced = self._slices_are_less(products, entries, 2 * gathered, rows[0].element_size())
        if sliced and self.mean is not None:
            parts = self._outer_products(rows, inputs, partition)
            return _averaged(self._sum_of_grams(parts, _gram_of_sum))
        scales = self._scales(partition, k)
        if sliced:
            return self._joined(self._outer_products(rows, inputs, partition), scales, full)
        return self._from_samples(rows, between, sizes, scales, constant=constant, full=full)

    def _outer_products(
        self, rows: Sequence[Tensor], inputs: Tensor, partition: Partition
    ) -> Iterator[Tensor]:
        """Yield outer products of gradients and features, for some of the gradients' columns.

        Yields:
            Shape (k n, columns); with :attr:`mean`, averaged to (k, columns).
        """
        k, n = len(rows), partition.minibatches
        width, across = rows[0].shape[1], inputs.shape[1]
        step = max(1, self._columns(k * n, rows[0].element_size()) // across)
        means = None if self.mean is None else self._means(partition).to(rows[0])
        for start in range(0, width, step):
            tasks = []
            for i, row in enumerate(rows):
                columns = row[:, start : start + step]
                products = [
                    g.T @ z
                    for g, z in zip(
                        columns.split(partition.sizes), inputs.split(partition.sizes), strict=True
                    )
                ]
                stacked = torch.stack(products).flatten(1)
                tasks.append(stacked if means is None else means[i : i + 1] @ stacked)
            yield torch.cat(tasks)

    def _from_samples(
        self,
        rows: Sequence[Tensor],
        between: Tensor,
        sizes: Sequence[tuple[int, ...]],
        scales: Tensor,
        *,
        constant: float,
        full: bool,
    ) -> ExtendedNTK:
        """Gather gradients and features of all samples, and compute the kernel from them."""
        longest = max(sum(part) for part in sizes)

        def joined(own: Tensor) -> Tensor:
            padded = torch.nn.functional.pad(own.detach(), (0, 0, 0, longest - len(own)))
            parts = self.gather(padded)
            return torch.cat([p[: sum(size)] for p, size in zip(parts, sizes, strict=True)])

        joint = Partition(
            tuple(size for part in sizes for size in part),
            scales,
            torch.full_like(scales, 1.0 / scales.shape[1]),
        )
        everywhere = [joined(row) for row in rows]
        z = joined(between)
        theta = (z @ z.T).to(torch.float64) + constant
        kernel = kernel_from_rows(everywhere, joint, "kernel", theta=theta, full=full)
        if self.mean is None:
            return kernel
        everyone = torch.cat(self.gather(self.mean), dim=1)
        return _averaged(kernel.with_shares(everyone.to(kernel.blocks.device)).gramian())

    def _joined(self, parts: Iterable[Tensor], scales: Tensor, full: bool) -> ExtendedNTK:
        """Return the kernel of rows that are exchanged by slices.

        Args:
            parts: Some columns at a time of this process's rows, ordered by task and mini-batch.
            scales: Scales of all processes' mini-batches, shape (k, R n).
            full: Whether to compute blocks between tasks.
        """
        k, joint = scales.shape
        n = joint // self.size
        scales = scales.to(torch.float64)

        def by_task(slices: Tensor) -> Tensor:
            return slices.view(self.size, k, n, -1).transpose(0, 1).reshape(k, joint, -1)

        if full:
            values = self._sum_of_grams(parts, lambda slices: gram(by_task(slices).flatten(0, 1)))
            scales = scales.to(values.device).flatten()
            values *= scales[:, None] * scales
            return ExtendedNTK(values.view(k, joint, k, joint))
        blocks = self._sum_of_grams(
            parts, lambda slices: torch.stack([gram(task) for task in by_task(slices)])
        )
        scales = scales.to(blocks.device)
        return ExtendedNTK(blocks=blocks * scales[:, :, None] * scales[:, None, :])

    def _entries(self, tasks: int, minibatches: int, full: bool) -> int:
        """Return the number of entries of the joint kernel."""
        joint = self.size * minibatches
        return (tasks * joint) ** 2 if full else tasks * joint**2

    def _slices_are_less(self, own: int, entries: int, gathered: int, item: int) -> bool:
        """Whether exchanging slices moves fewer bytes than gathering rows.

        Args:
            own: Number of entries of the rows that would be sliced.
            entries: Number of entries of the kernel, which would be summed over processes.
            gathered: Number of entries that each process would send to all others.
            item: Bytes per entry of the rows.
        """
        # An all-reduce sends each float64 entry twice.
        sliced = item * own + 16 * entries + self.size * _EXTRA
        return sliced < self.size * item * gathered

    def _scales(self, partition: Partition, tasks: int) -> Tensor:
        """Return the scales of all processes' mini-batches, shape (k, R n)."""
        return torch.cat(self.gather(partition.scales.expand(tasks, -1)), dim=1)

    def _means(self, partition: Partition) -> Tensor:
        """Return the factors that turn sums over mini-batches into the mean over all, (k, n)."""
        assert self.mean is not None
        return self.mean * partition.scales

    def blockwise(self, kernel: ExtendedNTK) -> ExtendedNTK:
        """Join blockwise kernels, whose blocks between mini-batches are zero."""
        if self.mean is not None:
            means = self.mean.to(kernel.blocks)
            own = torch.einsum("iu,iuju,ju->ij", means, kernel.values, means).contiguous()
            summed = self._for_backend(own)
            dist.all_reduce(summed, group=self.group)
            return _averaged(summed.to(own.device))
        if not kernel.has_all_blocks:
            diagonals = self.gather(kernel.blocks.diagonal(dim1=1, dim2=2).contiguous())
            return ExtendedNTK(blocks=torch.diag_embed(torch.cat(diagonals, dim=1)), diagonal=True)
        # (k, n, k, n) with zeros for u != v: keep (k, k, n).
        diagonals = self.gather(kernel.values.diagonal(dim1=1, dim2=3).contiguous())
        values = torch.diag_embed(torch.cat(diagonals, dim=2)).transpose(1, 2)
        return ExtendedNTK(values, diagonal=True)


def _gram_of_sum(slices: Tensor) -> Tensor:
    """Return the Gramian of the rows summed over the first dimension."""
    return gram(slices.sum(dim=0, dtype=torch.float64))


def _averaged(gramian: Tensor) -> ExtendedNTK:
    """Return a Gramian as the kernel of one mini-batch that holds all samples of all processes."""
    return ExtendedNTK(gramian[:, None, :, None])


def _precise(rows: Tensor) -> Tensor:
    """Return one row per sample; half precision becomes float32."""
    flat = as_real(rows.detach()).reshape(len(rows), -1)
    return flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
