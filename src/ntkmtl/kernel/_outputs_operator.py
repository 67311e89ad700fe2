"""The NTK of a network's outputs as a linear operator: products with vectors, without a matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ntkmtl.kernel._chunks import Chunk
from ntkmtl.kernel._outputs_function import (
    Forward,
    OutputFunction,
    Outputs,
    ParametersLike,
    position,
    prepare,
)

__all__ = ["JVP", "OutputNTKOperator", "choose_jvp"]

JVP: TypeAlias = Literal["forward", "double-backward", "auto"]
"""How the product of the Jacobian with a vector is computed."""

JVPS: tuple[JVP, ...] = ("forward", "double-backward", "auto")

_ADJOINT = {torch.float64: 1e-8, torch.float32: 1e-3}


def pull(f: OutputFunction, chunk: Chunk, cotangent: Tensor) -> list[Tensor]:
    """Return J^T u for one chunk: one tensor per parameter.

    Args:
        f: The network.
        chunk: The samples.
        cotangent: Shape (n, width).
    """
    parameters = {name: p.clone().requires_grad_() for name, p in f.parameters.items()}
    outputs = f(parameters, chunk.load())
    if not outputs.requires_grad:
        raise ValueError("no output depends on any of the chosen parameters")
    grads = torch.autograd.grad(outputs, list(parameters.values()), cotangent, allow_unused=True)
    return [
        torch.zeros_like(p) if g is None else g
        for p, g in zip(parameters.values(), grads, strict=True)
    ]


def push(f: OutputFunction, chunk: Chunk, tangents: Sequence[Tensor], jvp: str) -> Tensor:
    """Return J v for one chunk, shape (n, width).

    Args:
        f: The network.
        chunk: The samples.
        tangents: One tensor per parameter.
        jvp: ``"forward"`` or ``"double-backward"``: the derivative with respect to u of J^T u,
            which is linear in u, along v.
    """
    if jvp == "forward":
        with forward_ad.dual_level(), torch.no_grad():
            duals = {
                name: forward_ad.make_dual(p, t)
                for (name, p), t in zip(f.parameters.items(), tangents, strict=True)
            }
            primal, tangent = forward_ad.unpack_dual(f(duals, chunk.load()))
            return torch.zeros_like(primal) if tangent is None else tangent
    parameters = {name: p.clone().requires_grad_() for name, p in f.parameters.items()}
    outputs = f(parameters, chunk.load())
    u = torch.zeros_like(outputs, requires_grad=True)
    grads = torch.autograd.grad(
        outputs, list(parameters.values()), u, create_graph=True, allow_unused=True
    )
    pairs = [(g, t) for g, t in zip(grads, tangents, strict=True) if g is not None]
    if not pairs:
        return torch.zeros_like(outputs)
    (product,) = torch.autograd.grad(
        [g for g, _ in pairs], u, [t for _, t in pairs], allow_unused=True
    )
    if product is None:
        # J^T u is linear in u, but a once_differentiable backward pass hides this from autograd.
        raise NotImplementedError("the backward pass of an operation is not differentiable itself")
    return product


def choose_jvp(
    f: OutputFunction, jvp: JVP, *, check: bool
) -> Literal["forward", "double-backward"]:
    """Choose how to compute J v, by a trial on two samples.

    ``"auto"`` chooses forward mode if every operation of the network supports it.

    Raises:
        ValueError: ``jvp`` is unknown, or J v and J^T u contradict each other.
        NotImplementedError: An operation of the network lacks the derivative.
    """
    if jvp not in JVPS:
        raise ValueError(f"jvp must be one of {', '.join(JVPS)}, found {jvp!r}")
    chunk = f.chunks[0]
    if f.batch_dim is not None and len(chunk) > 2:
        chunk = chunk.part(f.batch_dim, chunk.start, chunk.start + 2)
    generator = torch.Generator().manual_seed(0)

    def draw(like: Tensor) -> Tensor:
        drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64, device="cpu")
        return drawn.to(device=like.device, dtype=like.dtype)

    tangents = [draw(p) for p in f.parameters.values()]
    ways: list[Literal["forward", "double-backward"]]
    ways = ["forward", "double-backward"] if jvp == "auto" else [jvp]
    missing: list[RuntimeError] = []
    for way in ways:
        pushed = _attempt(f, chunk, tangents, way)
        if isinstance(pushed, Tensor):
            break
        missing.append(pushed)
    else:
        said = "; ".join(f"{w}: {e}" for w, e in zip(ways, missing, strict=True))
        advice = (
            'use method="rows" of output_ntk, which needs first derivatives alone'
            if jvp == "auto"
            else 'use the other, or jvp="auto", or method="rows" of output_ntk'
        )
        raise NotImplementedError(
            "an operation of the network lacks the derivative that J v needs with "
            f"jvp={jvp!r}; {advice}. PyTorch says: {said}"
        ) from missing[-1]
    if check:
        cotangent = draw(pushed)
        pulled = pull(f, chunk, cotangent)
        _require_adjoint(pushed, cotangent, pulled, tangents, way)
    return way


def _attempt(
    f: OutputFunction, chunk: Chunk, tangents: Sequence[Tensor], jvp: str
) -> Tensor | RuntimeError:
    """Return J v, or PyTorch's error if an operation lacks the needed derivative."""
    try:
        return push(f, chunk, tangents, jvp)
    except RuntimeError as error:
        if not _is_missing(error):
            raise
        return error


def _is_missing(error: Exception) -> bool:
    """Whether PyTorch's error says that an operation lacks the needed derivative."""
    text = str(error)
    return isinstance(error, NotImplementedError) or any(
        part in text
        for part in (
            "forward AD",
            "forward mode AD",
            "jvp is not implemented",
            "implement the jvp",
            "is not implemented",
            "not differentiable twice",
        )
    )


def _require_adjoint(
    pushed: Tensor,
    cotangent: Tensor,
    pulled: Sequence[Tensor],
    tangents: Sequence[Tensor],
    jvp: str,
) -> None:
    """Check that <u, J v> = <J^T u, v>; wrong derivatives of custom operations violate this."""
    left = (cotangent.double() * pushed.double()).sum()
    products = [(g.double() * t.double()).sum() for g, t in zip(pulled, tangents, strict=True)]
    right = torch.stack(products).sum()
    size = cotangent.double().norm() * pushed.double().norm() + torch.stack(products).abs().sum()
    if not (left - right).abs() <= _ADJOINT.get(pushed.dtype, 0.1) * size:
        raise ValueError(
            f"J v by jvp={jvp!r} contradicts J^T u: <u, J v> is {left:.6g} and <J^T u, v> is "
            f"{right:.6g}. A custom operation of the network has a wrong derivative, or one "
            'that is not differentiable itself; try another jvp, or method="rows" of output_ntk'
        )


class OutputNTKOperator:
    r"""The extended NTK of outputs, J J^T of Eq. 9, without J or the kernel in memory.

    A product takes one J^T u (a backward pass) and one J v (a forward-mode pass, or two backward
    passes) over the data, chunk by chunk. It needs the memory of three copies of the parameters and
    of one chunk's activations. The trace form sums over the C components, so it takes C of each.

    Entries of vectors are ordered by task, then sample, then component, like the rows of
    :meth:`OutputNTK.matrix <ntkmtl.kernel.OutputNTK.matrix>`.

    Args:
        function: As for :func:`ntkmtl.kernel.output_ntk`.
        inputs: As for :func:`ntkmtl.kernel.output_ntk`.
        parameters: As for :func:`ntkmtl.kernel.output_ntk`.
        outputs: As for :func:`ntkmtl.kernel.output_ntk`.
        forward: As for :func:`ntkmtl.kernel.output_ntk`.
        names: As for :func:`ntkmtl.kernel.output_ntk`.
        task_dim: As for :func:`ntkmtl.kernel.output_ntk`.
        batch_dim: As for :func:`ntkmtl.kernel.output_ntk`.
        directions: As for :func:`ntkmtl.kernel.output_ntk`.
        seed: As for :func:`ntkmtl.kernel.output_ntk`.
        chunk_size: Samples per pass; None for all at once.
        jvp: ``"forward"`` computes J v by forward-mode differentiation, ``"double-backward"`` by
            two backward passes, for operations without forward mode; ``"auto"`` takes forward mode
            if possible. The attribute ``jvp`` tells which was taken.
        check: As for :func:`ntkmtl.kernel.output_ntk`; also checks <u, J v> = <J^T u, v> on two
            samples.

    Attributes:
        jvp: ``"forward"`` or ``"double-backward"``.
        names: Names of the tasks.
        components: Numbers per sample of each task's output.

    Raises:
        ValueError: As for :func:`ntkmtl.kernel.output_ntk`. A product also raises it for the trace
            form of tasks with different numbers of components, where only ``block(i)`` exists.
        NotImplementedError: An operation of the network lacks the derivative that ``jvp`` needs.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x = torch.tensor([[1.0], [2.0]])
        >>> K = OutputNTKOperator(nn.Linear(1, 1), x)  # kernel x x' + 1
        >>> K @ torch.tensor([1.0, 0.0])
        tensor([2., 3.])
        >>> K.jvp
        'forward'
    """

    def __init__(
        self,
        function: nn.Module | Callable[..., Any],
        inputs: Any,
        parameters: ParametersLike | None = None,
        *,
        outputs: Outputs = "trace",
        forward: Forward | None = None,
        names: Sequence[str] | None = None,
        task_dim: int | None = None,
        batch_dim: int | None = 0,
        directions: int = 1,
        seed: int = 0,
        chunk_size: int | None = None,
        jvp: JVP = "auto",
        check: bool = True,
    ) -> None:
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
            self.jvp = choose_jvp(f, jvp, check=check)
        self._f = f
        self._of = tuple(range(len(f.components)))

    def __repr__(self) -> str:
        return (
            f"OutputNTKOperator(tasks={self.tasks}, samples={self.samples}, "
            f"components={self.components}, outputs={self._f.outputs!r}, jvp={self.jvp!r}, "
            f"chunks={len(self._f.chunks)})"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(self._f.names[i] for i in self._of)

    @property
    def components(self) -> tuple[int, ...]:
        """Numbers per sample of each task's output."""
        return tuple(self._f.components[i] for i in self._of)

    @property
    def tasks(self) -> int:
        """Number of tasks k."""
        return len(self._of)

    @property
    def samples(self) -> int:
        """Number of samples N."""
        return self._f.samples

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of products."""
        return self._f.dtype

    @property
    def device(self) -> torch.device:
        """Device of products."""
        return self._f.device

    @property
    def _rows(self) -> list[int]:
        """Number of rows of each task."""
        traced = self._f.outputs == "trace"
        return [self.samples * (1 if traced else c) for c in self.components]

    @property
    def shape(self) -> tuple[int, int]:
        """(R, R), with R the number of rows of the kernel."""
        size = sum(self._rows)
        return size, size

    def block(self, task: int | str) -> OutputNTKOperator:
        """Return the operator of one task's block K_ii.

        Args:
            task: Its name or position.

        Raises:
            KeyError: There is no such task.
        """
        view = object.__new__(OutputNTKOperator)
        view.jvp = self.jvp
        view._f = self._f
        view._of = (self._of[position(task, self.names)],)
        return view

    def __matmul__(self, vector: Tensor) -> Tensor:
        """Return the product with a vector (R,) or, column by column, with a matrix (R, m).

        Raises:
            ValueError: The shape is wrong, or only diagonal blocks of this kernel exist.
            FloatingPointError: The product is not finite.
        """
        if vector.ndim not in (1, 2) or vector.shape[0] != self.shape[0]:
            raise ValueError(
                f"a vector for this operator must have shape ({self.shape[0]},) or "
                f"({self.shape[0]}, m), found {tuple(vector.shape)}"
            )
        if vector.ndim == 2:
            columns = [self @ column for column in vector.unbind(1)]
            return torch.stack(columns, 1) if columns else torch.zeros_like(vector)
        v = vector.detach().to(device=self.device, dtype=self.dtype)
        with self._f.isolated():
            result = self._traced(v) if self._f.outputs == "trace" else self._full(v)
        if not torch.isfinite(result).all():
            raise FloatingPointError(
                "the product of the kernel with a vector is not finite; look at the network's "
                "parameters and inputs"
            )
        return result

    def _columns(self, task: int) -> slice:
        start = self._f.offsets[task]
        return slice(start, start + self._f.components[task])

    def _full(self, v: Tensor) -> Tensor:
        cotangent = v.new_zeros(self.samples, self._f.width)
        for i, part in zip(self._of, v.split(self._rows), strict=True):
            cotangent[:, self._columns(i)] = part.view(self.samples, -1)
        product = self._product(cotangent)
        return torch.cat([product[:, self._columns(i)].reshape(-1) for i in self._of])

    def _traced(self, v: Tensor) -> Tensor:
        count = self.components[0]
        if len(set(self.components)) > 1:
            raise ValueError(
                f"tasks have {self.components} components: the trace over components exists in the "
                'diagonal blocks only. Use .block(i), or outputs="full" or "projection"'
            )
        columns = torch.tensor([self._f.offsets[i] for i in self._of], device=v.device)
        parts = v.view(self.tasks, self.samples).T
        result = torch.zeros_like(parts)
        for c in range(count):
            cotangent = v.new_zeros(self.samples, self._f.width)
            cotangent[:, columns + c] = parts
            result = result + self._product(cotangent)[:, columns + c]
        return result.T.reshape(-1)

    def _product(self, cotangent: Tensor) -> Tensor:
        """Return J J^T u for u of shape (N, width), in the same shape."""
        f = self._f
        gradient: list[Tensor] | None = None
        for chunk in f.chunks:
            part = pull(f, chunk, cotangent[chunk.window])
            if gradient is None:
                gradient = part
            else:
                for total, more in zip(gradient, part, strict=True):
                    total += more
        assert gradient is not None
        result = torch.empty_like(cotangent)
        for chunk in f.chunks:
            result[chunk.window] = push(f, chunk, gradient, self.jvp)
        return result
