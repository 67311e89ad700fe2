"""One step of a method that reads a kernel: cut the graph, make the kernel, fill ``.grad``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ntkmtl.balance._choice import Choice, choose, exact_price
from ntkmtl.balance._fill import HeadGradients, add_flat, plain_backward, weighted_sum
from ntkmtl.balance._step import BalanceResult, Step, with_zeros
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._autograd import (
    TaskGradients,
    feature_gradients,
    guiding_gradients,
    has_hooks,
    leaves,
    path_around,
    unretained,
    vjp,
)
from ntkmtl.kernel._features import Features, FeaturesLike
from ntkmtl.kernel._partition import Partition, require_counts
from ntkmtl.kernel._probe import kernel_from_slopes
from ntkmtl.kernel._ranks import Ranks
from ntkmtl.kernel._sources import (
    cut_graph,
    exact_kernel,
    representation_kernel,
    rows_through_features,
    shared_parameters,
    split_batch,
)

if TYPE_CHECKING:
    from ntkmtl.balance._balancer import Balancer

__all__ = ["KernelStep", "backward_around_features", "trainable_now"]


class KernelStep:
    """A step through features that part the graph into trunk and heads.

    Args:
        balancer: Whose options count.
        step: What is known of this call.
        features: The representation, as the user gave it.
        counts: Labels per task and sample.

    Raises:
        ValueError: The features do not part the graph, or not so that the method can use it.
    """

    def __init__(
        self,
        balancer: Balancer,
        step: Step,
        features: FeaturesLike,
        counts: Tensor | None,
    ) -> None:
        self.balancer = balancer
        self.step = step
        absent = set(range(step.total)) - set(step.present)
        whole = Features.of(features, step.names, balancer.batch_dim, absent)
        local = whole.select([step.present[i] for i in step.local])
        cut, graph = cut_graph(step.losses, local, step.local_names)
        if cut is not local:
            whole = cut  # views that losses cross are one representation, for every task
        self.whole = whole
        self.cut = cut
        self.graph = graph
        self.around = path_around(graph, cut)
        self.hooked = self._is_hooked()
        if counts is not None and not whole.uneven:
            require_counts(counts, step.total, cut.batch)
            counts = counts[step.index.to(counts.device)]
        self.partition = split_batch(
            whole.select(step.present),
            balancer.minibatches,
            counts,
            published=balancer.preset == "published",
        )

    def run(self) -> BalanceResult:
        """Weigh and differentiate."""
        balancer, step = self.balancer, self.step
        require_unclipped(balancer, self.shared if published_ntkmtl(balancer) else ())
        if balancer.source == "auto":
            balancer._settle(self._choose())
        if self.around and balancer.source == "exact":
            # Rows of z do not carry all of the gradient: differentiate the losses themselves.
            if self.partition.minibatches > 1:
                raise ValueError(
                    f"{self.around}, so the exact kernel of {self.partition.minibatches} "
                    "mini-batches cannot be had through them; use minibatches=1"
                )
            return backward_around_features(balancer, step, self.shared, hooked=True)
        if balancer.weighting.guides_heads:
            return self._guide_heads()
        weights = balancer._reusable(step)
        if weights is not None:
            gradients, heads = self._differentiate()
            self._require_finite(gradients)
            if self.hooked:
                self._ordinary(weights)
            else:
                self._fill(gradients, heads, weights)
            return step.result(weights)
        gradients, heads = self._differentiate()
        if balancer.weighting.reads == "jacobian":
            return self._combine_entries(gradients, heads)
        kernel, jacobian = self._kernel(gradients)
        weights, eigenvalues = balancer._observe(kernel, step)
        if self.hooked:
            self._ordinary(weights)
        else:
            self._fill(gradients, heads, weights, jacobian)
        return step.result(weights, eigenvalues)

    # ------------------------------------------------------------------ what is there

    @cached_property
    def shared(self) -> list[Tensor]:
        """The shared parameters: the user's, or those below the features.

        An input that requires a gradient is a leaf below the features as well, but no parameter; it
        counts only where nothing else is there.
        """
        own = self.balancer.shared
        if own is not None:
            return trainable_now(own)
        return [p for p in self.below if isinstance(p, nn.Parameter)] or self.below

    @cached_property
    def below(self) -> list[Tensor]:
        """All leaves below the features."""
        return shared_parameters(self.cut)

    def _is_hooked(self) -> bool:
        wanted = self.balancer.hooked
        if wanted is False and self.around:
            raise ValueError(
                f"{self.around}, so their gradients cannot be told apart; use hooked=True"
            )
        if wanted is not None:
            return wanted
        # DDP's own hooks cannot be seen from here, and wait for a backward pass even where there is
        # one process only.
        return (
            bool(self.around)
            or (dist.is_available() and dist.is_initialized())
            or any(has_hooks(p) for head in self.graph.parameters for p in head)
            # They would change what is read here, and again what is sent down the trunk.
            or any(map(has_hooks, self.cut.tensors))
        )

    def _differentiate(self) -> tuple[TaskGradients, HeadGradients]:
        with unretained(self.cut.tensors):
            gradients = feature_gradients(
                self.step.losses, self.cut, self.graph, heads=not self.hooked, retain=self.hooked
            )
        heads = HeadGradients(gradients)
        heads.require_finite(self.step)
        return gradients, heads

    def _require_finite(self, gradients: TaskGradients) -> None:
        """Raise on every process if a gradient is not finite on one: no kernel is there to tell."""
        step = self.step
        peaks = [torch.stack([g.abs().amax() for g in per_task]) for per_task in gradients.features]
        values = torch.zeros(len(step.present), dtype=torch.float64)
        values[step.local] = torch.stack(peaks).amax(dim=0).to(values)
        if step.ranks is not None:
            values = torch.stack(step.ranks.gather(values)).amax(dim=0)
        step.require_finite(values, "gradient")

    # ------------------------------------------------------------------ the kernel

    def _kernel(self, gradients: TaskGradients) -> tuple[ExtendedNTK, Tensor | None]:
        """Return the kernel, and the gradients of shape (k, P) if they were kept."""
        balancer, step, partition = self.balancer, self.step, self.partition
        full = balancer.weighting.reads_cross_terms
        of_features = balancer.source == "representation" or (
            balancer.source == "probe" and balancer.corrected
        )
        if full and self.cut.separate and of_features:
            raise ValueError(
                f"{balancer.method} needs the blocks between tasks, which do not exist where each "
                "task has a representation of its own; set source='exact'"
            )
        jacobian = None
        known = with_zeros(gradients, self.whole, step)
        everywhere = self.whole.select(step.present)
        ranks, joint = joined_ranks(balancer, step, partition.shares)
        if balancer.source != "exact":
            kernel = self._kernel_of_features(known, everywhere, full, ranks)
        else:
            parameters = self.shared
            # Parameters named by the user may be a part of the trunk; the rest needs a pass too.
            keep = (
                not self.hooked
                and balancer.shared is None
                and len(parameters) == len(self.below)
                and not any(t.retains_grad for t in self.cut.outputs)
                and may_keep(balancer, parameters, step, full)
            )
            with unretained(self.cut.outputs):
                kernel, jacobian = exact_kernel(
                    rows_through_features(known, everywhere, parameters, partition, release=keep),
                    len(step.present),
                    partition.shares,
                    full=full,
                    keep=keep,
                    ranks=ranks,
                )
        if joint is not None:
            kernel = kernel.with_shares(joint)
        return kernel, jacobian

    def _kernel_of_features(
        self, gradients: TaskGradients, features: Features, full: bool, ranks: Ranks | None
    ) -> ExtendedNTK:
        """Return the kernel of the features, probes, or the former corrected by the latter."""
        balancer, step, partition = self.balancer, self.step, self.partition
        slopes = None
        if balancer.source == "probe" and balancer._probe_due():
            assert balancer._probe is not None
            slopes = balancer._probe.slopes(features, gradients, partition, ranks=step.ranks)
            step.require_finite(slopes.abs().amax(dim=(0, 2)), "gradient")
            if not balancer.corrected:
                shares = partition.shares.to(slopes.device).expand(slopes.shape[1], -1)
                return kernel_from_slopes(slopes, None if step.ranks is not None else shares)
        layer = balancer._last_layer
        inputs, constant = (None, 0.0) if layer is None else layer.kernel()
        kernel = representation_kernel(
            gradients,
            features,
            partition,
            balancer.pooling,
            inputs=inputs,
            constant=constant,
            full=full,
            ranks=ranks,
        )
        correction = balancer._correction
        if balancer.source != "probe" or correction is None:
            return kernel
        kernel = kernel.cpu()
        if slopes is not None:
            correction.update(slopes, kernel, step.index)
        return correction(kernel, step.index)

    def _choose(self) -> Choice:
        """Find the best source that fits the budget."""
        balancer, step, cut = self.balancer, self.step, self.cut
        if self.around:
            # Gradients with respect to the features do not carry all that reaches the trunk.
            pooling = "pooled" if cut.separate else "blockwise"
            reason = f"{pooling}: {self.around}, so that the trunk cannot be probed through them"
            return Choice("representation", pooling, 1, math.inf, reason)
        price = exact_price(
            lambda: feature_gradients(step.losses, cut, self.graph, heads=False, retain=True),
            cut,
            self.shared,
            self.partition.minibatches,
        )
        if step.ranks is not None:
            # Batches may differ; the first process's count decides for all.
            price = float(step.ranks.first(torch.tensor([price], dtype=torch.float64)))
        return choose(
            price,
            balancer.budget,
            separate=cut.separate,
            has_trunk=balancer._probe is not None,
        )

    # ------------------------------------------------------------------ filling .grad

    def _ordinary(self, weights: Tensor) -> None:
        """One backward pass of the weighted sum, every hook firing."""
        balancer, step, cut = self.balancer, self.step, self.cut
        weights = weights[step.local]
        factor = shared_factor(balancer, step)
        if balancer.weight_heads and factor == 1.0:
            plain_backward(step.losses, weights)
            return
        on_shared = weights * factor
        on_heads = weights if balancer.weight_heads else torch.ones(len(step.losses))
        if self.around or (cut.root is None and not cut.separate):
            if step.ranks is not None:
                raise ValueError(
                    "weight_heads=False with several processes needs a view of the features per "
                    "head: pass features=ntkmtl.branch(z, k) and give each head its own, or set "
                    "weight_heads=True"
                )
            # Two passes: one to the trunk's parameters, one to the heads'.
            trunk = shared_parameters(cut)
            own = {id(p) for p in trunk}
            heads = [p for p in leaves(step.losses)[0] if id(p) not in own]
            if heads:
                plain_backward(step.losses, on_heads, inputs=heads, retain=True)
            plain_backward(step.losses, on_shared, inputs=trunk)
            clip(balancer, trunk, step)
            return
        handles = [
            view.register_hook(lambda g, c=w / h: g * c)
            for view, w, h in zip(cut.tensors, on_shared.tolist(), on_heads.tolist(), strict=True)
        ]
        try:
            plain_backward(step.losses, on_heads)
        finally:
            for handle in handles:
                handle.remove()
        if balancer.preset is not None:
            clip(balancer, self.shared, step)

    def _fill(
        self,
        gradients: TaskGradients,
        heads: HeadGradients,
        weights: Tensor,
        jacobian: Tensor | None = None,
    ) -> None:
        """Add weighted gradients to ``.grad``: heads as they are known, the trunk by one pass."""
        balancer, step = self.balancer, self.step
        factor = shared_factor(balancer, step)
        known: list[float] = weights.tolist()
        local = [known[i] for i in step.local]
        heads.add(local if balancer.weight_heads else [1.0] * len(local))
        # Found before the backward pass lets go of the graph.
        parameters = self.shared if jacobian is not None or factor != 1.0 else []
        if jacobian is not None:
            add_flat(parameters, (weights * factor).to(jacobian) @ jacobian)
        else:
            self._trunk(gradients, [factor * w for w in local])
        clip(balancer, parameters, step)

    def _trunk(
        self,
        gradients: TaskGradients,
        weights: Sequence[float],
        inputs: Sequence[Tensor] | None = None,
    ) -> None:
        """One pass over the trunk with the weighted sum of the tasks' gradients."""
        cut = self.cut
        if cut.separate:
            own = gradients.features[0]
            cotangents = [g * w for g, w in zip(own, weights, strict=True)]
        else:
            cotangents = [
                weighted_sum(gradients.stacked(f), weights) for f in range(len(gradients.features))
            ]
        torch.autograd.backward(cut.outputs, cotangents, inputs=inputs)

    # ------------------------------------------------------------------ heads with more to do

    def _guide_heads(self) -> BalanceResult:
        """Let heads descend along an objective of the gradients that they send to the trunk."""
        balancer, step, cut = self.balancer, self.step, self.cut
        weighting = balancer.weighting
        require_alone(balancer, step)
        if self.hooked:
            raise ValueError(
                f"{balancer.method} gives the heads more than the gradient of their losses, which "
                "one ordinary backward pass cannot; it needs hooked=False and a clean cut at the "
                "features"
            )
        if len({t.shape for t in cut.tensors}) > 1 and cut.per_task:
            raise ValueError(
                f"{balancer.method} adds up the tasks' gradients with respect to their features, "
                f"which have shapes {sorted({tuple(t.shape) for t in cut.tensors})} here; it needs "
                "one shape"
            )
        live = feature_gradients(
            step.losses, cut, self.graph, heads=True, retain=True, differentiable=True
        )
        gradients = TaskGradients([[g.detach() for g in f] for f in live.features], live.heads)
        heads = HeadGradients(gradients)
        heads.require_finite(step)
        weights, eigenvalues = balancer._reusable(step), None
        jacobian = None
        if weights is None:
            kernel, jacobian = self._kernel(gradients)
            weights, eigenvalues = balancer._observe(kernel, step)
        # One factor of the gradient scale is to stay, like that of the losses.
        joint = [
            weighted_sum(gradients.stacked(f), (weights / step.scale).tolist())
            for f in range(len(gradients.features))
        ]
        for i, head in enumerate(gradients.heads):
            if not head:
                continue
            objective = torch.stack(
                [
                    weighting.head_objective(per_task[i], j)
                    for per_task, j in zip(live.features, joint, strict=True)
                ]
            ).sum()
            guiding = guiding_gradients(objective, [p for p, _ in head])
            updated = weighting.head_update([g for _, g in head], guiding)
            gradients.heads[i] = [(p, g) for (p, _), g in zip(head, updated, strict=True)]
        del live
        heads = HeadGradients(gradients)
        heads.require_finite(step)
        self._fill(gradients, heads, weights, jacobian)
        return step.result(weights, eigenvalues)

    # ------------------------------------------------------------------ entry by entry

    def _combine_entries(self, gradients: TaskGradients, heads: HeadGradients) -> BalanceResult:
        """Let the method combine the gradients entry by entry."""
        balancer, step, cut = self.balancer, self.step, self.cut
        require_alone(balancer, step)
        if self.hooked:
            raise ValueError(
                f"{balancer.method} changes gradients entry by entry, which one ordinary backward "
                "pass cannot; it needs hooked=False and a clean cut at the features"
            )
        if cut.separate:
            raise ValueError(
                f"{balancer.method} compares the tasks' gradients, which needs a representation "
                "that they share"
            )
        k = len(step.losses)
        outputs = cut.outputs
        rest: list[Tensor] = []
        if balancer.source == "representation":
            matrix = torch.cat(
                [torch.stack(per_task).flatten(1) for per_task in gradients.features], dim=1
            )
        else:
            parameters = self.shared
            chosen = {id(p) for p in parameters}
            rest = [p for p in self.below if id(p) not in chosen]
            whole = Partition.of(cut.batch, 1)
            rows = rows_through_features(gradients, cut, parameters, whole, release=not rest)
            matrix = torch.cat([rows(i) for i in range(k)])
        step.require_finite(matrix.abs().amax(dim=1).to("cpu", torch.float64), "gradient")
        combined, weights = step.unscaled(balancer.weighting.combine, matrix)
        heads.add([1.0] * k)
        if balancer.source == "representation":
            sizes = [t.numel() for t in outputs]
            torch.autograd.backward(
                outputs,
                [part.view_as(t) for part, t in zip(combined.split(sizes), outputs, strict=True)],
            )
        else:
            if rest:
                self._trunk(gradients, [1.0] * k, inputs=rest)
            add_flat(parameters, combined)
        return step.result(weights)


def backward_around_features(
    balancer: Balancer, step: Step, shared: list[Tensor], *, hooked: bool | None = None
) -> BalanceResult:
    """The exact source from the losses themselves, without features to cut the graph at.

    Raises:
        ValueError: The method or the number of mini-batches needs features.

    Args:
        balancer: Whose options count.
        step: What is known of this call.
        shared: The shared parameters.
        hooked: Whether hooks must fire; the balancer's choice if None.
    """
    if balancer.weighting.guides_heads:
        raise ValueError(
            f"{balancer.method} needs the features that part trunk and heads: pass features=z, the "
            "tensor that the heads read, and let no loss reach the trunk around it"
        )
    if balancer.minibatches > 1:
        raise ValueError(
            f"{balancer.minibatches} mini-batches need features to split: pass features=z, or use "
            "minibatches=1"
        )
    require_unclipped(balancer, shared)
    k = len(step.present)
    local = dict(zip(step.local, step.losses, strict=True))
    if hooked is None:
        together = dist.is_available() and dist.is_initialized()
        hooked = balancer.hooked if balancer.hooked is not None else together

    def row(task: int) -> Tensor:
        if task in local:
            return vjp((local[task],), shared, None)[None]
        return torch.cat([torch.zeros_like(p).reshape(-1) for p in shared])[None]

    hooks = any(has_hooks(p) for p in shared)
    ordinary = balancer.weight_heads and (bool(hooked) or hooks)
    weights = balancer._reusable(step)
    eigenvalues = jacobian = combined = None
    if weights is None and balancer.weighting.reads == "jacobian":
        require_alone(balancer, step)
        matrix = torch.cat([row(i) for i in range(k)])
        step.require_finite(matrix.abs().amax(dim=1).to("cpu", torch.float64), "gradient")
        combined, weights = step.unscaled(balancer.weighting.combine, matrix)
    elif weights is None:
        full = balancer.weighting.reads_cross_terms
        one = torch.ones(1, 1, dtype=torch.float64)
        ranks, joint = joined_ranks(balancer, step, one)
        kernel, jacobian = exact_kernel(
            row,
            k,
            one,
            full=full,
            keep=not ordinary and may_keep(balancer, shared, step, full),
            ranks=ranks,
        )
        if joint is not None:
            kernel = kernel.with_shares(joint)
        weights, eigenvalues = balancer._observe(kernel, step)
    factor = shared_factor(balancer, step)
    if ordinary and combined is None and factor == 1.0:
        plain_backward(step.losses, weights[step.local])
        return step.result(weights, eigenvalues)
    own = {id(p) for p in shared}
    heads = [p for p in leaves(step.losses)[0] if id(p) not in own]
    on_heads = weights if balancer.weight_heads and combined is None else torch.ones(k)
    if heads:
        plain_backward(
            step.losses,
            on_heads[step.local],
            inputs=heads,
            retain=combined is None and jacobian is None,
        )
    if combined is not None:
        add_flat(shared, combined)
    elif jacobian is not None:
        add_flat(shared, (weights * factor).to(jacobian) @ jacobian)
    else:
        plain_backward(step.losses, (weights * factor)[step.local], inputs=shared)
    clip(balancer, shared, step)
    return step.result(weights, eigenvalues)


def joined_ranks(
    balancer: Balancer, step: Step, shares: Tensor
) -> tuple[Ranks | None, Tensor | None]:
    """Return the other processes as the method needs them, and the shares of all mini-batches.

    Methods that read the Gramian take means over mini-batches, before anything is exchanged; probes
    correct the kernel of each mini-batch.

    Args:
        balancer: Whose options count.
        step: What is known of this call.
        shares: Of this process's mini-batches in its samples, shape (k, n) or (1, n).

    Returns:
        The processes, None if there are none, and shares of shape (k, R n), None where the kernel
        comes with its own.
    """
    if step.ranks is None:
        return None, None
    own = shares.expand(len(step.present), -1)
    joint = step.ranks.shares(own, step.has_label)
    if balancer.weighting.reads != "gramian" or balancer.source == "probe":
        return step.ranks, joint
    n = own.shape[1]
    return step.ranks.averaging(joint[:, step.ranks.rank * n :][:, :n]), None


def may_keep(balancer: Balancer, parameters: Sequence[Tensor], step: Step, full: bool) -> bool:
    """Whether k gradients are kept to save a pass over the trunk."""
    if any(has_hooks(p) for p in parameters):
        return False
    if full and balancer.minibatches == 1:
        return True  # the gradients are in memory anyway
    size = sum(p.numel() * p.element_size() for p in parameters)
    return size * len(step.present) <= balancer.memory_budget


def require_alone(balancer: Balancer, step: Step) -> None:
    """Refuse to combine entries of gradients that are spread over processes."""
    if step.ranks is not None:
        raise ValueError(
            f"{balancer.method} works on the gradients entry by entry, which would need those of "
            f"all {step.ranks.size} processes on each; it works in a single process only"
        )


def trainable_now(shared: Sequence[Tensor]) -> list[Tensor]:
    """Return the shared parameters that are not frozen.

    Raises:
        ValueError: All of them are.
    """
    found = [p for p in shared if p.requires_grad]
    if not found:
        raise ValueError("every shared parameter is frozen; use a method that reads losses only")
    return found


def published_ntkmtl(balancer: Balancer) -> bool:
    """Whether to do as the published code of NTKMTL does."""
    return balancer.preset == "published" and balancer.method == "ntkmtl"


def require_unclipped(balancer: Balancer, shared: Sequence[Tensor]) -> None:
    """Refuse to clip what other batches have left in ``.grad``.

    Raises:
        ValueError: The preset clips, and there are gradients already.
    """
    if published_ntkmtl(balancer) and any(
        p.grad is not None and bool(p.grad.any()) for p in shared
    ):
        raise ValueError(
            'preset="published" clips the gradient of one batch, and .grad holds that of another: '
            "call optimizer.zero_grad() before each backward, or leave the preset out to accumulate"
        )


def shared_factor(balancer: Balancer, step: Step) -> float:
    """What the published code of NTKMTL multiplies the shared gradient by: k."""
    return float(len(step.present)) if published_ntkmtl(balancer) else 1.0


def clip(balancer: Balancer, shared: Sequence[Tensor], step: Step) -> None:
    """Clip as the published code of NTKMTL does, to norm 1 before the gradient scale."""
    if published_ntkmtl(balancer):
        nn.utils.clip_grad_norm_(shared, step.scale)
