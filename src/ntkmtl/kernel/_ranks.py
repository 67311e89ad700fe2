"""Several processes that train one model: what they exchange so that all find the same weights.

The mini-batches of every process count as further mini-batches. What is exchanged is the kernel, or
the rows that it is made of, never the model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from ntkmtl.kernel._extended import ExtendedNTK
from ntkmtl.kernel._partition import Partition
from ntkmtl.kernel._pooling import gram, minibatch_sums

__all__ = ["Ranks"]


class Ranks:
    """The processes of a group, two or more.

    Args:
        group: The process group, the default one if None.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        # Collectives of NCCL take tensors of the GPU only.
        backend = str(dist.get_backend(group))
        self._on_gpu = "nccl" in backend and "gloo" not in backend

    @staticmethod
    def current(group: dist.ProcessGroup | None = None) -> Ranks | None:
        """Return the processes that train together, None if this one trains alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return None
        return Ranks(group) if dist.get_world_size(group) > 1 else None

    def _lend(self, tensor: Tensor) -> Tensor:
        tensor = tensor.detach().contiguous()
        return tensor.cuda() if self._on_gpu else tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every process's tensor, all of one shape, in the order of the processes."""
        own = self._lend(tensor)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own, group=self.group)
        return [part.to(tensor.device) for part in parts]

    def first(self, tensor: Tensor) -> Tensor:
        """Return the first process's tensor."""
        own = self._lend(tensor).clone()
        source = 0 if self.group is None else dist.get_global_rank(self.group, 0)
        dist.broadcast(own, src=source, group=self.group)
        return own.to(tensor.device)

    def gram(self, matrix: Tensor) -> Tensor:
        """Return the Gramian of the rows of all processes' matrices.

        Each process gets one slice of the columns of every row, so that it sends and receives about
        as much as its own matrix holds, however many processes there are.

        Args:
            matrix: Shape (rows, P), the same on every process.

        Returns:
            float64 of shape (size * rows, size * rows), rows of the first process first.
        """
        rows, columns = matrix.shape
        width = -(-columns // self.size)
        padded = torch.nn.functional.pad(matrix.detach(), (0, width * self.size - columns))
        slices = padded.view(rows, self.size, width).transpose(0, 1)
        sent = self._lend(slices)
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        partial = gram(received.flatten(0, 1))
        dist.all_reduce(partial, group=self.group)
        return partial.to(matrix.device)

    def shares(self, shares: Tensor, has_label: Tensor) -> Tensor:
        """Return the share of every mini-batch of every process in the task's samples.

        Args:
            shares: Of this process's mini-batches, shape (k, n).
            has_label: Whether this process has a label for the task, shape (k,).

        Returns:
            Shape (k, size * n); processes with a label count alike.
        """
        counted = shares * has_label.to(shares)[:, None]
        everywhere = torch.cat(self.gather(counted), dim=1)
        total = everywhere.sum(dim=1, keepdim=True)
        return torch.where(total > 0, everywhere / total, 1.0 / everywhere.shape[1])

    def pooled(
        self, gradients: Tensor | Sequence[Tensor], partition: Partition
    ) -> tuple[list[Tensor], Partition]:
        """Exchange the sums of mini-batches, each of which then stands for one sample.

        Returns:
            Rows of all processes' mini-batches per task, and the partition that they make.
        """
        k = len(gradients)
        scales = partition.scales.expand(k, -1)
        everywhere = torch.cat(self.gather(minibatch_sums(gradients, partition)), dim=1)
        joint = torch.cat(self.gather(scales), dim=1)
        n = joint.shape[1]
        return list(everywhere), Partition((1,) * n, joint, torch.full_like(joint, 1.0 / n))

    def samples(
        self, gradients: Tensor | Sequence[Tensor], features: Tensor, partition: Partition
    ) -> tuple[list[Tensor], Tensor, Partition]:
        """Exchange gradients and features of every sample.

        Returns:
            Gradients of all processes' samples per task, their features, and the partition.
        """
        k = len(gradients)
        sizes = [tuple(part.tolist()) for part in self.gather(torch.tensor(partition.sizes))]
        longest = max(sum(part) for part in sizes)

        def joined(rows: Tensor) -> Tensor:
            flat = rows.detach().flatten(1)
            padded = torch.nn.functional.pad(flat, (0, 0, 0, longest - len(flat)))
            parts = self.gather(padded)
            return torch.cat([p[: sum(size)] for p, size in zip(parts, sizes, strict=True)])

        scales = torch.cat(self.gather(partition.scales.expand(k, -1)), dim=1)
        joint = Partition(
            tuple(size for part in sizes for size in part),
            scales,
            torch.full_like(scales, 1.0 / scales.shape[1]),
        )
        return [joined(g) for g in gradients], joined(features), joint

    def blockwise(self, kernel: ExtendedNTK) -> ExtendedNTK:
        """Join kernels whose mini-batches have nothing in common between processes."""
        if not kernel.has_all_blocks:
            diagonals = self.gather(kernel.blocks.diagonal(dim1=1, dim2=2).contiguous())
            return ExtendedNTK(blocks=torch.diag_embed(torch.cat(diagonals, dim=1)), diagonal=True)
        # (k, n, k, n) with zeros for u != v: keep (k, k, n).
        diagonals = self.gather(kernel.values.diagonal(dim1=1, dim2=3).contiguous())
        values = torch.diag_embed(torch.cat(diagonals, dim=2)).transpose(1, 2)
        return ExtendedNTK(values, diagonal=True)
