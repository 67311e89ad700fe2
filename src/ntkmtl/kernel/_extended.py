"""The class :class:`ExtendedNTK`: the extended neural tangent kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["ExtendedNTK"]


class ExtendedNTK:
    r"""The extended NTK of k tasks on n mini-batches (Eq. 8 and 9 of the NTKMTL paper).

    ``K[i, u, j, v]`` is the inner product of the gradients of task i's loss on mini-batch u and of
    task j's loss on mini-batch v. The object holds all blocks, or only the k diagonal ones if the
    others do not exist (each task has its own representation) or were not computed.

    Args:
        values: All blocks, shape (k, n, k, n). Must be symmetric positive semi-definite as a
            (kn, kn) matrix, which is not checked.
        blocks: The diagonal blocks only, shape (k, n, n). Give either this or ``values``.
        shares: Share of task i's labeled samples that are in mini-batch u, shape (k, n); rows sum
            to 1. None for ``1 / n`` each.
        diagonal: True if each block is known to be a diagonal matrix, so that its eigenvalues need
            no solver.

    Raises:
        ValueError: Not exactly one of ``values`` and ``blocks`` is given, or a shape is wrong.
        TypeError: Something is not a tensor of real numbers.

    Example:
        >>> import torch
        >>> J = torch.tensor([[3.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # k = 2 tasks, n = 1
        >>> K = ExtendedNTK((J @ J.T).reshape(2, 1, 2, 1))
        >>> K.max_eigenvalues()
        tensor([9., 1.], dtype=torch.float64)
        >>> K.affinity()
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """

    def __init__(
        self,
        values: Tensor | None = None,
        *,
        blocks: Tensor | None = None,
        shares: Tensor | None = None,
        diagonal: bool = False,
    ) -> None:
        if (values is None) == (blocks is None):
            raise ValueError("give either values (k, n, k, n) or blocks (k, n, n), not both")
        for name, tensor in (("values", values), ("blocks", blocks), ("shares", shares)):
            if tensor is not None and (not isinstance(tensor, Tensor) or tensor.is_complex()):
                kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor)
                raise TypeError(f"{name} must be a tensor of real numbers, found {kind}")
        if values is not None:
            if values.ndim != 4 or values.shape[:2] != values.shape[2:] or 0 in values.shape:
                raise ValueError(
                    f"values must have shape (k, n, k, n), found {tuple(values.shape)}"
                )
            # A view: diagonal() puts the task axis last.
            blocks = values.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        assert blocks is not None
        if blocks.ndim != 3 or blocks.shape[1] != blocks.shape[2] or 0 in blocks.shape:
            raise ValueError(f"blocks must have shape (k, n, n), found {tuple(blocks.shape)}")
        if shares is not None and shares.shape != blocks.shape[:2]:
            raise ValueError(
                f"shares must have shape (k, n) = {tuple(blocks.shape[:2])}, "
                f"found {tuple(shares.shape)}"
            )
        self._values = values
        self._blocks = blocks
        self._shares = shares
        self._diagonal = diagonal

    def __repr__(self) -> str:
        form = "all blocks" if self._values is not None else "diagonal blocks only"
        return f"ExtendedNTK(tasks={self.tasks}, minibatches={self.minibatches}, {form})"

    @property
    def tasks(self) -> int:
        """Number of tasks k."""
        return self._blocks.shape[0]

    @property
    def minibatches(self) -> int:
        """Number of mini-batches n."""
        return self._blocks.shape[1]

    @property
    def has_all_blocks(self) -> bool:
        """Whether the blocks of two different tasks exist."""
        return self._values is not None

    @property
    def is_diagonal(self) -> bool:
        """Whether each block is known to be a diagonal matrix."""
        return self._diagonal

    @property
    def blocks(self) -> Tensor:
        """The diagonal blocks K_ii, shape (k, n, n)."""
        return self._blocks

    @property
    def values(self) -> Tensor:
        """All blocks, shape (k, n, k, n).

        Raises:
            ValueError: Only the diagonal blocks exist.
        """
        if self._values is None:
            raise ValueError(
                "this kernel has its diagonal blocks only: gradients with respect to one "
                "representation per task, or a method that reads eigenvalues alone, give no "
                "blocks between two tasks. Read .blocks, or ask for parameters or for one shared "
                "representation"
            )
        return self._values

    @property
    def shares(self) -> Tensor:
        """Share of each task's samples in each mini-batch, shape (k, n)."""
        if self._shares is None:
            return torch.full_like(self._blocks[:, :, 0], 1.0 / self.minibatches)
        return self._shares

    def block(self, i: int, j: int) -> Tensor:
        """Return the block K_ij, shape (n, n).

        Args:
            i: First task.
            j: Second task.

        Raises:
            ValueError: The block does not exist.
        """
        self._require_tasks((i, j))
        return self._blocks[i] if i == j else self.values[i, :, j, :]

    def _require_tasks(self, tasks: Sequence[int]) -> None:
        for task in tasks:
            if not 0 <= task < self.tasks:
                raise ValueError(
                    f"tasks are numbered from 0 to {self.tasks - 1} here, found {int(task)}"
                )

    def _with(self, tensor: Tensor, shares: Tensor | None) -> ExtendedNTK:
        """Return a kernel of the same form with other numbers."""
        if self._values is not None:
            return ExtendedNTK(tensor, shares=shares, diagonal=self._diagonal)
        return ExtendedNTK(blocks=tensor, shares=shares, diagonal=self._diagonal)

    @property
    def _tensor(self) -> Tensor:
        return self._blocks if self._values is None else self._values

    def cpu(self) -> ExtendedNTK:
        """Return the kernel on the CPU, where small eigenproblems are solved fastest."""
        if self._blocks.device.type == "cpu":
            return self
        return self._with(self._tensor.cpu(), None if self._shares is None else self._shares.cpu())

    def replaced(self, tensor: Tensor) -> ExtendedNTK:
        """Return the kernel with the entries of ``tensor``, shaped as ``values`` or ``blocks``."""
        return self._with(tensor, self._shares)

    def select(self, tasks: Sequence[int]) -> ExtendedNTK:
        """Return the kernel of the tasks at some positions.

        Args:
            tasks: The positions, at least one; the kernel that is returned has their order.

        Raises:
            ValueError: No position is given, or one is not a task's.
        """
        if not len(tasks):
            raise ValueError("tasks is empty; a kernel has one task at least")
        self._require_tasks(tasks)
        at = torch.tensor(list(tasks), device=self._blocks.device)
        shares = None if self._shares is None else self._shares[at]
        if self._values is None:
            return self._with(self._blocks[at], shares)
        return self._with(self._values[at][:, :, at], shares)

    def with_shares(self, shares: Tensor) -> ExtendedNTK:
        """Return the kernel with other ``shares`` of samples, shape (k, n)."""
        return self._with(self._tensor, shares)

    def __truediv__(self, divisor: float) -> ExtendedNTK:
        return self._with(self._tensor / divisor, self._shares)

    def max_eigenvalues(self) -> Tensor:
        """Return the largest eigenvalue of each diagonal block, float64 of shape (k,).

        Computed in float64: in closed form for n = 1, n = 2 and diagonal blocks, otherwise by a
        symmetric eigensolver. Values that rounding made negative become 0. A block that is not
        finite has no finite eigenvalue.
        """
        blocks = self._blocks.detach().to(torch.float64)
        n = self.minibatches
        if n == 1:
            largest = blocks[:, 0, 0]
        elif self._diagonal:
            largest = blocks.diagonal(dim1=1, dim2=2).amax(dim=1)
        elif n == 2:
            a, d, b = blocks[:, 0, 0], blocks[:, 1, 1], blocks[:, 0, 1]
            largest = (a + d) / 2 + torch.hypot((a - d) / 2, b)
        else:
            finite = blocks.isfinite().all(dim=2).all(dim=1)
            blocks = torch.where(finite[:, None, None], blocks, 0.0)  # solvers fail on NaN
            largest = torch.where(finite, torch.linalg.eigvalsh(blocks)[:, -1], torch.nan)
        return largest.clamp_min(0.0)

    def gramian(self) -> Tensor:
        """Return the Gramian of the k whole-batch gradients, float64 of shape (k, k).

        Blocks are averaged over both mini-batch axes, weighted by the mini-batches' shares of the
        samples. This is exactly the Gramian of the whole batch's gradients, also where n does not
        divide the batch size.

        Raises:
            ValueError: Only the diagonal blocks exist.
        """
        values = self.values.detach().to(torch.float64)
        shares = self.shares.to(values)
        return torch.einsum("iu,iujv,jv->ij", shares, values, shares)

    def affinity(self) -> Tensor:
        """Return the cosine between the tasks' gradients, float64 of shape (k, k).

        Entries are in [-1, 1]: 1 for gradients of the same direction, negative for conflicting
        ones, 0 if a gradient is zero, NaN if one is not finite.

        Raises:
            ValueError: Only the diagonal blocks exist.
        """
        gramian = self.gramian()
        norms = gramian.diagonal().clamp_min(0.0).sqrt()
        # Divide by one norm at a time: the product of two tiny norms may underflow to zero.
        inverse = torch.where(norms == 0, 0.0, 1.0 / norms)
        cosine = (gramian * inverse[:, None] * inverse[None, :]).clamp(-1.0, 1.0)
        cosine.diagonal().copy_(torch.where(norms == 0, 0.0, norms / norms))
        return cosine

    def weighted(self, weights: Tensor) -> ExtendedNTK:
        """Return the kernel of weighted losses, with blocks w_i w_j K_ij (Prop. 3.3, Eq. 13).

        This is exact for a kernel of losses, as the gradient of w_i l_i is w_i times that of l_i.
        It is not for a kernel of outputs: see docs/analysis/theory.md.

        Args:
            weights: Shape (k,).

        Raises:
            TypeError: They are not a tensor of real numbers.
            ValueError: The number of weights is not k.
        """
        if not isinstance(weights, Tensor) or weights.is_complex():
            raise TypeError(f"weights must be a tensor of k real numbers, found {weights!r}")
        if weights.shape != (self.tasks,):
            raise ValueError(
                f"weights must have shape ({self.tasks},), found {tuple(weights.shape)}"
            )
        w = weights.detach().to(self._blocks)
        if self._values is None:
            return self._with(self._blocks * w.square()[:, None, None], self._shares)
        scale = w[:, None, None, None] * w[None, None, :, None]
        return self._with(self._values * scale, self._shares)
