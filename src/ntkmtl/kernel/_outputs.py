"""The dense NTK of a network's outputs, from Jacobians or from NTK-vector products."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from ntkmtl.kernel._chunks import Chunk
from ntkmtl.kernel._outputs_function import (
    Forward,
    OutputFunction,
    Outputs,
    ParametersLike,
    prepare,
    set_chunks,
)
from ntkmtl.kernel._outputs_kernel import OutputNTK
from ntkmtl.kernel._outputs_operator import JVP, choose_jvp

__all__ = ["MemoryBudgetError", "Method", "output_ntk"]

Method: TypeAlias = Literal["jacobian", "rows", "ntvp", "auto"]
"""How a dense kernel is computed."""

METHODS: tuple[Method, ...] = ("jacobian", "rows", "ntvp", "auto")

DEFAULT_BUDGET = 2 << 30

PRODUCTS = 64
"""Number of NTK-vector products computed at once."""

Rows: TypeAlias = list[Tensor]
"""Jacobian of some samples: one tensor per parameter, of shape (samples, width, entries)."""


class MemoryBudgetError(ValueError):
    """A kernel needs more memory than the budget allows.

    Attributes:
        needed: Bytes needed.
        budget: Bytes allowed.
    """

    def __init__(self, needed: int, budget: int, message: str) -> None:
        self.needed = needed
        self.budget = budget
        super().__init__(message)

    def __reduce__(self) -> tuple[type[MemoryBudgetError], tuple[int, int, str]]:
        return (type(self), (self.needed, self.budget, str(self)))


def output_ntk(
    function: nn.Module | Callable[..., Any],
    inputs: Any,
    parameters: ParametersLike | None = None,
    *,
    outputs: Outputs = "trace",
    method: Method = "auto",
    forward: Forward | None = None,
    names: Sequence[str] | None = None,
    task_dim: int | None = None,
    batch_dim: int | None = 0,
    directions: int = 1,
    seed: int = 0,
    chunk_size: int | None = None,
    memory_budget: int = DEFAULT_BUDGET,
    jvp: JVP = "auto",
    check: bool = True,
) -> OutputNTK:
    r"""Return the empirical NTK of a network's outputs (Eq. 1), extended over k tasks (Eq. 8, 9).

    .. math::

        (K_{ij})_{uv} = \left\langle \frac{\partial f_i(\theta, x_u)}{\partial \theta},
            \frac{\partial f_j(\theta, x_v)}{\partial \theta} \right\rangle

    The network's parameters, buffers, ``.grad``, mode and the random states do not change.

    Args:
        function: A module; or a pure function of (parameters as a dict, inputs).
        inputs: One batch: a tensor, or tensors in lists, dicts or named tuples; a plain tuple holds
            positional arguments. Samples are along ``batch_dim`` of every tensor. Any other object
            (a batch of graphs, say) is one batch that cannot be sliced; pass several of them as
            :class:`Batches`.
        parameters: With respect to what: all trainable parameters (``"all"`` or None), ``"shared"``
            (those of the network's ``shared_parameters()``), tensors, or a filter of name and
            parameter. Frozen ones are left out, tied ones count once. For a function, the dict.
        outputs: ``"full"`` keeps all components of a task's output. ``"trace"`` sums the kernel
            over equal components; for tasks with one number each it is the same as ``"full"``.
            ``"projection"`` keeps ``directions`` random combinations of the components, whose trace
            estimates the trace.
        method: ``"jacobian"`` computes Jacobians by ``vmap`` and ``jacrev``, then their products.
            ``"rows"`` computes them with one backward pass per output, for networks that ``vmap``
            does not support and batches that cannot be sliced. ``"ntvp"`` takes one backward and
            one forward-mode pass per column and holds no Jacobian; better for many outputs per
            sample. ``"auto"`` takes the first of these that works and fits in memory; the result's
            ``method`` tells which.
        forward: How the module is called: a function of the module and its inputs. By default
            ``module(*inputs)``; ``module.predict(module.represent(inputs))`` for a module that has
            these two methods and no ``forward``.
        names: Names of the tasks. By default the keys of a returned dict, or positions.
        task_dim: For a network that returns one tensor: its dimension of the tasks. None for one
            task.
        batch_dim: Dimension of the samples in the inputs (in outputs it is 0). None for a batch
            that must not be sliced.
        directions: Number r of random directions per task.
        seed: Seed of the random directions.
        chunk_size: Samples per pass. Limits the memory of activations; if the whole Jacobian does
            not fit, also that of Jacobians, which are then computed repeatedly.
        memory_budget: Bytes that kernel and Jacobians may take, checked before the computation.
            Activations come on top and are not counted: small chunks keep them small.
        jvp: For ``"ntvp"``: see :class:`OutputNTKOperator`.
        check: Check on 8 samples that outputs are the same when computed again and without the
            other samples. Costs four small forward passes.

    Returns:
        The kernel, in the parameters' dtype.

    Raises:
        MemoryBudgetError: The kernel does not fit. The message says what it needs and what to use
            instead.
        ValueError: A batch norm or dropout is in training mode, an output depends on chance or on
            the other samples of its batch, no trainable parameter is left, or an argument does not
            fit the network or the inputs.
        FloatingPointError: An output or the kernel is not finite.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> K = output_ntk(nn.Linear(1, 2), x, task_dim=1, names=["a", "b"])
        >>> K.block("a", "a")  # x x' + 1
        tensor([[2., 3.],
                [3., 5.]])
        >>> K.block("a", "b")  # two rows of the weight share nothing
        tensor([[0., 0.],
                [0., 0.]])
        >>> K.method
        'jacobian'
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, found {method!r}")
    f = prepare(
        function,
        inputs,
        parameters,
        outputs=outputs,
        forward=forward,
        names=names,
        task_dim=task_dim,
        batch_dim=batch_dim,
        directions=directions,
        seed=seed,
        chunk_size=chunk_size,
        check=check,
    )
    with f.isolated():
        dense = _Dense(f)
        chosen = dense.plan(method, chunk_size, memory_budget)
        if chosen == "ntvp":
            dense.by_products(choose_jvp(f, jvp, check=check))
        else:
            dense.by_jacobians(chosen, memory_budget)
    if not torch.isfinite(dense.result).all():
        raise FloatingPointError("the kernel is not finite; look at the parameters and inputs")
    only_diagonal = dense.diagonal
    return OutputNTK(
        None if only_diagonal else dense.result,
        blocks=dense.result if only_diagonal else None,
        samples=f.samples,
        components=f.components,
        names=f.names,
        outputs=outputs,
        method=chosen,
    )


class _Dense:
    """The computation of one dense kernel."""

    result: Tensor

    def __init__(self, f: OutputFunction) -> None:
        self.f = f
        self.traced = f.outputs == "trace"
        self.diagonal = self.traced and len(set(f.components)) > 1
        self.rows = [f.samples * (1 if self.traced else c) for c in f.components]

    # ------------------------------------------------------------------ memory

    @property
    def _itemsize(self) -> int:
        return self.f.dtype.itemsize

    @property
    def kernel_bytes(self) -> int:
        """Bytes of the result."""
        n = self.f.samples
        entries = len(self.rows) * n * n if self.diagonal else sum(self.rows) ** 2
        return entries * self._itemsize

    def jacobian_bytes(self, samples: int) -> int:
        """Bytes of the Jacobian of some samples."""
        return samples * self.f.width * self.f.size * self._itemsize

    def product_bytes(self, first: int, second: int) -> int:
        """Bytes of the products of two chunks' rows, before they are written into the result."""
        k = len(self.f.components)
        if self.diagonal:
            return first * second * self._itemsize
        width = k if self.traced else self.f.width
        return first * second * width * width * self._itemsize

    def streamed_bytes(self, chunk: int) -> int:
        """Bytes in total, with the Jacobians of two chunks in memory at a time."""
        jacobians = self.jacobian_bytes(chunk) * (1 if chunk >= self.f.samples else 2)
        return self.kernel_bytes + jacobians + self.product_bytes(chunk, chunk)

    def ntvp_bytes(self, chunk: int) -> int:
        """Bytes in total with NTK-vector products."""
        rows = self._products_of(chunk)
        pushed = rows * self.f.width * chunk * self.f.width * self._itemsize
        # Gradients and tangents are of the same size.
        return self.kernel_bytes + 2 * self.jacobian_bytes(rows) + 2 * pushed

    def _products_of(self, chunk: int) -> int:
        """Number of samples whose products are computed at once."""
        return min(max(1, PRODUCTS // self.f.width), chunk)

    def plan(self, method: Method, chunk_size: int | None, budget: int) -> Method:
        """Choose the method, and the chunk size if it is not given.

        Raises:
            MemoryBudgetError: No allowed method fits in memory.
            ValueError: The method needs vmap, which the network or the batch does not allow.
        """
        f = self.f
        separable = f.batch_dim is not None
        if method == "jacobian" and not separable:
            raise ValueError(
                'method="jacobian" runs vmap over samples, which these inputs do not have along '
                'one dimension; use method="rows" or "ntvp", or OutputNTKOperator'
            )
        way: Method = method
        # With "auto" a failure under vmap is no error: "rows" works without vmap, and raises if
        # something else is wrong.
        failure = self._vmap_fails() if separable and method != "rows" else None
        if method == "auto":
            way = "jacobian" if separable and failure is None else "rows"
        elif failure is not None:
            raise ValueError(
                f"method={method!r} runs vmap, which this network does not allow ({failure}); use "
                'method="rows" or OutputNTKOperator'
            ) from failure
        chunk = max(len(c) for c in f.chunks)
        if way == "ntvp":
            self._require(self.ntvp_bytes(chunk), budget, way, chunk_size)
            return way
        if self.streamed_bytes(chunk) <= budget:
            return way
        if method == "auto" and separable and chunk_size is None and len(f.chunks) == 1:
            fitting = self._largest_chunk(budget)
            if fitting:
                set_chunks(f, f.chunks[0].load(), fitting)
                return way
        if method == "auto" and way == "jacobian" and self.ntvp_bytes(chunk) <= budget:
            return "ntvp"
        self._require(self.streamed_bytes(chunk), budget, way, chunk_size)
        return way

    def _largest_chunk(self, budget: int) -> int:
        low, high = 0, self.f.samples
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self._fits(middle, budget) else (low, middle - 1)
        return low

    def _fits(self, chunk: int, budget: int) -> bool:
        return self.streamed_bytes(chunk) <= budget

    def _require(self, needed: int, budget: int, way: str, chunk_size: int | None) -> None:
        if needed <= budget:
            return
        f = self.f
        rows = sum(self.rows)
        text = (
            f"the dense kernel of {f.samples} samples and {len(self.rows)} tasks ({rows} rows) "
            f"takes {_bytes(self.kernel_bytes)}, the Jacobian with respect to {f.size:,} "
            f"parameters {_bytes(self.jacobian_bytes(f.samples))}; method={way!r} would take "
            f"{_bytes(needed)} at once with "
            f"{f'chunk_size={chunk_size}' if chunk_size else 'these chunks'}, and "
            f"memory_budget allows {_bytes(budget)}. "
        )
        fitting = self._largest_chunk(budget)
        if fitting and f.batch_dim is not None and way != "ntvp" and len(f.chunks) >= 1:
            text += (
                f"chunk_size={fitting} fits, with Jacobians computed repeatedly; or raise "
                "memory_budget, or use "
            )
        else:
            text += "Raise memory_budget, take fewer samples, or use "
        text += "OutputNTKOperator, which holds neither kernel nor Jacobian"
        raise MemoryBudgetError(needed, budget, text)

    def _vmap_fails(self) -> RuntimeError | None:
        """Try vmap on one sample, and return the error if it fails."""
        whole = self.f.chunks[0]
        dim = self.f.batch_dim
        assert dim is not None
        try:
            self._vmapped(whole.part(dim, whole.start, whole.start + 1))
        except RuntimeError as error:
            # vmap raises RuntimeError with various messages: for operations without a batching
            # rule, values read out of tensors, old-style custom functions.
            return error
        return None

    # ------------------------------------------------------------------ Jacobians

    def _vmapped(self, chunk: Chunk) -> Rows:
        f = self.f
        leaves = f.leaves(chunk)
        jacobian = torch.func.jacrev(f.one_sample)
        # A dimension counted from the end means the same with and without vmap.
        dims = (None, *(f.batch_dim for _ in leaves))
        found = torch.func.vmap(jacobian, in_dims=dims)(f.parameters, *leaves)
        return [found[name].reshape(len(chunk), f.width, -1) for name in f.parameters]

    def _backward_rows(self, chunk: Chunk) -> Rows:
        """Compute the Jacobian with one backward pass per sample and output."""
        dim = self.f.batch_dim
        if dim is None or len(chunk) == 1:
            return self._graph_rows(chunk)(0, len(chunk))
        # Each sample is run alone: a backward pass through the whole chunk would be slower.
        singles = [chunk.part(dim, u, u + 1) for u in range(chunk.start, chunk.stop)]
        parts = [self._graph_rows(single)(0, 1) for single in singles]
        return [torch.cat(same) for same in zip(*parts, strict=True)]

    def _graph_rows(self, chunk: Chunk) -> Callable[[int, int], Rows]:
        """Run the network once; return a function from a range of samples to their Jacobian."""
        f = self.f
        parameters = {name: p.clone().requires_grad_() for name, p in f.parameters.items()}
        outputs = f(parameters, chunk.load())
        if not outputs.requires_grad:
            raise ValueError("no output depends on any of the chosen parameters")

        def rows(start: int, stop: int) -> Rows:
            found = [p.new_zeros(stop - start, f.width, p.numel()) for p in f.parameters.values()]
            for u in range(start, stop):
                for o in range(f.width):
                    grads = torch.autograd.grad(
                        outputs[u, o],
                        list(parameters.values()),
                        retain_graph=True,
                        allow_unused=True,
                    )
                    for into, g in zip(found, grads, strict=True):
                        if g is not None:
                            into[u - start, o] = g.reshape(-1)
            return found

        return rows

    def by_jacobians(self, way: Method, budget: int) -> None:
        """Fill :attr:`result` with products of Jacobians. These are kept in memory if they fit."""
        f = self.f
        compute = self._vmapped if way == "jacobian" else self._backward_rows
        chunk = max(len(c) for c in f.chunks)
        whole = (
            self.kernel_bytes + self.jacobian_bytes(f.samples) + self.product_bytes(chunk, chunk)
        )
        keep = whole <= budget
        kept: list[Rows] = []
        self._start()
        for a, first in enumerate(f.chunks):
            rows = compute(first)
            for b, second in enumerate(f.chunks[:a]):
                self._multiply(
                    first.window, rows, second.window, kept[b] if keep else compute(second)
                )
            self._multiply(first.window, rows, first.window, rows)
            if keep:
                kept.append(rows)

    def _multiply(self, first: slice, rows: Rows, second: slice, others: Rows) -> None:
        """Write the products of two chunks' rows into :attr:`result`."""
        f = self.f
        n, m = first.stop - first.start, second.stop - second.start
        if self.diagonal:
            for i, (offset, size) in enumerate(zip(f.offsets, f.components, strict=True)):
                block = _products(
                    [r[:, offset : offset + size].reshape(n, -1) for r in rows],
                    [r[:, offset : offset + size].reshape(m, -1) for r in others],
                    f.dtype,
                )
                self.result[i, first, second] = block
                self.result[i, second, first] = block.T
            return
        # For the trace, the components of a task are part of the summed axis; otherwise each
        # output is one row.
        k = len(f.components)
        per = k if self.traced else f.width
        left = [r.reshape(n * per, -1) for r in rows]
        right = [r.reshape(m * per, -1) for r in others]
        self._put(first, second, _products(left, right, f.dtype).view(n, per, m, per))

    # ------------------------------------------------------------------ NTK-vector products

    def by_products(self, jvp: Literal["forward", "double-backward"]) -> None:
        """Fill :attr:`result` column by column."""
        f = self.f
        self._start()
        for b, second in enumerate(f.chunks):
            for window, rows in self._row_blocks(second):
                count = window.stop - window.start
                tangents = [r.reshape(count * f.width, -1) for r in rows]
                for first in f.chunks[b:]:
                    # (count, width, n, width): the vector's sample and output, then the result's.
                    pushed = self._push(first, tangents, jvp).view(count, f.width, len(first), -1)
                    self._reduce(first.window, window, pushed)

    def _row_blocks(self, chunk: Chunk) -> Iterator[tuple[slice, Rows]]:
        """Yield the Jacobian of a chunk for a few samples at a time."""
        f = self.f
        step = self._products_of(len(chunk))
        dim = f.batch_dim
        rows = self._graph_rows(chunk) if dim is None else None
        for start in range(chunk.start, chunk.stop, step):
            stop = min(start + step, chunk.stop)
            if rows is not None:
                yield slice(start, stop), rows(start - chunk.start, stop - chunk.start)
            else:
                assert dim is not None
                yield slice(start, stop), self._vmapped(chunk.part(dim, start, stop))

    def _push(
        self, chunk: Chunk, tangents: Rows, jvp: Literal["forward", "double-backward"]
    ) -> Tensor:
        """Return J v of a chunk for several vectors v at once, shape (number of v, n, width)."""
        f = self.f
        arguments = chunk.load()
        shaped = {
            name: t.reshape(-1, *p.shape)
            for (name, p), t in zip(f.parameters.items(), tangents, strict=True)
        }

        def outputs(parameters: dict[str, Tensor]) -> Tensor:
            return f(parameters, arguments)

        def forward(v: dict[str, Tensor]) -> Tensor:
            pushed: Tensor = torch.func.jvp(outputs, (f.parameters,), (v,))[1]
            return pushed

        def backward_twice(v: dict[str, Tensor]) -> Tensor:
            primal, pull = torch.func.vjp(outputs, f.parameters)[:2]
            pull_again = torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(primal))[1]
            pushed: Tensor = pull_again(v)[0]
            return pushed

        one = forward if jvp == "forward" else backward_twice
        found: Tensor = torch.func.vmap(one)(shaped)
        return found

    def _reduce(self, first: slice, second: slice, pushed: Tensor) -> None:
        """Write into the result: ``pushed[v, p, u, o]`` is entry ((u, o), (v, p)) of the kernel."""
        f = self.f
        block = pushed.permute(2, 3, 0, 1)
        if self.diagonal:
            for i, (offset, size) in enumerate(zip(f.offsets, f.components, strict=True)):
                own = block[:, offset : offset + size, :, offset : offset + size]
                traced = own.diagonal(dim1=1, dim2=3).sum(-1)
                self.result[i, first, second] = traced
                self.result[i, second, first] = traced.T
            return
        if self.traced:
            k, c = len(f.components), f.components[0]
            n, m = block.shape[0], block.shape[2]
            split = block.reshape(n, k, c, m, k, c)
            block = split.diagonal(dim1=2, dim2=5).sum(-1)
        self._put(first, second, block)

    # ------------------------------------------------------------------ the result

    def _start(self) -> None:
        f = self.f
        size = sum(self.rows)
        shape = (len(self.rows), f.samples, f.samples) if self.diagonal else (size, size)
        self.result = torch.zeros(shape, dtype=f.dtype, device=f.device)

    def _put(self, first: slice, second: slice, block: Tensor) -> None:
        """Write (n, outputs, m, outputs) into the matrix, ordered by task, then sample."""
        sizes = [1] * len(self.rows) if self.traced else list(self.f.components)
        offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        starts = [sum(self.rows[:i]) for i in range(len(sizes))]
        for offset, size, start in zip(offsets, sizes, starts, strict=True):
            own = block[:, offset : offset + size].flatten(0, 1)
            down = slice(start + first.start * size, start + first.stop * size)
            for offset2, size2, start2 in zip(offsets, sizes, starts, strict=True):
                part = own[:, :, offset2 : offset2 + size2].flatten(1, 2)
                across = slice(start2 + second.start * size2, start2 + second.stop * size2)
                self.result[down, across] = part
                self.result[across, down] = part.T


def _products(left: Rows, right: Rows, dtype: torch.dtype) -> Tensor:
    """Return the inner products of two sets of rows, summed over parameters."""
    total = torch.zeros(len(left[0]), len(right[0]), dtype=dtype, device=left[0].device)
    for a, b in zip(left, right, strict=True):
        total.addmm_(a.to(dtype), b.to(dtype).T)
    return total


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number} bytes"
