"""The class :class:`OutputNTK`: the NTK of a network's outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ntkmtl.kernel._extended import ExtendedNTK
from ntkmtl.kernel._outputs_function import Outputs, position
from ntkmtl.kernel._partition import minibatch_sizes

__all__ = ["OutputNTK"]


class OutputNTK:
    r"""The empirical NTK of the outputs of k tasks on N samples (Eq. 1, 8 and 9 of the paper).

    Let J_i be the Jacobian of task i's outputs, with one row per sample u and output component c.
    Block (i, j) is J_i J_j^T. Rows and columns are ordered by task, then sample, then component. In
    the trace form ``K[i, u, j, v]`` is summed over components: the sum over c of the inner products
    of the gradients of component c. For tasks with one number each this is exactly Eq. 8.

    Args:
        matrix: All blocks, shape (R, R), R the sum over tasks of N times components (N in the trace
            form).
        blocks: Only the diagonal blocks of a trace form, shape (k, N, N), for tasks with different
            numbers of components: their blocks between tasks have no trace. Give either this or
            ``matrix``.
        samples: Number of samples N.
        components: Numbers C_i per sample of each task's output.
        names: Names of the k tasks.
        outputs: ``"full"``, ``"trace"`` or ``"projection"`` (full, of projected outputs).
        method: How it was computed.

    Raises:
        ValueError: Not exactly one of ``matrix`` and ``blocks`` is given, or a shape is wrong.

    Example:
        >>> import torch
        >>> J = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
        >>> K = OutputNTK(J @ J.T, samples=2, components=(1, 1), names=("a", "b"))
        >>> K.block("a", "a")
        tensor([[1., 2.],
                [2., 4.]])
        >>> K.max_eigenvalues()
        tensor([ 5., 10.], dtype=torch.float64)
        >>> K.axes
        ('task', 'sample', 'task', 'sample')
    """

    def __init__(
        self,
        matrix: Tensor | None = None,
        *,
        blocks: Tensor | None = None,
        samples: int,
        components: Sequence[int],
        names: Sequence[str],
        outputs: Outputs = "trace",
        method: str = "",
    ) -> None:
        if (matrix is None) == (blocks is None):
            raise ValueError("give either the matrix (R, R) or the blocks (k, N, N), not both")
        if len(names) != len(components):
            raise ValueError(f"{len(components)} components for {len(names)} names of tasks")
        traced = outputs == "trace"
        rows = [samples * (1 if traced else c) for c in components]
        if matrix is not None and matrix.shape != (sum(rows), sum(rows)):
            raise ValueError(
                f"the matrix must have shape {(sum(rows), sum(rows))}, found {tuple(matrix.shape)}"
            )
        if blocks is not None and (
            not traced or blocks.shape != (len(components), samples, samples)
        ):
            raise ValueError(
                f"blocks are for the trace form, of shape {(len(components), samples, samples)}; "
                f'found {tuple(blocks.shape)} with outputs="{outputs}"'
            )
        self._matrix = matrix
        self._blocks = blocks
        self._rows = rows
        self.samples = samples
        self.components = tuple(components)
        self.names = tuple(names)
        self.outputs: Outputs = outputs
        self.method = method

    def __repr__(self) -> str:
        by = f", method={self.method!r}" if self.method else ""
        form = "" if self._matrix is not None else ", diagonal blocks only"
        return (
            f"OutputNTK(tasks={self.tasks}, samples={self.samples}, "
            f"components={self.components}, outputs={self.outputs!r}{by}{form})"
        )

    @property
    def tasks(self) -> int:
        """Number of tasks k."""
        return len(self.components)

    @property
    def has_all_blocks(self) -> bool:
        """Whether the blocks of two different tasks exist."""
        return self._matrix is not None

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the axes of :attr:`values`."""
        half = ("task", "sample") + (() if self.outputs == "trace" else ("component",))
        return half * 2

    @property
    def values(self) -> Tensor:
        """All blocks, shape (k, N, k, N), or (k, N, C, k, N, C) with component axes.

        Raises:
            ValueError: Tasks have different numbers of components.
        """
        whole = self.matrix()
        k, n = self.tasks, self.samples
        if self.outputs == "trace":
            return whole.view(k, n, k, n)
        if len(set(self.components)) > 1:
            raise ValueError(
                f"tasks have {self.components} components, which no one array holds; read "
                ".block(i, j) or .matrix()"
            )
        c = self.components[0]
        return whole.view(k, n, c, k, n, c)

    def matrix(self) -> Tensor:
        """Return the extended NTK of Eq. 9 as a matrix, shape (R, R), without a copy.

        Raises:
            ValueError: Only the diagonal blocks exist.
        """
        if self._matrix is None:
            raise ValueError(
                f"tasks have {self.components} components: the trace over components exists in the "
                'diagonal blocks only. Read .block(i, i), or ask for outputs="full" or "projection"'
            )
        return self._matrix

    def _slice(self, task: int) -> slice:
        start = sum(self._rows[:task])
        return slice(start, start + self._rows[task])

    def block_matrix(self, i: int | str, j: int | str) -> Tensor:
        """Return block K_ij as a matrix: (N, N), or (N C_i, N C_j) with component axes.

        Args:
            i: First task, by name or position.
            j: Second task.

        Raises:
            KeyError: There is no such task.
            ValueError: The block does not exist.
        """
        first, second = position(i, self.names), position(j, self.names)
        if self._blocks is not None and first == second:
            return self._blocks[first]
        return self.matrix()[self._slice(first), self._slice(second)]

    def block(self, i: int | str, j: int | str) -> Tensor:
        """Return block K_ij: (N, N), or (N, C_i, N, C_j) with component axes.

        Args:
            i: First task, by name or position.
            j: Second task.

        Raises:
            KeyError: There is no such task.
            ValueError: The block does not exist.
        """
        found = self.block_matrix(i, j)
        if self.outputs == "trace":
            return found
        first, second = position(i, self.names), position(j, self.names)
        shape = (self.samples, self.components[first], self.samples, self.components[second])
        return found.reshape(shape)

    def eigenvalues(self, task: int | str | None = None) -> Tensor:
        """Return all eigenvalues, largest first, float64.

        Args:
            task: One task's block K_ii, or the extended NTK if None.

        Raises:
            KeyError: There is no such task.
            ValueError: ``task`` is None, and only diagonal blocks exist.
        """
        which = self.matrix() if task is None else self.block_matrix(task, task)
        ascending: Tensor = torch.linalg.eigvalsh(which.detach().to(torch.float64))
        return ascending.flip(0)

    def max_eigenvalues(self) -> Tensor:
        """Return the largest eigenvalue of each diagonal block, float64 of shape (k,).

        Values that rounding made negative become 0.
        """
        largest = [self.eigenvalues(i)[0] for i in range(self.tasks)]
        return torch.stack(largest).clamp_min(0.0)

    def trace(self) -> OutputNTK:
        """Return the kernel's trace over components: the sum over equal components.

        For projected outputs this is an estimate of the trace. If tasks have different numbers of
        components, only the diagonal blocks remain.
        """
        if self.outputs == "trace":
            return self
        k, n = self.tasks, self.samples
        if len(set(self.components)) == 1:
            traced = torch.einsum("iucjvc->iujv", self.values).reshape(k * n, k * n)
            return self._traced(matrix=traced)
        blocks = [torch.einsum("ucvc->uv", self.block(i, i)) for i in range(k)]
        return self._traced(blocks=torch.stack(blocks))

    def _traced(self, matrix: Tensor | None = None, blocks: Tensor | None = None) -> OutputNTK:
        return OutputNTK(
            matrix,
            blocks=blocks,
            samples=self.samples,
            components=self.components,
            names=self.names,
            method=self.method,
        )

    def extended(
        self,
        loss_gradients: Sequence[Tensor] | Mapping[str, Tensor] | None = None,
        *,
        minibatches: int | None = None,
    ) -> ExtendedNTK:
        """Return the :class:`ExtendedNTK` of the outputs or, by the chain rule, of losses.

        Without ``loss_gradients`` each row of a task counts as one mini-batch, as in Eq. 8. With
        them the result is the kernel of the losses, as :func:`ntkmtl.kernel.extended_ntk` computes
        it from losses and parameters: the gradient of a sample's loss is the sum over components of
        d loss / d output times d output / d theta.

        Args:
            loss_gradients: For each task the derivatives of its samples' losses (not divided by the
                batch size) with respect to the outputs, in the output's shape (N, ...).
            minibatches: Number n of consecutive mini-batches, whose mean losses are used; None for
                one mini-batch per sample. Only with ``loss_gradients``.

        Raises:
            ValueError: A shape is wrong, tasks have different numbers of components, or a trace or
                a projection of several components is given ``loss_gradients``.
        """
        k, n = self.tasks, self.samples
        if loss_gradients is None:
            if minibatches is not None:
                raise ValueError("minibatches are of losses: give loss_gradients as well")
            if self._blocks is not None:
                return ExtendedNTK(blocks=self._blocks)
            if len(set(self._rows)) > 1:
                raise ValueError(
                    f"tasks have {self.components} components; an ExtendedNTK has equally many "
                    'rows per task. Ask for outputs="trace" or "projection"'
                )
            rows = self._rows[0]
            return ExtendedNTK(self.matrix().reshape(k, rows, k, rows))
        if self.outputs == "projection" or (self.outputs == "trace" and max(self.components) > 1):
            raise ValueError(
                'the kernel of losses needs every component of the outputs: ask for outputs="full"'
            )
        flat = self._gradients(loss_gradients)
        sizes = minibatch_sizes(n, n if minibatches is None else minibatches)
        m = len(sizes)
        # Row (i, w) holds the coefficients of the kernel's rows in mini-batch w of task i.
        whole = self.matrix().detach()
        mixing = whole.new_zeros(k * m, whole.shape[0])
        for i, gradient in enumerate(flat):
            at, first = self._slice(i).start, 0
            for w, size in enumerate(sizes):
                part = gradient[first : first + size].reshape(-1)
                begin = at + first * self.components[i]
                mixing[i * m + w, begin : begin + part.numel()] = part / size
                first += size
        mixed = (mixing @ whole @ mixing.T).view(k, m, k, m).to(torch.float64)
        shares = torch.tensor(sizes, dtype=torch.float64, device=mixed.device) / n
        return ExtendedNTK(mixed, shares=shares.expand(k, -1))

    def _gradients(self, given: Sequence[Tensor] | Mapping[str, Tensor]) -> list[Tensor]:
        if isinstance(given, Mapping):
            if set(given) != set(self.names):
                raise ValueError(
                    f"loss_gradients must be for tasks {', '.join(self.names)}, "
                    f"found {', '.join(given)}"
                )
            given = [given[name] for name in self.names]
        if len(given) != self.tasks:
            raise ValueError(f"{len(given)} loss_gradients for {self.tasks} tasks")
        flat = []
        for name, size, gradient in zip(self.names, self.components, given, strict=True):
            if gradient.shape[:1] != (self.samples,) or gradient.numel() != self.samples * size:
                raise ValueError(
                    f"loss_gradients of task {name} must have {size} numbers for each of "
                    f"{self.samples} samples, found shape {tuple(gradient.shape)}"
                )
            flat.append(gradient.detach().reshape(self.samples, size).to(self.matrix()))
        return flat
