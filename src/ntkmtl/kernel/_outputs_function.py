"""A network as a pure function of its parameters, with its inputs in chunks.

Defines what kernels of outputs differentiate, and checks network and inputs. Nothing is
differentiated here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ntkmtl.kernel._chunks import Batches, Chunk, as_arguments, batch_size, cut
from ntkmtl.kernel._nested import leaves_of, map_leaves

__all__ = ["Forward", "OutputFunction", "Outputs", "ParametersLike", "prepare"]

Outputs: TypeAlias = Literal["full", "trace", "projection"]
"""What is done with the components of a task's output."""

Forward: TypeAlias = Callable[..., Any]
"""A function from a module and its inputs to its outputs."""

ParametersLike: TypeAlias = (
    Literal["all", "shared"]
    | Iterable[Tensor]
    | Mapping[str, Tensor]
    | Callable[[str, nn.Parameter], bool]
)
"""Which parameters a kernel is with respect to."""

OUTPUTS: tuple[Outputs, ...] = ("full", "trace", "projection")

PROBE = 8
"""Number of samples used for the checks before the start."""

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


class _Called(nn.Module):
    """Wraps a module and a function that calls it, for :func:`torch.func.functional_call`."""

    def __init__(self, module: nn.Module, call: Forward) -> None:
        super().__init__()
        self.training = module.training
        self.module = module
        self._call = call

    def forward(self, *arguments: Any) -> Any:
        return self._call(self.module, *arguments)


def _default_forward(module: nn.Module) -> Forward:
    trunk, heads = getattr(module, "represent", None), getattr(module, "predict", None)
    unimplemented = type(module).forward is nn.Module.forward
    if unimplemented and callable(trunk) and callable(heads):
        # A MultiTaskModel does not define forward.
        return lambda m, *arguments: m.predict(m.represent(*arguments))
    if unimplemented:
        raise ValueError(
            f"{type(module).__name__} has no forward method; say how it is called with "
            "forward=lambda module, inputs: ..."
        )
    return lambda m, *arguments: m(*arguments)


def _where(name: str, module: nn.Module) -> str:
    return f"module {name or '(the network itself)'} ({type(module).__name__})"


def require_eval(network: nn.Module) -> None:
    """Check that no module uses random numbers or the other samples of the batch.

    Raises:
        ValueError: A batch norm uses the batch's statistics, or a dropout is active. The error
            names the module.
    """
    for name, module in network.named_modules():
        where = _where(name, module)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.running_mean is None:
                raise ValueError(
                    f"{where} was made with track_running_stats=False: it normalizes by the "
                    "statistics of the batch in every mode, so that an output depends on the other "
                    "samples and has no kernel of its own. Make it with running statistics"
                )
            if module.training:
                raise ValueError(
                    f"{where} is in training mode: it normalizes by the statistics of the batch, "
                    "so that an output depends on the other samples. Call .eval() on the network "
                    "first"
                )
        elif isinstance(module, nn.modules.instancenorm._InstanceNorm):
            if module.training and module.track_running_stats:
                raise ValueError(
                    f"{where} is in training mode: it changes its running statistics. Call "
                    ".eval() on the network first"
                )
        elif module.training:
            dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
            within = isinstance(module, (nn.RNNBase, nn.MultiheadAttention)) and module.dropout > 0
            if dropout or within or isinstance(module, nn.RReLU):
                raise ValueError(
                    f"{where} is in training mode: it draws at random, so that the outputs have no "
                    "kernel. Call .eval() on the network first"
                )


def select(module: nn.Module, parameters: ParametersLike | None) -> dict[str, Tensor]:
    """Return the parameters that the kernel is with respect to, by name.

    Frozen parameters are left out; tied ones are listed once.

    Raises:
        ValueError: No parameter is left, a tensor is not a parameter of the module, or the module
            has no ``shared_parameters()``.
    """
    named = dict(module.named_parameters())
    if parameters is None or parameters == "all":
        chosen = named
    elif isinstance(parameters, str):
        if parameters != "shared":
            raise ValueError(
                f'parameters must be "all", "shared", tensors, names with tensors or a filter. '
                f"Found {parameters!r}."
            )
        shared = getattr(module, "shared_parameters", None)
        if not callable(shared):
            raise ValueError(
                f'parameters="shared" reads shared_parameters() of the network, which '
                f"{type(module).__name__} does not have; give the parameters themselves"
            )
        chosen = _by_identity(named, shared())
    elif isinstance(parameters, Mapping):
        chosen = _by_identity(named, parameters.values())
    elif callable(parameters):
        chosen = {name: p for name, p in named.items() if parameters(name, p)}
    else:
        chosen = _by_identity(named, parameters)
    trainable = {name: p.detach() for name, p in chosen.items() if p.requires_grad}
    if not trainable:
        raise ValueError(
            f"no trainable parameter is left: {len(chosen)} of {len(named)} were chosen, and all "
            "of these are frozen (requires_grad=False)"
        )
    return trainable


def _by_identity(
    named: Mapping[str, nn.Parameter], parameters: Iterable[Tensor]
) -> dict[str, nn.Parameter]:
    wanted = {id(p): p for p in parameters}
    chosen = {name: p for name, p in named.items() if id(p) in wanted}
    strangers = wanted.keys() - {id(p) for p in chosen.values()}
    if strangers:
        shapes = ", ".join(str(tuple(wanted[i].shape)) for i in sorted(strangers))
        raise ValueError(
            f"{len(strangers)} of the parameters given are not parameters of the network (shapes "
            f"{shapes}); give the very tensors that network.parameters() yields"
        )
    return chosen


class OutputFunction:
    """The function to differentiate: from parameters and inputs to the outputs of all tasks.

    Attributes:
        parameters: Detached parameters by name.
        names: Names of the tasks.
        components: For each task the numbers per sample of its output, after a projection if any.
        shapes: For each task the shape of its output without the samples, before a projection.
        samples: Number of samples N.
        chunks: The data.
        batch_dim: Dimension of the samples in the inputs, None if they cannot be sliced.
        outputs: ``"full"``, ``"trace"`` or ``"projection"``.
    """

    def __init__(
        self,
        call: Callable[[Mapping[str, Tensor], tuple[Any, ...]], Any],
        parameters: dict[str, Tensor],
        *,
        outputs: Outputs,
        task_dim: int | None,
        names: Sequence[str] | None,
        directions: int,
        seed: int,
    ) -> None:
        self._call = call
        self._task_dim = task_dim
        self._given_names = names
        self._directions = directions
        self._seed = seed
        self._projections: dict[int, Tensor] = {}
        self.parameters = parameters
        self.outputs = outputs
        self.names: tuple[str, ...] = ()
        self.components: tuple[int, ...] = ()
        self.shapes: tuple[tuple[int, ...], ...] = ()
        self.samples = 0
        self.chunks: list[Chunk] = []
        self.batch_dim: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the parameters' dtypes promote to."""
        result = torch.empty(0, dtype=next(iter(self.parameters.values())).dtype)
        for p in self.parameters.values():
            result = result.to(torch.promote_types(result.dtype, p.dtype))
        return result.dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(iter(self.parameters.values())).device

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return sum(p.numel() for p in self.parameters.values())

    @property
    def width(self) -> int:
        """Outputs per sample, all tasks together."""
        return sum(self.components)

    @property
    def offsets(self) -> list[int]:
        """For each task its first column among the outputs of one sample."""
        return [sum(self.components[:i]) for i in range(len(self.components))]

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Enable gradients, and restore the random states at the end.

        Fused attention is replaced by the plain implementation, because it has no forward-mode or
        second derivatives and no batching rule.
        """
        devices = {p.device for p in self.parameters.values() if p.device.type == "cuda"}
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            with (
                torch.random.fork_rng(devices=sorted(devices, key=str)),
                torch.enable_grad(),
                sdpa_kernel(SDPBackend.MATH),
            ):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)

    def __call__(self, parameters: Mapping[str, Tensor], arguments: tuple[Any, ...]) -> Tensor:
        """Return the outputs of all tasks side by side, shape (n, :attr:`width`)."""
        columns = []
        for _, output in self._tasks(self._call(parameters, arguments)):
            flat = output.reshape(output.shape[0], -1)
            if self.outputs == "projection":
                flat = flat @ self._projection(flat)
            columns.append(flat)
        return torch.cat(columns, dim=1)

    def one_sample(self, parameters: Mapping[str, Tensor], *leaves: Tensor) -> Tensor:
        """Return the outputs of one sample, shape (:attr:`width`,).

        Args:
            parameters: By name.
            *leaves: The input tensors without their batch dimension, as :meth:`leaves` orders them.
        """
        assert self.batch_dim is not None
        found = iter(leaves)
        dim = self.batch_dim
        # A negative dim counts from the end of the tensor that includes the batch dimension.
        whole = map_leaves(
            lambda leaf: next(found).unsqueeze(dim) if isinstance(leaf, Tensor) else leaf,
            self._pattern,
        )
        return self(parameters, whole)[0]

    def leaves(self, chunk: Chunk) -> list[Tensor]:
        """Return the tensors in a chunk's inputs, and remember their nesting for one_sample."""
        self._pattern = chunk.load()
        return [leaf for leaf in leaves_of(self._pattern) if isinstance(leaf, Tensor)]

    def _projection(self, like: Tensor) -> Tensor:
        """Return the r fixed random directions for an output of C numbers, shape (C, r).

        Entries are N(0, 1 / r), so that the projected kernel summed over directions is an unbiased
        estimate of the kernel summed over components.
        """
        size = like.shape[1]
        if size not in self._projections:
            generator = torch.Generator().manual_seed(self._seed)
            directions = torch.randn(
                (size, self._directions), generator=generator, dtype=torch.float64, device="cpu"
            )
            scaled = directions / self._directions**0.5
            self._projections[size] = scaled.to(device=like.device, dtype=like.dtype)
        return self._projections[size]

    def _tasks(self, result: Any) -> list[tuple[str, Tensor]]:
        """Return name and output of each task."""
        if isinstance(result, Tensor) and self._task_dim is not None:
            if not -result.ndim <= self._task_dim < result.ndim or (
                self._task_dim % result.ndim == 0
            ):
                raise ValueError(
                    f"task_dim={self._task_dim} is the samples' dimension or none of an output of "
                    f"shape {tuple(result.shape)}"
                )
            found = {str(i): t for i, t in enumerate(result.unbind(self._task_dim))}
        elif self._task_dim is not None:
            raise ValueError(
                f"task_dim is for a network that returns one tensor, found {_kind(result)}"
            )
        elif isinstance(result, Tensor):
            found = {"0": result}
        elif isinstance(result, Mapping):
            found = {str(name): t for name, t in result.items()}
        elif isinstance(result, (list, tuple)):
            found = {str(i): t for i, t in enumerate(result)}
        else:
            raise TypeError(
                "the network must return a tensor, or a list, tuple or dict with one tensor per "
                f"task, found {_kind(result)}; pick them out with forward=lambda module, inputs: "
                "..."
            )
        names = list(found) if self._given_names is None else list(self._given_names)
        if len(names) != len(found) or not found:
            raise ValueError(f"{len(found)} outputs for {len(names)} names of tasks")
        return list(zip(names, found.values(), strict=True))

    def describe(self, arguments: tuple[Any, ...]) -> int:
        """Call the network once, store names and shapes of its outputs, and return their samples.

        Raises:
            TypeError: An output is not a tensor of floating-point numbers.
            ValueError: Tasks differ in their number of samples, or batches in the outputs' shapes.
            FloatingPointError: An output is not finite.
        """
        with torch.no_grad():
            tasks = self._tasks(self._call(self.parameters, arguments))
        sizes = set()
        for name, output in tasks:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                kind = output.dtype if isinstance(output, Tensor) else _kind(output)
                raise TypeError(
                    f"the output of task {name} must be a tensor of floating-point numbers, "
                    f"found {kind}"
                )
            if output.ndim == 0 or 0 in output.shape:
                raise ValueError(
                    f"the output of task {name} must have shape (B, ...), none of them 0, found "
                    f"{tuple(output.shape)}"
                )
            if not torch.isfinite(output).all():
                raise FloatingPointError(
                    f"the output of task {name} is not finite; look at the inputs and parameters"
                )
            sizes.add(output.shape[0])
        if len(sizes) != 1:
            shapes = ", ".join(f"{name} {tuple(o.shape)}" for name, o in tasks)
            raise ValueError(f"outputs must have the samples along dimension 0, found {shapes}")
        shapes_now = tuple(tuple(o.shape[1:]) for _, o in tasks)
        if self.shapes and shapes_now != self.shapes:
            raise ValueError(
                f"outputs of different batches differ in shape: {self.shapes} and {shapes_now} "
                "without the samples"
            )
        self.names = tuple(name for name, _ in tasks)
        self.shapes = shapes_now
        self.components = tuple(
            self._directions if self.outputs == "projection" else o[0].numel() for _, o in tasks
        )
        return sizes.pop()

    def task(self, which: int | str) -> int:
        """Return the position of a task given by name or position.

        Raises:
            KeyError: There is no such task.
        """
        return position(which, self.names)


def position(which: int | str, names: Sequence[str]) -> int:
    """Return the position of a task given by name or position.

    Raises:
        KeyError: There is no such task.
    """
    if isinstance(which, str) and which in names:
        return list(names).index(which)
    if isinstance(which, int) and -len(names) <= which < len(names):
        return which % len(names)
    raise KeyError(f"no task {which!r} among {len(names)}: {', '.join(names)}")


def _kind(value: object) -> str:
    return type(value).__name__


def _pure(
    function: nn.Module | Callable[..., Any],
    parameters: ParametersLike | None,
    forward: Forward | None,
) -> tuple[Callable[[Mapping[str, Tensor], tuple[Any, ...]], Any], dict[str, Tensor]]:
    """Return a pure function of parameters and arguments, and the parameters."""
    if not isinstance(function, nn.Module):
        if not isinstance(parameters, Mapping) or not parameters:
            raise ValueError(
                "a function of (parameters, inputs) needs parameters as a dict of tensors; found "
                f"{_kind(parameters)}. Give an nn.Module, or the dict"
            )
        if forward is not None:
            raise ValueError("forward says how a module is called; a function is called as it is")
        return (
            lambda values, arguments: function(dict(values), *arguments),
            {name: p.detach() for name, p in parameters.items()},
        )
    module = function
    chosen = select(module, parameters)
    require_eval(module)
    wrapped = _Called(module, forward or _default_forward(module))
    fixed = {f"module.{n}": p.detach() for n, p in module.named_parameters() if n not in chosen}
    buffers = {f"module.{n}": b for n, b in module.named_buffers()}

    def call(values: Mapping[str, Tensor], arguments: tuple[Any, ...]) -> Any:
        # Copies, as a module may write into its buffers.
        state = {**fixed, **{n: b.clone() for n, b in buffers.items()}}
        state.update({f"module.{n}": p for n, p in values.items()})
        return torch.func.functional_call(wrapped, state, arguments)

    return call, chosen


def _real(
    call: Callable[[Mapping[str, Tensor], tuple[Any, ...]], Any], parameters: dict[str, Tensor]
) -> tuple[Callable[[Mapping[str, Tensor], tuple[Any, ...]], Any], dict[str, Tensor]]:
    """Return a function of real parameters, in which a complex number is two real ones."""
    pairs = {name for name, p in parameters.items() if p.is_complex()}
    if not pairs:
        return call, parameters

    def of_real(values: Mapping[str, Tensor], arguments: tuple[Any, ...]) -> Any:
        whole = {n: torch.view_as_complex(p) if n in pairs else p for n, p in values.items()}
        return call(whole, arguments)

    return of_real, {
        name: torch.view_as_real(p.resolve_conj()) if name in pairs else p
        for name, p in parameters.items()
    }


def prepare(
    function: nn.Module | Callable[..., Any],
    inputs: Any,
    parameters: ParametersLike | None,
    *,
    outputs: Outputs,
    forward: Forward | None,
    names: Sequence[str] | None,
    task_dim: int | None,
    batch_dim: int | None,
    directions: int,
    seed: int,
    chunk_size: int | None,
    check: bool,
) -> OutputFunction:
    """Check network and inputs, and return them as an :class:`OutputFunction`.

    Raises:
        ValueError: See :func:`ntkmtl.kernel.output_ntk`.
    """
    if outputs not in OUTPUTS:
        raise ValueError(f"outputs must be one of {', '.join(OUTPUTS)}, found {outputs!r}")
    if directions < 1:
        raise ValueError(f"directions must be at least 1. Found directions={directions}.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1. Found chunk_size={chunk_size}.")
    call, chosen = _real(*_pure(function, parameters, forward))
    result = OutputFunction(
        call,
        chosen,
        outputs=outputs,
        task_dim=task_dim,
        names=names,
        directions=directions,
        seed=seed,
    )
    with result.isolated():
        if isinstance(inputs, Batches):
            _set_batches(result, inputs, batch_dim, chunk_size, check)
        else:
            _set_batch(result, as_arguments(inputs), batch_dim, chunk_size, check)
    return result


def _set_batches(
    f: OutputFunction, inputs: Batches, batch_dim: int | None, chunk_size: int | None, check: bool
) -> None:
    if chunk_size is not None:
        raise ValueError("Batches are the chunks: leave out chunk_size, or give smaller batches")
    start = 0
    separable = True
    for index in range(len(inputs)):
        arguments = as_arguments(inputs[index])
        count = f.describe(arguments)
        separable = separable and batch_size(arguments, batch_dim) == count
        if check and index == 0:
            _check(f, arguments, count, batch_dim if separable else None)

        def load(index: int = index) -> tuple[Any, ...]:
            return as_arguments(inputs[index])

        f.chunks.append(Chunk(start, start + count, load))
        start += count
    f.samples = start
    f.batch_dim = batch_dim if separable else None


def _set_batch(
    f: OutputFunction,
    arguments: tuple[Any, ...],
    batch_dim: int | None,
    chunk_size: int | None,
    check: bool,
) -> None:
    size = batch_size(arguments, batch_dim)
    if size == 0:
        raise ValueError("the inputs hold no sample")
    separable = size is not None
    if size is not None:
        # If a few rows give another number of outputs, rows of the inputs are not samples (but
        # nodes of graphs, say). Then the whole batch is called once to count its samples.
        assert batch_dim is not None
        probe = cut(arguments, batch_dim, 0, min(size, PROBE))
        separable = f.describe(probe) == min(size, PROBE)
        f.shapes = f.shapes if separable else ()
    if not separable:
        count = f.describe(arguments)
        if chunk_size is not None:
            raise ValueError(
                "chunk_size cannot be used: the samples of these inputs cannot be taken apart "
                f"along dimension {batch_dim} (tensors of different sizes there, or an object that "
                "is not a tensor, list, tuple or dict). Give ntkmtl.kernel.Batches([...]) with "
                "smaller batches"
            )
        if check:
            _check(f, arguments, count, None)
        f.samples = count
        f.chunks = [Chunk(0, count, lambda: arguments)]
        return
    assert size is not None
    assert batch_dim is not None
    f.samples = size
    f.batch_dim = batch_dim
    if check:
        _check(f, probe, min(size, PROBE), batch_dim)
    set_chunks(f, arguments, chunk_size or size)


def set_chunks(f: OutputFunction, arguments: tuple[Any, ...], chunk_size: int) -> None:
    """Slice the data into chunks of at most ``chunk_size`` samples."""
    assert f.batch_dim is not None
    dim = f.batch_dim
    f.chunks = []
    for start in range(0, f.samples, chunk_size):
        stop = min(start + chunk_size, f.samples)

        def load(start: int = start, stop: int = stop) -> tuple[Any, ...]:
            return cut(arguments, dim, start, stop)

        f.chunks.append(Chunk(start, stop, load))


def _check(f: OutputFunction, arguments: tuple[Any, ...], count: int, dim: int | None) -> None:
    """Check that outputs depend neither on chance nor on the other samples of the batch."""
    with torch.no_grad():
        first, again = f(f.parameters, arguments), f(f.parameters, arguments)
        if not _close(first, again):
            raise ValueError(
                "two calls of the network on the same inputs gave different outputs: it draws at "
                "random or keeps a state, and its outputs have no kernel. Call .eval(), or fix its "
                "random numbers"
            )
        if dim is None or count < 2:
            return
        half = count // 2
        parts = [
            f(f.parameters, cut(arguments, dim, 0, half)),
            f(f.parameters, cut(arguments, dim, half, count)),
        ]
    if any(len(part) != n for part, n in zip(parts, (half, count - half), strict=True)) or (
        not _close(first, torch.cat(parts))
    ):
        raise ValueError(
            "an output depends on the other samples of its batch (half a batch gave other outputs "
            "than the whole), so that samples cannot be taken apart: neither vmap nor chunks give "
            "the right kernel. Take out what mixes samples (batch statistics, attention over the "
            "batch), or give batch_dim=None for the kernel of this batch as a whole"
        )


def _close(a: Tensor, b: Tensor) -> bool:
    # Matrix products of different sizes differ by rounding, relative to their largest terms.
    tolerance = _TOLERANCE.get(a.dtype, 3e-2)
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * a.abs().max())
