"""A step with the exact kernel, differentiated from the losses themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ntkmtl.balance._core import Core
from ntkmtl.balance._fill import (
    add,
    fill_checked,
    from_flat,
    in_two_passes,
    may_overflow,
    ordinary,
    require_one_kind,
    weighted_gradients,
)
from ntkmtl.balance._kernel_step import (
    clip,
    joined_ranks,
    joining_extra,
    may_keep,
    require_alone,
    require_unclipped,
    require_unhooked,
    shared_factor,
)
from ntkmtl.balance._order import in_fixed_order, rearranged
from ntkmtl.balance._step import BalanceResult, Samples, Step
from ntkmtl.balance._views import weighted_sum
from ntkmtl.balance._weigh import observe, to_cpu
from ntkmtl.graph import (
    averages_several_passes,
    has_hooks,
    plain_backward,
    starts,
    vjp,
)
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._free_memory import all_rows
from ntkmtl.kernel._partition import Partition
from ntkmtl.kernel._ranks import Ranks
from ntkmtl.kernel._sources import exact_kernel

__all__ = ["ParameterStep", "known_shared", "touched_by_two"]


class ParameterStep:
    """A step that works for any graph: one backward pass per loss and mini-batch to the leaves.

    Args:
        core: The Balancer's options and state.
        step: The step.
        shared: The shared parameters.
        minibatches: The paper's n; None for the Balancer's.
        hooked: Whether to run an ordinary backward pass with hooks; None for the Balancer's choice.
        gradients: For n = 1 the flat gradients of the local tasks, if they are known already.

    Raises:
        ValueError: The method needs features, or n > 1 needs losses of single samples.
    """

    def __init__(
        self,
        core: Core,
        step: Step,
        shared: list[Tensor],
        *,
        minibatches: int | None = None,
        hooked: bool | None = None,
        gradients: Sequence[Tensor] | None = None,
    ) -> None:
        options = core.options
        if options.weighting.has_head_objective:
            raise ValueError(
                f"{options.method} needs the features that part trunk and heads: pass features=z, "
                "the tensor that the heads read, and let no loss reach the trunk around it"
            )
        self.core, self.options, self.step, self.shared = core, options, step, shared
        self.minibatches = options.minibatches if minibatches is None else minibatches
        if self.minibatches > 1 and step.samples is None:
            raise ValueError(
                f"{self.minibatches} mini-batches need losses of single samples, of shape (B,), or "
                "features to split: pass losses before their mean is taken, pass features=z, or "
                "use minibatches=1"
            )
        self.gradients = gradients if self.minibatches == 1 else None
        require_unclipped(options, step, shared)
        wanted = options.hooked if hooked is None else hooked
        self.hooked = step.parallel if wanted is None else wanted
        self.begin = step.begin()
        self.partitions = [self._split(s) for s in step.samples or ()]

    def _split(self, samples: Samples) -> Partition:
        counts = None if samples.mask is None else samples.mask.to(torch.float64)[None]
        published = self.options.preset == "published"
        return Partition.of(samples.count, self.minibatches, counts, published=published)

    def run(self, weights: Tensor | None = None) -> BalanceResult:
        """Compute weights and fill ``.grad``. See :meth:`KernelStep.run`."""
        options, step, shared = self.options, self.step, self.shared
        plain = options.weight_heads and shared_factor(options, step) == 1.0
        if step.ranks is not None and not plain and not averages_several_passes(step.losses):
            raise ValueError(
                "weight_heads=False (the published form of this method) takes two backward passes "
                "here, and DistributedDataParallel averages the gradients of one: set "
                "weight_heads=True, or DistributedDataParallel(..., find_unused_parameters=True)"
            )
        hooks = step.mixed or any(has_hooks(p) for p in shared)
        plainly = options.weight_heads and (self.hooked or hooks)
        eigenvalues = jacobian = combined = None
        if weights is None and options.requires == "jacobian":
            combined, weights = self._combine()
        elif weights is None:
            keep = not plainly and may_keep(options, shared, step, options.needs_gramian)
            kernel, jacobian = self.kernel(keep=keep)
            weights, eigenvalues = observe(self.core, to_cpu(kernel, step), step)
        factor = shared_factor(options, step)
        if options.weight_heads and factor == 1.0 and combined is None and jacobian is None:
            ordinary(self.core, step, weights)
        else:
            step.bring()
            self._apart(weights, factor, jacobian, combined)
        return step.result(weights, eigenvalues)

    def kernel(self, *, keep: bool, full: bool | None = None) -> tuple[ExtendedNTK, Tensor | None]:
        """Return the kernel, and the gradients of shape (k, P) or None.

        Args:
            keep: Return the gradients.
            full: Compute the blocks between tasks; None to do so if the method reads them.
        """
        step = self.step
        full = self.options.needs_gramian if full is None else full
        shares = self._shares()
        ranks, joint = self._ranks(shares)
        kernel, jacobian = exact_kernel(
            self._rows(), len(step.present), shares, full=full, keep=keep, ranks=ranks
        )
        return kernel if joint is None else kernel.with_shares(joint), jacobian

    def _ranks(self, shares: Tensor) -> tuple[Ranks | None, Tensor | None]:
        return joined_ranks(self.options, self.step, shares, "exact")

    def _shares(self) -> Tensor:
        if self.minibatches == 1:
            return torch.ones(1, 1, dtype=torch.float64)
        k = len(self.step.present)
        shares = torch.full((k, self.minibatches), 1.0 / self.minibatches, dtype=torch.float64)
        for position, partition in zip(self.step.local, self.partitions, strict=True):
            shares[position] = partition.shares[0]
        return shares

    def _rows(self) -> Callable[[int], Tensor]:
        """Return a function from a task to its n gradients, shape (n, P)."""
        step, shared, n = self.step, self.shared, self.minibatches
        place = {position: i for i, position in enumerate(step.local)}

        def rows(task: int) -> Tensor:
            if task not in place:
                zeros = [vjp_zeros(p) for p in shared]
                return torch.cat(zeros).expand(n, -1).clone()
            if self.gradients is not None:
                return self.gradients[place[task]][None]
            if n == 1:
                outputs, cotangents = self.begin[place[task]]
                return vjp(outputs, shared, cotangents)[None]
            return self._minibatch_rows(place[task], task)

        return rows

    def _minibatch_rows(self, local: int, task: int) -> Tensor:
        step = self.step
        assert step.samples is not None
        samples, partition = step.samples[local], self.partitions[local]
        slope = step.scale
        if step.slope is not None:  # the gradient of log(l) is the gradient of l, divided by l
            slope *= float(step.slope[task])
        result, start = [], 0
        for size in partition.sizes:
            mask = None if samples.mask is None else samples.mask[start : start + size]
            mean = Samples(samples.values[start : start + size], mask).mean()
            start += size
            if mean is None:
                result.append(torch.cat([vjp_zeros(p) for p in self.shared]))
                continue
            ((outputs, cotangents),) = starts([mean])
            result.append(vjp(outputs, self.shared, [c * slope for c in cotangents]))
        return torch.stack(result)

    def _combine(self) -> tuple[Tensor, Tensor]:
        """Return the gradient that the method combines entry by entry, and weights to report."""
        step = self.step
        require_alone(self.options, step)
        require_unhooked(self.options)
        shared = in_fixed_order(self.core, step, self.shared)
        if self.gradients is not None:
            self.gradients = rearranged(self.gradients, self.shared, shared)
        self.shared = shared
        matrix = all_rows(self._rows(), len(step.present))
        (peaks,) = step.bring(matrix.abs().amax(dim=1))
        step.require_finite(peaks, "gradient")
        return step.combined(self.options.weighting.combine, matrix)

    def _apart(
        self, weights: Tensor, factor: float, jacobian: Tensor | None, combined: Tensor | None
    ) -> None:
        """Fill ``.grad`` of heads and of shared parameters separately."""
        step, shared = self.step, self.shared
        own = {id(p) for p in shared}
        heads = [p for p in step.scan.leaves if id(p) not in own]
        extra = joining_extra(self.options, step)
        local = step.of_local(weights)
        weighted = self.options.weight_heads and combined is None
        on_heads = local if weighted else [1.0] * len(local)
        on_shared = [factor * w for w in local]
        if combined is None and jacobian is None:
            in_two_passes(self.core, step, heads, on_heads, shared, on_shared, extra)
        else:
            require_one_kind(step)
            flat = combined if jacobian is None else weighted_sum(jacobian, on_shared)
            assert flat is not None
            pairs = from_flat(shared, flat)
            careful = step.late or may_overflow(self.core, step, [*on_shared, *on_heads])
            losses, keep = step.losses, step.extra is not None
            if extra is not None:
                pairs += weighted_gradients([extra], [1.0], shared, retain=True)
                losses, on_heads, keep = [*losses, extra], [*on_heads, 1.0], False
            if careful:
                pairs += weighted_gradients(losses, on_heads, heads, retain=keep)
                fill_checked(step, pairs, on_shared)
            else:
                if heads:
                    plain_backward(losses, on_heads, inputs=heads, retain=keep)
                add(step, pairs)
        clip(self.options, shared, step)


def vjp_zeros(parameter: Tensor) -> Tensor:
    """Return zeros in the layout that :func:`ntkmtl.graph.vjp` has for one parameter."""
    entries = parameter.numel() * (2 if parameter.is_complex() else 1)
    real = parameter.real if parameter.is_complex() else parameter
    return torch.zeros(entries, dtype=real.dtype, device=parameter.device)


def touched_by_two(
    step: Step,
    candidates: Sequence[Tensor],
    reached: dict[Tensor, tuple[int, int]],
    *,
    keep: bool,
) -> tuple[list[Tensor], list[Tensor] | None]:
    """Keep the parameters that have had a nonzero gradient in two or more of these tasks.

    If there is none, those that have not had one in any task are kept: nothing is known of them.
    In a model compiled as a whole, and where the outputs of heads are joined, the graph connects
    every output with every parameter. Gradients of parameters that a task does not use are then
    zero instead of None.

    Args:
        step: The step.
        candidates: Parameters that two or more tasks reach in the graph.
        reached: See :class:`Core`. What this step shows is added: a gradient that is zero may come
            from a head that starts at zero, so only those that are not tell something for good.
        keep: Whether to keep the gradients of all tasks.

    Returns:
        These parameters; and the local tasks' flat gradients with respect to them, None if they
        were not kept.
    """
    sizes = [p.numel() * (2 if p.is_complex() else 1) for p in candidates]
    kept: list[Sequence[Tensor]] = []
    touched = torch.zeros(len(step.local), len(candidates), dtype=torch.float64)
    for task, (outputs, cotangents) in enumerate(step.begin()):
        parts = vjp(outputs, candidates, cotangents).split(sizes)
        touched[task] = torch.stack([part.any() for part in parts])
        if keep:
            kept.append(parts)
    if step.ranks is not None:  # all processes must find the same
        touched = torch.stack(step.ranks.gather(touched)).amax(dim=0)
    bits, here = _bits(step)
    now = set(candidates)
    for p in [p for p in reached if p not in now and not isinstance(p, nn.Parameter)]:
        del reached[p]  # plain tensors may be others in each step
    for p, column in zip(candidates, touched.T.tolist(), strict=True):
        seen, looked = reached.get(p, (0, 0))
        found = sum(bit for bit, some in zip(bits, column, strict=True) if some)
        reached[p] = (seen | found, looked | here)
    seen_by = [reached[p][0] for p in candidates]
    at = [i for i, seen in enumerate(seen_by) if (seen & here).bit_count() > 1]
    at = at or [i for i, seen in enumerate(seen_by) if not seen]
    shared = [candidates[i] for i in at]
    if not keep or not at:
        return shared, None
    return shared, [torch.cat([parts[i] for i in at]) for parts in kept]


def known_shared(
    step: Step, candidates: Sequence[Tensor], reached: dict[Tensor, tuple[int, int]]
) -> tuple[list[Tensor], bool, bool]:
    """Return what earlier steps tell of parameters that only gradients can tell apart.

    Args:
        step: The step.
        candidates: Parameters that two or more tasks reach in the graph.
        reached: See :class:`Core`.

    Returns:
        Those that are shared, or not known; whether all are known to be shared by tasks of this
        step; and whether some are not known.
    """
    _, here = _bits(step)
    shared, every, unknown = [], True, False
    for p in candidates:
        seen, looked = reached.get(p, (0, 0))
        tasks = (seen & here).bit_count()
        every = every and tasks > 1
        new = not seen or bool(here & ~looked)
        unknown = unknown or new
        if tasks > 1 or new:
            shared.append(p)
    return shared, every, unknown


def _bits(step: Step) -> tuple[list[int], int]:
    """Return a bit for each task with a label in this process, and all of them together."""
    bits = [1 << step.present[i] for i in step.local]
    return bits, sum(bits)
