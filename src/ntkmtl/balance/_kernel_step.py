"""A step of a method that reads a kernel, through a representation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ntkmtl.balance._core import Core
from ntkmtl.balance._fill import (
    HeadGradients,
    add,
    checked,
    dense,
    extra_gradients,
    fill_checked,
    from_flat,
    in_two_passes,
    may_overflow,
    ordinary,
)
from ntkmtl.balance._found_view import FoundView
from ntkmtl.balance._named_view import NamedView
from ntkmtl.balance._options import Options
from ntkmtl.balance._order import in_fixed_order, require_same_tensors
from ntkmtl.balance._step import BalanceResult, Step
from ntkmtl.balance._views import View, pull, push, weighted_sum
from ntkmtl.balance._weigh import observe, to_cpu
from ntkmtl.graph import (
    Features,
    TaskGradients,
    adds_up,
    as_real,
    differentiate,
    has_hooks,
    leaves,
    objective_gradients,
    plain_backward,
)
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._free_memory import all_rows
from ntkmtl.kernel._partition import Partition
from ntkmtl.kernel._probe import kernel_from_slopes
from ntkmtl.kernel._ranks import Ranks
from ntkmtl.kernel._sources import exact_kernel

__all__ = [
    "KernelStep",
    "clip",
    "joined_ranks",
    "joining_extra",
    "may_keep",
    "require_alone",
    "require_unclipped",
    "require_unhooked",
    "shared_factor",
]


class KernelStep:
    """A step through a representation that all gradients pass through.

    Args:
        core: The Balancer's options and state.
        step: The step.
        view: The graph, divided at the representation.
        source: ``"representation"``, ``"exact"`` or ``"probe"``.
    """

    def __init__(self, core: Core, step: Step, view: View, source: str) -> None:
        self.core = core
        self.options = core.options
        self.step = step
        self.view = view
        self.source = source
        self.hooked = self._is_hooked()
        self.half = False
        # Of several tensors one may lie below another: nodes in between run in both passes.
        chained = view.outputs > 1
        self.retain = self.hooked or chained or step.extra is not None

    def run(self, weights: Tensor | None = None) -> BalanceResult:
        """Compute weights and fill ``.grad``.

        Args:
            weights: Weights of the tasks of ``step.present`` to use; None to compute new ones.
        """
        options, step = self.options, self.step
        require_unclipped(options, step, self.view.shared if options.published_ntkmtl else ())
        if options.weighting.has_head_objective:
            return self._run_head_objective(weights)
        gradients, heads = self.differentiate()
        if weights is None and options.requires == "jacobian":
            return self._combine_entries(gradients, heads)
        if weights is not None:
            self._require_finite(gradients)
        eigenvalues = jacobian = None
        if weights is None:
            kernel, jacobian = self.kernel(gradients)
            weights, eigenvalues = observe(self.core, to_cpu(kernel, step), step)
        self.finish(gradients, heads, weights, jacobian)
        return step.result(weights, eigenvalues)

    def finish(
        self,
        gradients: TaskGradients,
        heads: HeadGradients,
        weights: Tensor,
        jacobian: Tensor | None,
    ) -> None:
        """Fill ``.grad``, by an ordinary backward pass if hooks must run."""
        if self.hooked:
            with checked(self.step):  # gradients of heads were not checked before
                self._ordinary(weights)
        else:
            self._fill(gradients, heads, weights, jacobian)

    # ------------------------------------------------------------------ gradients of the heads

    def _is_hooked(self) -> bool:
        wanted = self.options.hooked
        cut = getattr(self.view, "cut", None)
        needed = getattr(cut, "apart", False) or self.view.skips
        if wanted is not None:
            return wanted or needed
        # DDP's hooks are not visible in Python, and need an ordinary backward pass even in a single
        # process.
        hooks = not self.step.late and (self.step.mixed or self.view.hooks)
        return hooks or self.step.parallel or needed

    def differentiate(self) -> tuple[TaskGradients, HeadGradients]:
        """Differentiate the part of the graph above the representation."""
        gradients = self.view.differentiate(heads=not self.hooked, retain=self.retain)
        heads = HeadGradients(gradients)
        heads.await_finite(self.step)
        known = [g for f in gradients.features for g in f if g is not None]
        self.half = not self.step.scaled and any(g.dtype is torch.float16 for g in known)
        if self.half:
            self._await_no_underflow(gradients)
        return gradients, heads

    def _require_finite(self, gradients: TaskGradients) -> None:
        """Raise on all processes if one has a gradient that is not finite.

        Used in steps that compute no kernel, which would show it.
        """
        step = self.step
        own = torch.zeros(len(step.local), dtype=torch.float64)
        for per_task in gradients.features:
            at = [i for i, g in enumerate(per_task) if g is not None]
            peaks = [as_real(per_task[i]).abs().amax().to(torch.float64) for i in at]
            (found,) = step.bring(torch.stack(peaks))
            own[at] = torch.maximum(own[at], found.nan_to_num(nan=math.inf))
        values = torch.zeros(len(step.present), dtype=torch.float64)
        values[step.local] = own
        if step.ranks is not None:
            values = torch.stack(step.ranks.gather(values)).amax(dim=0)
        step.require_finite(values, "gradient")

    def _await_no_underflow(self, gradients: TaskGradients) -> None:
        """Schedule a check that no task's float16 gradient underflowed to zero.

        The check raises ValueError if a task with a positive loss has gradient zero everywhere, in
        its own head too.
        """
        step = self.step
        silent = []
        for i, loss in enumerate(step.losses):
            own = [f[i] for f in gradients.features if f[i] is not None]
            heads = [dense(g) for _, g in gradients.heads[i]] if gradients.heads else []
            sent = [g.any().to(loss.device) for g in (*own, *heads)]
            nothing = ~torch.stack(sent).any() if own else torch.zeros_like(loss, dtype=torch.bool)
            silent.append((nothing & (loss.detach() > 0)).to(step.like.device))

        def check(found: Tensor) -> None:
            for i, name in enumerate(step.local_names):
                if bool(found[i]) and not self._reaches_head(i):
                    raise ValueError(
                        f"the float16 gradient of task {name} is zero throughout, though its loss "
                        "is not: it is too small for float16. Use a gradient scaler and pass it, "
                        "backward(losses, scaler=scaler)"
                    )

        step.waiting.append((torch.stack(silent), check))

    def _reaches_head(self, task: int) -> bool:
        """Whether a task has a nonzero gradient somewhere, where heads were not differentiated."""
        if not self.hooked:
            return False
        loss = self.step.losses[task]
        found = differentiate([loss], list(leaves([loss])[0]), None, retain=True)
        return any(bool(dense(g).any()) for g in found if g is not None)

    # ------------------------------------------------------------------ the kernel

    def kernel(self, gradients: TaskGradients) -> tuple[ExtendedNTK, Tensor | None]:
        """Return the kernel, and the gradients of shape (k, P) or None if they were not kept."""
        options, step, view = self.options, self.step, self.view
        full = options.needs_gramian
        of_features = self.source == "representation" or (
            self.source == "probe" and options.probe is not None and options.probe.corrected
        )
        if full and view.separate and of_features:
            who = options.method if options.weighting.requires_cross_terms else "length"
            raise ValueError(
                f"{who} needs the blocks between tasks, which do not exist where each task has a "
                "representation of its own; set source='exact', or pass features=z, one tensor "
                "that all of them read"
            )
        ranks, joint = joined_ranks(options, step, view.partition.shares, self.source)
        jacobian = None
        if self.source == "exact":
            kernel, jacobian = self._exact(gradients, full, ranks)
        else:
            kernel = self._of_representation(gradients, full, ranks)
        if joint is not None:
            kernel = kernel.with_shares(joint)
        return kernel, jacobian

    def _exact(
        self, gradients: TaskGradients, full: bool, ranks: Ranks | None
    ) -> tuple[ExtendedNTK, Tensor | None]:
        options, step, view = self.options, self.step, self.view
        parameters = view.shared
        cut = getattr(view, "cut", None)
        # Gradients are kept only if they are all that the trunk's backward pass would compute.
        keep = (
            not self.hooked
            and options.shared is None
            and len(parameters) == len(view.below)
            and not any(getattr(t, "retains_grad", False) for t in getattr(cut, "outputs", ()))
            and may_keep(options, parameters, step, full)
        )
        rows = view.rows(gradients, parameters, release=keep and step.extra is None)
        return exact_kernel(
            rows, len(step.present), view.partition.shares, full=full, keep=keep, ranks=ranks
        )

    def _of_representation(
        self, gradients: TaskGradients, full: bool, ranks: Ranks | None
    ) -> ExtendedNTK:
        """Return the kernel of the representation, of probes, or the first corrected by probes."""
        options, step, view = self.options, self.step, self.view
        probe, slopes = options.probe, None
        if self.source == "probe":
            assert probe is not None
            if not isinstance(view, NamedView):
                raise ValueError(
                    "source='probe' runs the trunk again and compares its output: pass features=z, "
                    "what the trunk returned"
                )
            if not probe.corrected or self.core.memory.kernels % probe.every == 0:
                slopes = probe.slopes(
                    view.everywhere, view.known(gradients), view.partition, ranks=step.ranks
                )
                step.require_finite(slopes.abs().amax(dim=(0, 2)), "gradient")
            self.core.memory.kernels += 1
            if not probe.corrected:
                assert slopes is not None
                shares = view.partition.shares.to(slopes.device).expand(slopes.shape[1], -1)
                return kernel_from_slopes(slopes, None if step.ranks is not None else shares)
        layer = None if options.last_layer is None else options.last_layer.kernel()
        kernel = view.kernel(gradients, options.pooling, full=full, ranks=ranks, layer=layer)
        correction = self.core.correction
        if self.source != "probe" or correction is None:
            return kernel
        kernel = kernel.cpu()
        if slopes is not None:
            correction.update(slopes, kernel, step.index)
        return correction(kernel, step.index)

    # ------------------------------------------------------------------ filling .grad

    def _ordinary(self, weights: Tensor) -> None:
        """Run one ordinary backward pass of the weighted sum, with all hooks."""
        options, step, view = self.options, self.step, self.view
        step.bring()
        factor = shared_factor(options, step)
        if options.weight_heads and factor == 1.0:
            ordinary(self.core, step, weights, careful=self.half)
            return
        local = step.of_local(weights)
        on_shared = [w * factor for w in local]
        on_heads = local if options.weight_heads else [1.0] * len(local)
        cut = getattr(view, "cut", None)
        views = isinstance(view, NamedView) and (view.cut.root is not None or view.separate)
        others = self._unweighted() and step.ranks is None
        if not views or others or step.extra is not None or step.late:
            self._in_two_passes(on_shared, on_heads)
            return
        tensors = cut.tensors if isinstance(cut, Features) else ()
        handles = [
            tensor.register_hook(lambda g, c=w / h: g * c)
            for tensor, w, h in zip(tensors, on_shared, on_heads, strict=True)
        ]
        try:
            plain_backward(step.losses, on_heads)
        finally:
            for handle in handles:
                handle.remove()
        clip(options, view.shared if options.preset is not None else (), step)

    def _in_two_passes(self, on_shared: Sequence[float], on_heads: Sequence[float]) -> None:
        """Run one backward pass to the trunk's parameters and one to the heads'."""
        step = self.step
        if step.ranks is not None:
            raise ValueError(
                "weight_heads=False (the published form of this method) with several processes "
                "needs a view of the features per head: set weight_heads=True, or pass "
                "features=ntkmtl.branch(z, k) and give each head its own"
            )
        trunk = self._weighted()
        own = {id(p) for p in trunk}
        heads = [p for p in step.scan.leaves if id(p) not in own]
        extra = joining_extra(self.options, step)
        in_two_passes(self.core, step, heads, on_heads, trunk, on_shared, extra)
        clip(self.options, trunk, step)

    def _fill(
        self,
        gradients: TaskGradients,
        heads: HeadGradients,
        weights: Tensor,
        jacobian: Tensor | None = None,
    ) -> None:
        """Add weighted gradients to ``.grad``: known ones of the heads, the trunk's by one pass."""
        options, step, view = self.options, self.step, self.view
        step.bring()
        factor = shared_factor(options, step)
        local = step.of_local(weights)
        on_shared = [factor * w for w in local]
        on_heads = local if options.weight_heads else [1.0] * len(local)
        others = self._unweighted()
        careful = self._is_careful(gradients, [*on_shared, *on_heads]) or bool(others)
        pairs = heads.weighted(on_heads)
        if others:
            pairs += pull(view, gradients, on_heads, others, retain=True)
        # Looked up before the backward pass frees the graph.
        parameters = view.shared if jacobian is not None or factor != 1.0 else []
        if jacobian is not None:
            pairs += from_flat(parameters, weighted_sum(jacobian, on_shared))
        known = gradients if jacobian is None else None
        inputs = self._weighted() if others else None
        self._add(pairs, known, on_shared, careful=careful, inputs=inputs, clipped=parameters)

    def _unweighted(self) -> list[Tensor]:
        """Return the leaves below the representation that get the plain sum, as heads do."""
        return [] if self.options.weight_heads else self.view.unweighted

    def _weighted(self) -> list[Tensor]:
        others = {id(p) for p in self._unweighted()}
        return [p for p in self.view.below if id(p) not in others]

    def _add(
        self,
        pairs: list[tuple[Tensor, Tensor]],
        gradients: TaskGradients | None,
        weights: Sequence[float],
        *,
        careful: bool,
        inputs: Sequence[Tensor] | None = None,
        clipped: Sequence[Tensor] = (),
    ) -> None:
        """Add known gradients, those of the trunk's pass and those of the extra loss to ``.grad``.

        Args:
            pairs: Parameters and their gradients.
            gradients: Gradients to start the trunk's pass from; None if ``pairs`` holds its result.
            weights: Their weights.
            careful: Check all gradients before one is added. Otherwise those that a pass adds are
                checked afterwards, and undone.
            inputs: The leaves below the representation that the pass fills; None for all.
            clipped: Parameters whose gradients the preset clips.
        """
        step, view = self.step, self.view
        extra = joining_extra(self.options, step)
        if careful:
            if gradients is not None:
                pairs += pull(view, gradients, weights, inputs, retain=step.extra is not None)
            if extra is not None:
                pairs += extra_gradients(step)
            fill_checked(step, pairs, weights)
            clip(self.options, clipped, step)
            return
        # Gradients of the heads and of an exact kernel were checked before. Those of the trunk are
        # made with weights for which a step on a GPU has waited already, and it waits once only.
        below = gradients is not None and step.losses[0].device.type == "cpu"
        with checked(step) if below or step.extra is not None else nullcontext():
            add(step, pairs)
            if gradients is not None and inputs is None:
                push(view, gradients, weights, extra=extra, retain=extra is not step.extra)
            else:
                if gradients is not None:
                    push(view, gradients, weights, inputs, retain=extra is not None)
                if extra is not None:
                    plain_backward([extra], [1.0])
            clip(self.options, clipped, step)

    def _is_careful(self, gradients: TaskGradients, weights: Sequence[float]) -> bool:
        """Whether to check weighted gradients before they are added to ``.grad``.

        True as well where hooks run once it is filled.

        Raises:
            NonFiniteError: A weight overflows in the gradients' dtype. In float16 a gradient scaler
                helps.
        """
        known = [g for f in gradients.features for g in f if g is not None]
        late = bool(self.step.late)
        if not (late or may_overflow(self.core, self.step, weights, known)):
            return False
        dtypes = {g.dtype for g in known} if known else {self.step.like.dtype}
        for name, weight in zip(self.step.local_names * 2, weights, strict=True):
            for dtype in dtypes:
                self.step.require_representable(name, weight, dtype)
        return late or not any(map(has_hooks, self.view.below))

    # ------------------------------------------------------------------ objectives of heads

    def _run_head_objective(self, weights: Tensor | None) -> BalanceResult:
        """Run a step in which heads also minimize an objective of their gradients to the trunk."""
        options, step, view = self.options, self.step, self.view
        weighting = options.weighting
        require_alone(options, step)
        if self.hooked or not isinstance(view, NamedView):
            raise ValueError(
                f"{options.method} gives the heads more than the gradient of their losses, which "
                "one ordinary backward pass cannot; it needs hooked=False and a clean cut at the "
                "features: pass features=z, the tensor that the heads read"
            )
        cut = view.cut
        if len({t.shape for t in cut.tensors}) > 1 and cut.per_task:
            raise ValueError(
                f"{options.method} adds up the tasks' gradients with respect to their features, "
                f"which have shapes {sorted({tuple(t.shape) for t in cut.tensors})} here; it needs "
                "one shape"
            )
        live = view.differentiate(heads=True, retain=True, live=True)
        gradients = TaskGradients([[g.detach() for g in f] for f in live.features], live.heads)
        HeadGradients(gradients).await_finite(step)
        eigenvalues = jacobian = None
        if weights is None:
            kernel, jacobian = self.kernel(gradients)
            weights, eigenvalues = observe(self.core, to_cpu(kernel, step), step)
        # The gradient scale must remain as a factor of power 1, as in the losses.
        joint = [
            weighted_sum(gradients.stacked(f), (weights / step.scale).tolist())
            for f in range(len(gradients.features))
        ]
        for i, head in enumerate(gradients.heads):
            if not head:
                continue
            objective = torch.stack(
                [
                    weighting.head_objective(as_real(per_task[i]), as_real(j))
                    for per_task, j in zip(live.features, joint, strict=True)
                ]
            ).sum()
            guiding = objective_gradients(objective, [p for p, _ in head])
            updated = weighting.head_update(
                [_real_entries(g) for _, g in head], [_real_entries(g) for g in guiding]
            )
            gradients.heads[i] = [
                (p, _like(g.reshape(-1), p)) for (p, _), g in zip(head, updated, strict=True)
            ]
        del live
        heads = HeadGradients(gradients)
        heads.await_finite(step)
        self._fill(gradients, heads, weights, jacobian)
        return step.result(weights, eigenvalues)

    # ------------------------------------------------------------------ entry by entry

    def _combine_entries(self, gradients: TaskGradients, heads: HeadGradients) -> BalanceResult:
        """Run a step in which the method combines gradients entry by entry."""
        options, step, view = self.options, self.step, self.view
        require_alone(options, step)
        require_unhooked(options, "" if not self.hooked else self._why_hooked())
        if view.separate and self.source == "representation":
            raise ValueError(
                f"{options.method} compares the tasks' gradients, which needs a representation "
                "that they share"
            )
        if self.source == "representation":
            self._combine_features(gradients, heads)
        else:
            self._combine_parameters(gradients, heads)
        return step.result(self._reported)

    def _why_hooked(self) -> str:
        if self.view.skips:
            return (
                "an input that requires a gradient enters a head around the representation: detach "
                "it there"
            )
        if getattr(getattr(self.view, "cut", None), "apart", False):
            return (
                "the losses read parts of one tensor, so only the losses themselves can be "
                "differentiated: set source='exact', or pass features=z, the tensor that the "
                "layers above the shared part read"
            )
        what = (
            "the model may be wrapped in DistributedDataParallel, whose hooks"
            if self.step.parallel
            else "a parameter of a head, or the features, have hooks, which"
        )
        return f"{what} only such a pass runs: hooked=False leaves them out"

    def _combine_features(self, gradients: TaskGradients, heads: HeadGradients) -> None:
        like = [next(g for g in f if g is not None) for f in gradients.features]
        filled = [
            [torch.zeros_like(z) if g is None else g for g in f]
            for z, f in zip(like, gradients.features, strict=True)
        ]
        rows = [[as_real(g).reshape(-1) for g in f] for f in filled]
        matrix = torch.cat([torch.stack(f) for f in rows], dim=1)
        if isinstance(self.view, FoundView):
            require_same_tensors(self.core, self.step, self.view.cut, matrix.shape[1])
        combined = self._combined(matrix)
        pairs = heads.weighted([1.0] * len(filled[0]))
        pieces = combined.split([len(f[0]) for f in rows])
        one = [_like(part, z) for part, z in zip(pieces, like, strict=True)]
        known = TaskGradients([[g] for g in one])
        self._add(pairs, known, [1.0], careful=bool(self.step.late))

    def _combine_parameters(self, gradients: TaskGradients, heads: HeadGradients) -> None:
        view = self.view
        parameters = in_fixed_order(self.core, self.step, view.shared)
        chosen = {id(p) for p in parameters}
        rest = [p for p in view.below if id(p) not in chosen]
        whole, view.partition = view.partition, Partition.of(1, 1)
        if isinstance(view, NamedView):
            view.partition = Partition.of(view.cut.batch, 1)
        rows = view.rows(gradients, parameters, release=not rest and not self.retain)
        matrix = all_rows(rows, len(self.step.losses))
        view.partition = whole
        ones = [1.0] * len(matrix)
        pairs = [*heads.weighted(ones), *from_flat(parameters, self._combined(matrix))]
        careful = bool(self.step.late)
        self._add(pairs, gradients if rest else None, ones, careful=careful, inputs=rest)

    def _combined(self, matrix: Tensor) -> Tensor:
        step = self.step
        peaks = matrix.abs().amax(dim=1).to(torch.float64)
        (peaks,) = step.bring(peaks)
        step.require_finite(peaks, "gradient")
        combined, self._reported = step.combined(self.options.weighting.combine, matrix)
        return combined


def _real_entries(gradient: Tensor) -> Tensor:
    """Return a gradient as real numbers, a sparse one in dense form."""
    return as_real(gradient if gradient.layout is torch.strided else gradient.to_dense())


def _like(part: Tensor, tensor: Tensor) -> Tensor:
    """Return real entries in the shape of a tensor, as complex numbers if it is complex."""
    if tensor.is_complex():
        return torch.view_as_complex(part.view(*tensor.shape, 2).contiguous())
    return part.view_as(tensor)


def joined_ranks(
    options: Options, step: Step, shares: Tensor, source: str
) -> tuple[Ranks | None, Tensor | None]:
    """Return the processes as the method needs them, and the shares of all their mini-batches.

    For methods that read the Gramian, mini-batches are averaged before the exchange, except with
    probes, which correct the kernel of each mini-batch.

    Args:
        options: The Balancer's options.
        step: The step.
        shares: Shares of this process's mini-batches in its samples, shape (k, n) or (1, n).
        source: Where the kernel comes from.

    Returns:
        All processes, None if there is only one; and shares of shape (k, R n), None if the kernel's
        own shares are right.
    """
    if step.ranks is None:
        return None, None
    own = shares.expand(len(step.present), -1)
    joint = step.ranks.shares(own, step.has_label)
    if options.requires != "gramian" or source == "probe":
        return step.ranks, joint
    n = own.shape[1]
    return step.ranks.averaging(joint[:, step.ranks.rank * n :][:, :n]), None


def may_keep(options: Options, parameters: Sequence[Tensor], step: Step, full: bool) -> bool:
    """Whether k gradients may be kept to save a backward pass through the trunk."""
    if any(has_hooks(p) for p in parameters) or not adds_up(step.losses):
        return False
    if full and options.minibatches == 1:
        return True  # the gradients are in memory anyway
    size = sum(p.numel() * p.element_size() for p in parameters)
    return size * len(step.present) <= options.memory_budget


def require_alone(options: Options, step: Step) -> None:
    """Raise in distributed training, for methods that combine gradients entry by entry."""
    if step.ranks is not None:
        raise ValueError(
            f"{options.method} works on the gradients entry by entry, which would need those of "
            f"all {step.ranks.size} processes on each; it works in a single process only"
        )


def require_unhooked(options: Options, why: str = "") -> None:
    """Raise for methods that combine gradients entry by entry, if a pass with hooks is needed.

    Args:
        options: The Balancer's options.
        why: Why one is, if not because the user asked for it; empty if it is not.

    Raises:
        ValueError: One is needed.
    """
    if options.hooked:
        why = "hooked=True asks for such a pass: leave it out"
    if why:
        raise ValueError(
            f"{options.method} changes gradients entry by entry, which one ordinary backward pass "
            f"cannot; {why}"
        )


def require_unclipped(options: Options, step: Step, shared: Sequence[Tensor]) -> None:
    """Raise if the preset would clip gradients of other batches, or those that hooks have seen.

    Raises:
        ValueError: The preset clips, and ``.grad`` is not empty or hooks run once it is filled.
    """
    if options.published_ntkmtl and (step.late or step.mixed):
        raise ValueError(
            'preset="published" clips .grad after the backward pass, when hooks of '
            "register_post_accumulate_grad_hook (or on the nodes that fill .grad) have run: leave "
            "the preset or the hooks out"
        )
    if options.published_ntkmtl and any(p.grad is not None and bool(p.grad.any()) for p in shared):
        raise ValueError(
            'preset="published" clips the gradient of one batch, and .grad holds that of another: '
            "call optimizer.zero_grad() before each backward, or leave the preset out to accumulate"
        )


def shared_factor(options: Options, step: Step) -> float:
    """Return the factor of the shared gradient: k in the published code of NTKMTL, else 1."""
    return float(len(step.present)) if options.published_ntkmtl else 1.0


def joining_extra(options: Options, step: Step) -> Tensor | None:
    """Return the loss outside the balance if it may join another pass; it must not be clipped."""
    return None if options.published_ntkmtl else step.extra


def clip(options: Options, shared: Sequence[Tensor], step: Step) -> None:
    """Clip to norm 1 (times the gradient scale) as the published code of NTKMTL does.

    A loss outside the balance is then added in a pass of its own.
    """
    if options.published_ntkmtl:
        nn.utils.clip_grad_norm_(shared, step.scale)
        if step.extra is not None:
            plain_backward([step.extra], [1.0])
