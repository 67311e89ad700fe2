r"""Probes: the kernel of the shared parameters estimated from random directions.

Along a direction v of the shared parameters, task i's loss on mini-batch u has the slope

    a[i, u] = c_iu sum_{s in u} < G_i[s], dz_s(v) >.

Here dz(v) is the derivative of the trunk's output along v, G_i the gradient of task i with respect
to that output, and c_iu the scale from the batch's gradient to the mini-batch's (Eq. 9). One run of
the trunk gives a for all k tasks and n mini-batches. As a is the Jacobian of the losses times v,
``E[a a^T] = K`` if v has mean 0 and covariance I: an unbiased estimate of the extended NTK of
Eq. 8 at a cost that does not grow with k or n. With m directions the relative variance of a
diagonal entry is 2 / m.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from ntkmtl.graph import Features, TaskGradients, as_real, leaves, trainable
from ntkmtl.kernel._extended import ExtendedNTK
from ntkmtl.kernel._partition import Partition
from ntkmtl.kernel._ranks import Ranks
from ntkmtl.kernel._trunk import RememberInputs, TrunkCall

__all__ = [
    "Probe",
    "ProbeMode",
    "draw_direction",
    "kernel_from_slopes",
    "probe_kernel",
    "probe_slopes",
]

ProbeMode = Literal["difference", "forward"]
MODES: tuple[ProbeMode, ...] = ("difference", "forward")

_HALF = (torch.float16, torch.bfloat16)

STEPS = {torch.float32: 1e-4, torch.float64: 1e-7}
"""Step of a finite difference relative to the parameters' root mean square, by dtype.

Shorter steps suffer from rounding, longer ones from curvature; see docs/estimators.md.
"""


def draw_direction(
    parameters: Mapping[str, Tensor], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw a direction of the parameters with independent N(0, 1) entries, two for a complex one.

    Args:
        parameters: By name.
        generator: Source of randomness, on the parameters' device.
    """
    found = {}
    for name, p in parameters.items():
        shape = (*p.shape, 2) if p.is_complex() else p.shape
        drawn = torch.randn(shape, generator=generator, dtype=p.dtype.to_real(), device=p.device)
        found[name] = torch.view_as_complex(drawn) if p.is_complex() else drawn
    return found


def _directed(call: TrunkCall, parameters: Iterable[Tensor] | None) -> dict[str, Tensor]:
    """Return the trunk's parameters that directions vary, by name.

    Raises:
        ValueError: A parameter is not part of the trunk, or none is left.
    """
    # A tied parameter is listed once, under its first name.
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
        features: The representation; its ``outputs`` must be what the pass returned.
        gradients: Gradients of the k losses with respect to the features.
        partition: The mini-batches.
        probes: Number of random directions m.
        directions: Directions to use instead of random ones, as dicts by parameter name. They are
            read one at a time, so an iterator needs the memory of one only, and may be overwritten.
        generator: Source of random directions, on the parameters' device.
        mode: ``"difference"`` takes finite differences: one run of the trunk per direction.
            ``"forward"`` uses forward-mode differentiation: exact, about twice the work, and only
            possible if every operation of the trunk supports it. If None, ``"difference"``, but
            ``"forward"`` for parameters in half precision, where small steps are lost.
        step: Step of the finite difference relative to the parameters' root mean square; None for
            a default by dtype.
        parameters: Parameters that directions vary; None for all trainable ones of the trunk.
        verify: Run the trunk once more without a step and check that it returns the features.

    Returns:
        float64 of shape (m, k, n).

    Raises:
        ValueError: The trunk does not return the features, or returns others when run again; a
            parameter is not part of it; or a setting is out of range.
        NotImplementedError: An operation has no forward mode.

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
    dtype = next(iter(base.values())).dtype.to_real()
    relative = STEPS[dtype] if step is None else step
    if not relative > 0:
        raise ValueError(f"step must be positive, found {relative}")
    entries = sum(p.numel() for p in base.values())
    norms = torch._foreach_norm(list(base.values()))
    length = math.sqrt(math.fsum(float(x) ** 2 for x in norms) / entries)
    epsilon = relative * length if length > 0 else relative
    # Rounding to half precision would hide the step, so both points run in full precision.
    start = call.run({}, autocast=False) if call.autocast else outputs
    for direction in directions:
        stepped = {
            # Computed in place: the direction becomes the only copy of the parameters.
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
        return math.sqrt(math.fsum(float(as_real(t).double().square().sum()) for t in tensors))

    pairs = zip(map(as_real, again), map(as_real, before), strict=True)
    noise = norm(a.double() - b.double() for a, b in pairs)
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
    """Return the slopes a[i, u] along one direction, float64 of shape (k, n)."""
    per_sample: Tensor | None = None
    for f in range(len(gradients.features)):
        own = features.separate
        dz = None if own else _rows(change[f], features)
        stack = gradients.stacked(f)
        if isinstance(stack, Tensor) and dz is not None and features.batch_dim == 0:
            # (B, k, d) times (B, d, 1): one product for all tasks.
            rows = as_real(_full(stack)).reshape(*stack.shape[:2], -1).transpose(0, 1)
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
    return as_real(rows).reshape(len(rows), -1)


def kernel_from_slopes(slopes: Tensor, shares: Tensor | None = None) -> ExtendedNTK:
    """Return the estimate of the kernel: the mean of a a^T over directions.

    Its rank is at most m. So with n > 1 mini-batches the largest eigenvalue of a block is biased
    upwards (for m = 1 its mean is the block's trace); :class:`ProbeCorrection` avoids this bias.

    Args:
        slopes: Result of :func:`probe_slopes`, shape (m, k, n).
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

    It has all blocks, even if each task has its own representation.

    Args:
        call: The forward pass that made the features.
        features: The representation.
        gradients: Gradients of the k losses with respect to the features.
        partition: The mini-batches.
        ranks: In distributed training all processes, whose mini-batches are included. All must
            draw the same directions, so give generators with the same seed.
        **settings: See :func:`probe_slopes`.
    """
    slopes = probe_slopes(call, features, gradients, partition, **settings)
    if ranks is not None:
        return kernel_from_slopes(torch.cat(ranks.gather(slopes), dim=2))
    shares = partition.shares.to(slopes.device).expand(slopes.shape[1], -1)
    return kernel_from_slopes(slopes, shares)


class Probe:
    """Estimates the kernel of one trunk's parameters in every step, from random directions.

    Directions depend only on the seed and the number of earlier calls, so all processes draw the
    same ones. The global random state does not change.

    The first call runs the trunk three more times. It checks that the trunk holds every parameter
    that the features depend on, that a second run returns the same features, and that finite
    differences with two step lengths agree. If these differ, the features are discontinuous
    (max unpooling, batch norm of two samples), and finite differences are not derivatives.

    Args:
        trunk: The trunk, or a :class:`RememberInputs`.
        probes: Number of directions m per call.
        mode: See :func:`probe_slopes`. If None, ``"difference"`` unless parameters are in half
            precision or the features are discontinuous.
        step: See :func:`probe_slopes`.
        parameters: Parameters that directions vary; None for all trainable ones of the trunk.
        seed: Seed of the directions.
        every: Read by a Balancer, with ``corrected``: probe only for each ``every``-th kernel.
        corrected: Read by a Balancer. True: probes correct the features' kernel by one factor per
            task, averaged over steps. False: the probes' estimate itself is the kernel.

    Attributes:
        mode: How slopes are computed; None before the first call if it was not given.

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
        """Let directions vary ``parameters``, unless the settings name others."""
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
            probes: Number of directions m for this call; None for the usual number.
            ranks: In distributed training all processes; their mini-batches are appended in order
                of rank, so the last dimension is R n.

        Raises:
            ValueError: The features are not the trunk's, depend on parameters outside it, change
                when it is run again, or are discontinuous with ``mode="difference"``.
            NotImplementedError: An operation of the trunk has no forward mode.
        """
        call = self.trunk.call(features)
        if not self._settled:
            self._settle(call, features, gradients, partition)
            self._settled = True
        device = next(iter(_directed(call, self.parameters).values())).device
        # Large odd steps, as neighboring seeds give correlated streams in some generators.
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
        """Return the estimate of the kernel from m new directions.

        Args:
            features: As for :meth:`slopes`.
            gradients: As there.
            partition: As there.
            probes: As there.
            ranks: As there.
        """
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
        """Make the checks of the first call, and choose the mode if it was not given."""
        base = _directed(call, self.parameters)
        if self.parameters is None:
            own = {id(p) for p in call.module.parameters()}
            # An input that requires a gradient is a leaf too, but not a parameter.
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
        relative = STEPS.get(first.dtype.to_real()) if self.step is None else self.step
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
        """Return the state that the next directions depend on, as tensors."""
        return {
            "calls": torch.tensor(self._calls),
            "settled": torch.tensor(self._settled),
            "forward": torch.tensor(self.mode == "forward"),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state from :meth:`state_dict`.

        Args:
            state: What :meth:`state_dict` returned.

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
