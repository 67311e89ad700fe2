r"""The kernel of the shared parameters from random directions: the probe.

For a direction v over the shared parameters, the slope of every task's loss on every mini-batch is

    a[i, u] = c_iu sum_{s in u} < G_i[s], dz_s(v) >,

dz(v) the change of the trunk's output along v and c_iu the scale that makes mini-batch u's gradient
of the batch's (Eq. 9). One run of the trunk gives a for all k tasks and n mini-batches at once. As
a is the Jacobian of the losses times v, ``E[a a^T] = K`` for v of mean 0 and covariance I: the
extended NTK of Eq. 8, unbiased, at a cost that does not grow with k or n. With m directions the
relative variance of one entry of the diagonal is 2 / m.
"""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ntkmtl.graph import Features, TaskGradients, leaves, trainable
from ntkmtl.kernel._extended import ExtendedNTK
from ntkmtl.kernel._partition import Partition
from ntkmtl.kernel._ranks import Ranks

__all__ = [
    "Probe",
    "ProbeMode",
    "RememberInputs",
    "TrunkCall",
    "draw_direction",
    "kernel_from_slopes",
    "probe_kernel",
    "probe_slopes",
]

ProbeMode = Literal["difference", "forward"]
MODES: tuple[ProbeMode, ...] = ("difference", "forward")

_HALF = (torch.float16, torch.bfloat16)

STEPS = {torch.float32: 1e-4, torch.float64: 1e-7}
"""Length of a difference's step relative to the parameters, by their dtype.

Shorter steps drown in rounding, longer ones in curvature; see docs/estimators.md.
"""


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and dicts, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)


class _Method(nn.Module):
    """Calls a method of a module, so that ``functional_call`` can exchange what it reads."""

    def __init__(self, module: nn.Module, method: str) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = self.module if self.method == "forward" else getattr(self.module, self.method)
        return call(*args, **kwargs)


@dataclass
class TrunkCall:
    """One forward pass of the trunk, about to be run, with all that running it again needs.

    Made right before the pass, it keeps the random states (so that dropout draws the same masks),
    the state of autocast and a copy of the buffers. It holds on to the inputs, not to copies.

    Args:
        module: The trunk, or the model that has it as a method.
        args: Positional inputs.
        kwargs: Inputs by name.
        method: The method that runs the trunk.

    Example:
        >>> import torch
        >>> trunk = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.5))
        >>> x = torch.ones(1, 2)
        >>> call = TrunkCall(trunk, (x,))
        >>> z, state = trunk(x), torch.get_rng_state()
        >>> (again,) = call.run({})
        >>> torch.equal(again, z), torch.equal(torch.get_rng_state(), state)
        (True, True)
    """

    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    method: str = "forward"
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        # A compiled module is run as it was written: exchanged parameters would compile it anew.
        self.module = getattr(self.module, "_orig_mod", self.module)
        places = {tensor.device for tensor in _tensors((self.args, dict(self.kwargs)))}
        places |= {p.device for p in self.module.parameters()}
        self._devices = sorted((d for d in places if d.type not in ("cpu", "meta")), key=str)
        self._random = _random_states(self._devices)
        kinds = sorted({"cpu", *(device.type for device in self._devices)})
        self._autocast = {
            kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in kinds
        }
        self._default = torch.get_default_device()
        self._buffers = {name: b.detach().clone() for name, b in self.module.named_buffers()}
        self._versions = [(t, t._version) for t in _tensors((self.args, dict(self.kwargs)))]

    @property
    def autocast(self) -> bool:
        """Whether the pass is run in mixed precision."""
        return any(enabled for enabled, _ in self._autocast.values())

    def run(self, parameters: Mapping[str, Tensor], *, autocast: bool = True) -> tuple[Tensor, ...]:
        """Run the trunk again with some parameters exchanged, and leave everything as it was.

        Args:
            parameters: By their names in ``module``; the others keep their values.
            autocast: False to run in full precision what was run in mixed precision.

        Returns:
            The tensors that it returns, without a graph; those at ``positions`` if they are given.

        Raises:
            ValueError: An input was changed in place since.
        """
        if any(tensor._version != version for tensor, version in self._versions):
            raise ValueError(
                "an input of the trunk was changed in place after the forward pass, so it cannot "
                "be run again; set inplace=False in its first layer, or give it a copy"
            )
        exchanged = {
            f"module.{name}": tensor
            for name, tensor in (
                *parameters.items(),
                # Copies again, as batch norm writes to them.
                *((name, buffer.clone()) for name, buffer in self._buffers.items()),
            )
        }
        now = _random_states(self._devices)
        with ExitStack() as stack:
            stack.callback(_set_random_states, now)
            stack.enter_context(torch.no_grad())
            if torch.get_default_device() != self._default:
                # What the trunk makes without a word on where.
                stack.enter_context(self._default)
            stack.enter_context(_plain_kernels())
            for kind, (enabled, dtype) in self._autocast.items():
                stack.enter_context(
                    torch.autocast(
                        kind, dtype=dtype, enabled=enabled and autocast, cache_enabled=False
                    )
                )
            _set_random_states(self._random)
            runner = _Method(self.module, self.method)
            output = torch.func.functional_call(runner, exchanged, self.args, dict(self.kwargs))
        found = tuple(_tensors(output))
        return found if self.positions is None else tuple(found[i] for i in self.positions)


_States = list[tuple[torch.device | None, Tensor]]


def _random_states(devices: Sequence[torch.device]) -> _States:
    others: _States = [(d, torch.get_device_module(d).get_rng_state(d)) for d in devices]
    return [(None, torch.get_rng_state()), *others]


def _set_random_states(states: _States) -> None:
    for device, state in states:
        if device is None:
            torch.set_rng_state(state)
        else:
            torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def _plain_kernels() -> Iterator[None]:
    """Run modules as they are run with gradients: no fused inference, nothing compiled."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        if "torch._dynamo" in sys.modules:  # else nothing was compiled, and importing it is slow
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def draw_direction(
    parameters: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw a direction over parameters, independent N(0, 1) entries.

    Args:
        parameters: By name.
        generator: Source of randomness, of the parameters' device.
    """
    return {
        name: torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device)
        for name, p in parameters.items()
    }


def _directed(call: TrunkCall, parameters: Iterable[Tensor] | None) -> dict[str, Tensor]:
    """Return the trunk's parameters that directions run over, by name.

    Raises:
        ValueError: One is not the trunk's, or there are none.
    """
    # A tied parameter comes once, under its first name.
    named = dict(call.module.named_parameters())
    if parameters is not None:
        wanted = {id(p) for p in trainable(parameters)}
        foreign = len(wanted - {id(p) for p in named.values()})
        if foreign:
            raise ValueError(
                f"{foreign} of the shared parameters are not the trunk's ({type(call.module)}), so "
                "running it again does not show how the features depend on them; give the module "
                "that holds all of them as trunk"
            )
        named = {name: p for name, p in named.items() if id(p) in wanted}
    found = {name: p.detach() for name, p in named.items() if p.requires_grad}
    if not found:
        raise ValueError(
            "the trunk has no parameter that requires a gradient, so there is nothing to probe; "
            'use source="representation"'
        )
    return found


def probe_slopes(
    call: TrunkCall,
    features: Features,
    gradients: TaskGradients,
    partition: Partition,
    *,
    probes: int = 1,
    directions: Iterable[Mapping[str, Tensor]] | None = None,
    generator: torch.Generator | None = None,
    mode: ProbeMode | None = None,
    step: float | None = None,
    parameters: Iterable[Tensor] | None = None,
    verify: bool = False,
) -> Tensor:
    """Return the slopes of all tasks' mini-batch losses along directions of the parameters.

    Args:
        call: The forward pass that made the features.
        features: The representation; its ``outputs`` are what the pass returned.
        gradients: Gradients of the k losses with respect to the features.
        partition: The mini-batches.
        probes: Number of random directions m.
        directions: The directions themselves, by the parameters' names, instead of random ones.
            Drawn one at a time, so an iterator takes the memory of one. They may be overwritten.
        generator: Source of random directions, of the parameters' device.
        mode: ``"difference"`` runs the trunk once for each direction, a small step away;
            ``"forward"`` differentiates in forward mode, exact but about twice the work, where
            every operation of the trunk supports it. The former if None, but for half precision
            parameters, in which small steps are lost.
        step: Length of the step relative to that of the parameters; by dtype if None.
        parameters: What directions run over, all trainable ones of the trunk if None.
        verify: Run the trunk once more without a step and check that it returns the features.

    Returns:
        float64 of shape (m, k, n).

    Raises:
        ValueError: The trunk does not return the features, or not the same ones when run again;
            parameters are not its own; a setting is out of range.
        NotImplementedError: In forward mode, an operation does not support it.

    Example:
        >>> import torch
        >>> trunk = torch.nn.Linear(1, 1, bias=False)
        >>> x = torch.tensor([[3.0]])
        >>> call = TrunkCall(trunk, (x,))
        >>> z = trunk(x)
        >>> features = Features.of(z, ["a", "b"])
        >>> gradients = TaskGradients([[torch.ones(1, 1), torch.full((1, 1), 2.0)]])
        >>> along = [{"weight": torch.ones(1, 1)}]
        >>> probe_slopes(
        ...     call, features, gradients, Partition.of(1, 1), directions=along, mode="forward"
        ... ).flatten()
        tensor([3., 6.], dtype=torch.float64)
    """
    if probes < 1:
        raise ValueError(f"probes must be at least 1, found {probes}")
    base = _directed(call, parameters)
    half = any(p.dtype in _HALF for p in base.values())
    if mode is None:
        mode = "forward" if half else "difference"
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, found {mode!r}")
    if half and mode == "difference":
        raise ValueError(
            "parameters in half precision cannot take a small step; use mode='forward'"
        )
    if directions is None:
        if generator is None:
            raise ValueError(
                "give a generator for random directions, or the directions: the global random "
                "state is the training's own"
            )
        directions = (draw_direction(base, generator) for _ in range(probes))
    outputs = tuple(t.detach() for t in features.outputs)
    if mode == "forward":
        changes = _forward(call, base, outputs, directions)
    else:
        changes = _difference(call, base, outputs, directions, step, verify)
    return torch.stack([_slopes(change, features, gradients, partition) for change in changes])


def _forward(
    call: TrunkCall,
    base: Mapping[str, Tensor],
    outputs: Sequence[Tensor],
    directions: Iterable[Mapping[str, Tensor]],
) -> Iterator[list[Tensor]]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for direction in directions:
        # Fused attention has no forward mode.
        with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
            duals = {
                name: forward_ad.make_dual(p, direction[name])
                for name, p in base.items()
                if name in direction
            }
            try:
                found = call.run(duals)
            except NotImplementedError as error:
                raise NotImplementedError(
                    "the trunk has an operation without forward mode; use mode='difference'. "
                    f"PyTorch says: {error}"
                ) from error
            _require_same_shapes(found, outputs)
            tangents = [forward_ad.unpack_dual(t).tangent for t in found]
        yield [
            torch.zeros_like(z) if t is None else t for t, z in zip(tangents, outputs, strict=True)
        ]


def _difference(
    call: TrunkCall,
    base: Mapping[str, Tensor],
    outputs: Sequence[Tensor],
    directions: Iterable[Mapping[str, Tensor]],
    step: float | None,
    verify: bool,
) -> Iterator[list[Tensor]]:
    dtype = next(iter(base.values())).dtype
    relative = STEPS[dtype] if step is None else step
    if not relative > 0:
        raise ValueError(f"step must be positive, found {relative}")
    entries = sum(p.numel() for p in base.values())
    norms = torch._foreach_norm(list(base.values()))
    length = math.sqrt(math.fsum(float(x) ** 2 for x in norms) / entries)
    epsilon = relative * length if length > 0 else relative
    # Rounding to half precision would hide the step, so both ends are run in full precision.
    start = call.run({}, autocast=False) if call.autocast else outputs
    for direction in directions:
        stepped = {
            # The one copy of the parameters that a probe takes.
            name: direction[name].mul_(epsilon).add_(p)
            for name, p in base.items()
            if name in direction
        }
        found = call.run(stepped, autocast=False)
        del stepped
        _require_same_shapes(found, outputs)
        change = [
            (after - before).div_(epsilon) for after, before in zip(found, start, strict=True)
        ]
        if verify:
            verify = False
            again = call.run({}, autocast=False)
            _require_repeatable(again, start, [c * epsilon for c in change])
        yield change


def _require_same_shapes(found: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
    shapes, wanted = [tuple(t.shape) for t in found], [tuple(t.shape) for t in outputs]
    if shapes != wanted:
        raise ValueError(
            f"the trunk returned tensors of shapes {shapes} when run again, but the features are "
            f"of {wanted}; the features must be what the trunk returns"
        )


def _require_repeatable(
    again: Sequence[Tensor], before: Sequence[Tensor], change: Sequence[Tensor]
) -> None:
    def norm(tensors: Iterable[Tensor]) -> float:
        return math.sqrt(math.fsum(float(t.double().square().sum()) for t in tensors))

    noise = norm(a.double() - b.double() for a, b in zip(again, before, strict=True))
    signal = norm(change)
    if noise > 0.05 * signal:
        raise ValueError(
            "the trunk does not return the same features when it is run again with the same "
            f"parameters and random state: they differ by {noise:.2g}, a probe's step changes them "
            f"by {signal:.2g}. It may draw from random or numpy, keep state outside its buffers, "
            "or not be what made the features"
        )


def _slopes(
    change: Sequence[Tensor], features: Features, gradients: TaskGradients, partition: Partition
) -> Tensor:
    """Return a[i, u] of one direction, float64 of shape (k, n)."""
    per_sample: Tensor | None = None
    for f in range(len(gradients.features)):
        own = features.separate
        dz = None if own else _rows(change[f], features)
        stack = gradients.stacked(f)
        if isinstance(stack, Tensor) and dz is not None and features.batch_dim == 0:
            # (B, k, d) times (B, d, 1): one product for all tasks.
            rows = _full(stack).reshape(*stack.shape[:2], -1).transpose(0, 1)
            part = torch.bmm(rows, dz[:, :, None])[:, :, 0].T
        else:
            part = torch.stack(
                [
                    (_rows(g, features) * (_rows(change[i], features) if dz is None else dz)).sum(1)
                    for i, g in enumerate(gradients.features[f])
                ]
            )
        part = part.to(torch.float64)
        per_sample = part if per_sample is None else per_sample + part
    assert per_sample is not None
    sums = per_sample @ partition.indicator(per_sample).T
    return sums * partition.scales.to(sums.device)


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALF else tensor


def _rows(tensor: Tensor, features: Features) -> Tensor:
    rows = features.rows(_full(tensor))
    return rows.reshape(len(rows), -1)


def kernel_from_slopes(slopes: Tensor, shares: Tensor | None = None) -> ExtendedNTK:
    """Return the estimate of the kernel, the mean of a a^T over directions.

    Its rank is at most m, so with n > 1 mini-batches the largest eigenvalue of a block is biased
    upwards (for m = 1 its mean is the block's trace): read :class:`ProbeCorrection` instead.

    Args:
        slopes: What :func:`probe_slopes` returned, shape (m, k, n).
        shares: Share of each task's samples in each mini-batch, shape (k, n).

    Example:
        >>> import torch
        >>> kernel_from_slopes(torch.tensor([[[3.0], [6.0]]])).gramian()
        tensor([[ 9., 18.],
                [18., 36.]], dtype=torch.float64)
    """
    values = torch.einsum("piu,pjv->iujv", slopes, slopes) / len(slopes)
    return ExtendedNTK(values, shares=shares)


def probe_kernel(
    call: TrunkCall,
    features: Features,
    gradients: TaskGradients,
    partition: Partition,
    *,
    ranks: Ranks | None = None,
    **settings: Any,
) -> ExtendedNTK:
    """Return an unbiased estimate of the kernel with respect to the shared parameters (Eq. 8).

    All blocks exist, also where each task has a representation of its own.

    Args:
        call: The forward pass that made the features.
        features: The representation.
        gradients: Gradients of the k losses with respect to the features.
        partition: The mini-batches.
        ranks: The other processes, whose mini-batches join in. All must draw the same directions:
            give generators of one seed.
        **settings: See :func:`probe_slopes`.
    """
    slopes = probe_slopes(call, features, gradients, partition, **settings)
    if ranks is not None:
        return kernel_from_slopes(torch.cat(ranks.gather(slopes), dim=2))
    shares = partition.shares.to(slopes.device).expand(slopes.shape[1], -1)
    return kernel_from_slopes(slopes, shares)


class RememberInputs:
    """Remembers the trunk's last forward pass with gradients, ready to be run again.

    A trunk that is a module is watched by hooks and nothing else changes. One that is a method of
    a model has no hooks: call this object in its place.

    Args:
        module: The trunk, or the model that has it as a method.
        method: The method that runs the trunk.

    Raises:
        TypeError: ``module`` is not a module, or has no such method.

    Example:
        >>> import torch
        >>> trunk = torch.nn.Linear(2, 3)
        >>> remember = RememberInputs(trunk)
        >>> z = trunk(torch.ones(4, 2))
        >>> (again,) = remember.call(Features.of(z, ["a"])).run({})
        >>> torch.equal(again, z)
        True
    """

    def __init__(self, module: nn.Module, method: str = "forward") -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"the trunk must be a torch.nn.Module, found {type(module)}")
        if not callable(getattr(module, method, None)):
            raise TypeError(f"{type(module)} has no method {method!r} that runs the trunk")
        self.module = module
        self.method = method
        self._entered: TrunkCall | None = None
        self._seen: tuple[TrunkCall, list[weakref.ref[Tensor]]] | None = None
        if method == "forward":
            module.register_forward_pre_hook(self._enter, with_kwargs=True)
            module.register_forward_hook(self._leave)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the trunk."""
        if self.method == "forward":
            return self.module(*args, **kwargs)
        self._enter(self.module, args, kwargs)
        output = getattr(self.module, self.method)(*args, **kwargs)
        self._leave(self.module, args, output)
        return output

    def __getstate__(self) -> dict[str, Any]:
        # What was seen belongs to one graph.
        return {**vars(self), "_entered": None, "_seen": None}

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Without gradients it is an evaluation, or a probe.
        self._entered = (
            TrunkCall(module, args, kwargs, self.method) if torch.is_grad_enabled() else None
        )

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._entered is not None:
            # Weak, so that the graph goes when the loop lets go of it.
            self._seen = self._entered, [weakref.ref(t) for t in _tensors(output)]
            self._entered = None

    def release(self) -> None:
        """Let go of the inputs."""
        self._seen = None

    def call(self, features: Features) -> TrunkCall:
        """Return the pass that made the features.

        Raises:
            ValueError: There was none, or it did not return these tensors.
        """
        if self._seen is None:
            raise ValueError(
                "the trunk has not run with gradients since its last probe"
                + (
                    ""
                    if self.method == "forward"
                    else f"; call the RememberInputs object in place of .{self.method}"
                )
            )
        call, references = self._seen
        returned = [reference() for reference in references]
        positions = []
        for output in features.outputs:
            place = next((i for i, t in enumerate(returned) if t is output), None)
            if place is None:
                raise ValueError(
                    "the features are not what the trunk returned in its last forward pass. The "
                    "trunk must be the module whose output is the features, run once per step; "
                    "where something comes between, put it into the trunk"
                )
            positions.append(place)
        call.positions = tuple(positions)
        return call


class Probe:
    """Random directions for one trunk: what a training loop keeps between steps.

    Directions come from the seed and the number of calls before, on every process the same ones;
    the global random state is not touched.

    The first call runs the trunk three times more. It checks that the trunk holds every parameter
    that the features depend on, that it can be run again, and that steps of two lengths agree:
    where they do not, the features jump (unpooling to the places of maxima, batch norm of two
    samples), and differences are no derivatives.

    Args:
        trunk: The trunk, or a :class:`RememberInputs`.
        probes: Directions m per call.
        mode: See :func:`probe_slopes`. If None, ``"difference"`` unless parameters are in half
            precision or the features jump.
        step: See :func:`probe_slopes`.
        parameters: What directions run over, all trainable ones of the trunk if None.
        seed: Of the directions.
        every: For a Balancer: probe in each ``every``-th kernel only, where probes correct.
        corrected: For a Balancer: whether probes correct the features' kernel, by a factor for each
            task that is averaged over steps, rather than stand in its place.

    Attributes:
        mode: How slopes are computed; None before the first call if it was left open.

    Raises:
        ValueError: ``probes`` or ``mode`` is out of range.
        TypeError: ``trunk`` is not a module, or ``corrected`` is neither True nor False.

    Example:
        >>> import torch
        >>> trunk = torch.nn.Linear(2, 3)
        >>> probe = Probe(trunk, probes=2)
        >>> z = trunk(torch.ones(4, 2))
        >>> gradients = TaskGradients([[torch.ones(4, 3)]])
        >>> probe.kernel(Features.of(z, ["a"]), gradients, Partition.of(4, 2))
        ExtendedNTK(tasks=1, minibatches=2, all blocks)
    """

    def __init__(
        self,
        trunk: nn.Module | RememberInputs,
        probes: int = 1,
        *,
        mode: ProbeMode | None = None,
        step: float | None = None,
        parameters: Iterable[Tensor] | None = None,
        seed: int = 0,
        every: int = 10,
        corrected: bool = True,
    ) -> None:
        for name, value in (("probes", probes), ("every", every)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be at least 1, a whole number; found {value!r}")
        if not isinstance(corrected, bool):
            raise TypeError(f"corrected must be True or False, found {corrected!r}")
        if mode is not None and mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, MODES))}, found {mode!r}")
        self.trunk = trunk if isinstance(trunk, RememberInputs) else RememberInputs(trunk)
        self.probes = probes
        self.mode = mode
        self.step = step
        self.parameters: list[Tensor] | None = None if parameters is None else list(parameters)
        self.seed = seed
        self.every = every
        self.corrected = corrected
        self._settled = False
        self._calls = 0

    def run_over(self, parameters: Iterable[Tensor]) -> None:
        """Let directions run over these parameters, where none were named."""
        if self.parameters is None:
            self.parameters = list(parameters)

    def slopes(
        self,
        features: Features,
        gradients: TaskGradients,
        partition: Partition,
        *,
        probes: int | None = None,
        ranks: Ranks | None = None,
    ) -> Tensor:
        """Return slopes along m new directions, float64 of shape (m, k, n).

        Args:
            features: The representation, as the trunk returned it.
            gradients: Gradients of the k losses with respect to the features.
            partition: The mini-batches.
            probes: Another number m for this call.
            ranks: The other processes, whose n mini-batches each join in, in their order.

        Raises:
            ValueError: The features are not the trunk's, depend on parameters that are not its,
                are not the same when it is run again, or jump though differences were asked for.
            NotImplementedError: In forward mode, an operation of the trunk does not support it.
        """
        call = self.trunk.call(features)
        if not self._settled:
            self._settle(call, features, gradients, partition)
            self._settled = True
        device = next(iter(_directed(call, self.parameters).values())).device
        # Large odd steps: neighbouring seeds make related streams in some generators.
        generator = torch.Generator(device).manual_seed(
            (self.seed * 0x9E3779B97F4A7C15 + self._calls * 0x632BE59BD9B4E019) % (1 << 63)
        )
        self._calls += 1
        slopes = probe_slopes(
            call,
            features,
            gradients,
            partition,
            probes=self.probes if probes is None else probes,
            generator=generator,
            mode=self.mode,
            step=self.step,
            parameters=self.parameters,
        )
        return slopes if ranks is None else torch.cat(ranks.gather(slopes), dim=2)

    def kernel(
        self,
        features: Features,
        gradients: TaskGradients,
        partition: Partition,
        *,
        probes: int | None = None,
        ranks: Ranks | None = None,
    ) -> ExtendedNTK:
        """Return the estimate of the kernel from m new directions. See :meth:`slopes`."""
        slopes = self.slopes(features, gradients, partition, probes=probes, ranks=ranks)
        if ranks is not None:
            return kernel_from_slopes(slopes)
        shares = partition.shares.to(slopes.device).expand(slopes.shape[1], -1)
        return kernel_from_slopes(slopes, shares)

    def _settle(
        self,
        call: TrunkCall,
        features: Features,
        gradients: TaskGradients,
        partition: Partition,
    ) -> None:
        """Check what cannot be seen from one probe, and choose the mode if it was left open."""
        base = _directed(call, self.parameters)
        if self.parameters is None:
            own = {id(p) for p in call.module.parameters()}
            # An input that requires a gradient is a leaf as well, but no parameter.
            below = [p for p in leaves(features.outputs)[0] if isinstance(p, nn.Parameter)]
            outside = [p for p in trainable(below) if id(p) not in own]
            if outside:
                raise ValueError(
                    f"the features depend on {len(outside)} parameters that are not the trunk's, "
                    f"the first of shape {tuple(outside[0].shape)}; give the module that holds all "
                    "shared parameters as trunk, or name those to probe"
                )
        first = next(iter(base.values()))
        half = any(p.dtype in _HALF for p in base.values())
        if self.mode == "forward" or (self.mode is None and half):
            self.mode = "forward"
            return
        relative = STEPS.get(first.dtype) if self.step is None else self.step
        found = []
        for factor in (1.0, 4.0):
            generator = torch.Generator(first.device).manual_seed(self.seed)
            found.append(
                probe_slopes(
                    call,
                    features,
                    gradients,
                    partition,
                    generator=generator,
                    mode="difference",
                    step=None if relative is None else factor * relative,
                    parameters=self.parameters,
                    verify=factor == 1.0,
                )[0]
            )
        short, long = found
        size = long.norm(dim=1)
        apart = ((short - long).norm(dim=1) / size)[size > 0]
        smooth = len(apart) == 0 or float(apart.median()) < 0.25
        if smooth:
            self.mode = "difference"
        elif self.mode is None:
            self.mode = "forward"
        else:
            raise ValueError(
                "slopes by differences change with the length of the step (by "
                f"{float(apart.median()):.2g} of their size from one step to one four times as "
                "long): the features jump or bend sharply. Use mode='forward', or another step"
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Return what the next directions depend on: tensors only."""
        return {
            "calls": torch.tensor(self._calls),
            "settled": torch.tensor(self._settled),
            "forward": torch.tensor(self.mode == "forward"),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` returned.

        Raises:
            ValueError: An entry is missing.
        """
        missing = {"calls", "settled", "forward"} - set(state)
        if missing:
            raise ValueError(f"state of the probe lacks {', '.join(sorted(missing))}")
        self._calls = int(state["calls"])
        self._settled = bool(state["settled"])
        if self._settled:
            self.mode = "forward" if state["forward"] else "difference"
