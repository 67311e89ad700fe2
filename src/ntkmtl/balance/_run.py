"""How one call of backward goes: reuse weights, part the graph, or start from the losses."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkmtl._warnings import warn
from ntkmtl.balance import _auto
from ntkmtl.balance._fill import ordinary, repeated, undone_if_not_finite
from ntkmtl.balance._kernel_step import KernelStep, may_keep
from ntkmtl.balance._parameter_step import ParameterStep, touched_by_two
from ntkmtl.balance._step import BalanceResult, Step
from ntkmtl.balance._views import FoundView, NamedView, View, describe_bypass, trainable_now
from ntkmtl.balance._weigh import (
    HIDDEN,
    Core,
    keep_held,
    observe,
    prefer,
    require_finite_weights,
    to_cpu,
    weigh,
)
from ntkmtl.graph import FeaturesLike, find_cut

__all__ = ["run"]


def run(
    core: Core, step: Step, features: FeaturesLike | None, counts: Tensor | None
) -> BalanceResult:
    """Weigh the losses of a step and fill ``.grad``.

    Args:
        core: What the Balancer's steps work with.
        step: What is known of this call.
        features: The representation, where the user names it.
        counts: Labels per task and sample.
    """
    options = core.options
    if options.requires == "losses":
        return _by_losses(core, step)
    if core.held and all(i in core.held for i in step.present):
        held = torch.tensor([core.held[i] for i in step.present], dtype=torch.float64)
        return _reuse(core, step, held, features, counts)
    if (weights := _still_valid(core, step)) is not None:
        return _reuse(core, step, weights, features, counts)
    core.parameters = None
    if options.last_layer is not None:
        features = options.last_layer.output()
    if features is not None:
        result = _through_features(core, step, features, counts)
    elif options.shared is not None and options.source in ("exact", "auto"):
        result = _from_losses(core, step, trainable_now(options.shared))
    else:
        result = _through_cut(core, step, counts)
    return result


def _by_losses(core: Core, step: Step) -> BalanceResult:
    if core.held and all(i in core.held for i in step.present):
        weights = torch.tensor([core.held[i] for i in step.present], dtype=torch.float64)
        ordinary(core, step, weights)
        return step.result(weights)
    weights = weigh(core, None, step)
    require_finite_weights(weights, step)
    weights = keep_held(core, weights, step)
    ordinary(core, step, weights)
    core.options.weighting.accumulate(step.raw, step.index, step.scale)
    return step.result(weights)


def _still_valid(core: Core, step: Step) -> Tensor | None:
    """Return the weights of an earlier step, if this one is to reuse them."""
    options, memory = core.options, core.memory
    if options.source == "auto":
        due = _auto.exact_due(core, step) or _auto.free_due(core, step)
        if due and not (step.ranks is not None and _missing_somewhere(step)):
            return None
        return memory.known(step.present)
    if memory.weights is None or not memory.young(step.index, step.number, options.every):
        return None
    return memory.weights[step.index]


def _missing_somewhere(step: Step) -> bool:
    """Whether one of several processes lacks a label of a task; the same answer on each."""
    assert step.ranks is not None
    here = torch.tensor([len(step.local) < len(step.present)], dtype=torch.float64)
    return bool(torch.stack(step.ranks.gather(here)).any())


def _reuse(
    core: Core,
    step: Step,
    weights: Tensor,
    features: FeaturesLike | None,
    counts: Tensor | None,
) -> BalanceResult:
    """Fill ``.grad`` with weights that are known."""
    options = core.options
    plainly = options.weight_heads and not options.published_ntkmtl
    if plainly and (features is None or options.source == "auto" or core.held is not None):
        repeated(core, step, weights)
        return step.result(weights)
    if features is not None:
        view = NamedView(options, step, features, counts)
        if not view.around:
            return KernelStep(core, step, view, options.source).run(weights)
        return _repeated_apart(core, step, view.shared, weights, hooked=True)
    if options.shared is not None:
        shared = trainable_now(options.shared)
    else:
        shared = find_cut(step.losses, parallel=step.parallel).shared
    if not shared:
        return _weigh_heads(core, step, weights)
    return _repeated_apart(core, step, shared, weights)


def _repeated_apart(
    core: Core, step: Step, shared: list[Tensor], weights: Tensor, *, hooked: bool | None = None
) -> BalanceResult:
    """Fill heads and shared parameters with weights that are known, without a kernel."""
    way = ParameterStep(core, step, shared, minibatches=1, hooked=hooked)
    if step.scaled:  # the scaler looks at all gradients itself
        return way.run(weights)
    with undone_if_not_finite(step):
        return way.run(weights)


def _through_features(
    core: Core, step: Step, features: FeaturesLike, counts: Tensor | None
) -> BalanceResult:
    """Part the graph where the user says."""
    options = core.options
    view = NamedView(options, step, features, counts)
    if options.source != "representation":
        view.around = view.around or view.shared_above
    if view.around and options.source in ("exact", "auto"):
        # Rows of z do not carry all of the gradient: differentiate the losses themselves.
        if view.partition.minibatches > 1 and step.samples is None:
            raise ValueError(
                f"{view.around}, so the exact kernel of {view.partition.minibatches} mini-batches "
                "cannot be had through them; give losses of single samples, or use minibatches=1"
            )
        return _from_losses(core, step, view.shared, hooked=True)
    if view.around:
        raise ValueError(
            f"{view.around}, so that its kernel with respect to them means nothing; {_remedy(step)}"
        )
    return _through_view(core, step, view)


def _remedy(step: Step) -> str:
    """Say what to pass instead."""
    cut = find_cut(step.losses, parallel=step.parallel)
    general = "use source='auto' (method 'ntkmtl-auto') or source='exact', right for any graph"
    if not cut.clean or not cut.targets:
        return general
    return (
        "leave features out, and the tensors that cut every path are found "
        f"({', '.join(sorted({node.name() for node, _ in cut.targets}))}); or {general}"
    )


def _through_cut(core: Core, step: Step, counts: Tensor | None) -> BalanceResult:
    """Part the graph where its losses say."""
    options = core.options
    if step.ranks is not None and _missing_somewhere(step):
        raise ValueError(
            "one of the processes has no label for some task in this batch, so what its losses "
            "share cannot be compared with the others': name the shared part by features=z, or "
            "use source='exact' or 'auto' with Balancer(..., shared=list of shared parameters)"
        )
    batch = _batch(step)
    cut = find_cut(step.losses, batch=batch, parallel=step.parallel)
    connected = cut.connected
    step.alone = [step.local[i] for i in range(cut.tasks) if i not in connected]
    if not connected:
        return _nothing_shared(core, step)
    shared = cut.shared if options.shared is None else trainable_now(options.shared)
    gradients = None
    if cut.opaque and options.source in ("exact", "auto"):
        keep = may_keep(options, shared, step, options.needs_gramian)
        shared, gradients = touched_by_two(step, shared, keep=keep)
    if not shared and options.source in ("exact", "auto") and cut.hides_parameters:
        raise ValueError(HIDDEN)
    if not shared and (not cut.targets or options.source in ("exact", "auto")):
        return _nothing_shared(core, step)
    source = options.source
    if not cut.clean:
        if source in ("representation", "probe"):
            raise ValueError(
                f"{describe_bypass(cut, step.local_names)}, so that its kernel with respect to the "
                "representation means nothing; use source='auto' (method 'ntkmtl-auto') or "
                "source='exact', which are right for any graph, or name features=z that every "
                "path passes"
            )
        return _from_losses(core, step, shared, gradients=gradients)
    if cut.opaque and source in ("exact", "auto"):
        return _from_losses(core, step, shared, gradients=gradients)
    n = options.minibatches
    known = batch is not None or options.batch_dim is not None
    if n > 1 and source == "exact" and step.samples is not None:
        return _from_losses(core, step, shared)
    if n > 1 and not known:
        n = _one_minibatch(core)
    view = FoundView(options, step, cut, n, counts, core.memory.verified)
    if options.ema or source == "auto":
        at = [step.present[i] for i in step.local]
        parts = zip(at, cut.signature, strict=True)
        _auto.begin_anew(core, {i: _signature(part) for i, part in parts})
    return _through_view(core, step, view)


def _signature(part: tuple[object, ...]) -> str:
    """Return a task's operations on the cut; sizes of batches may differ from step to step."""
    return ",".join(str(entry[0]) if isinstance(entry, tuple) else str(entry) for entry in part)


def _batch(step: Step) -> int | None:
    """Return the number of samples, where losses of single samples tell it of all tasks alike."""
    if step.samples is None:
        return None
    sizes = {s.count for s in step.samples}
    return sizes.pop() if len(sizes) == 1 else None


def _one_minibatch(core: Core) -> int:
    """Do without mini-batches, where nothing tells which dimension holds the samples."""
    options, memory = core.options, core.memory
    if options.requires != "eigenvalues" and options.weighting.requires_cross_terms:
        raise ValueError(
            f"{options.method} compares {options.minibatches} mini-batches, and the losses do not "
            "tell the samples apart: pass losses of single samples, of shape (B,), before their "
            "mean is taken, or Balancer(..., batch_dim=0), or features=z"
        )
    if "minibatches" not in memory.warned:
        memory.warned.add("minibatches")
        warn(
            f"the {options.minibatches} mini-batches of {options.method} need to know where the "
            "samples are: pass losses of single samples, of shape (B,), or "
            "Balancer(..., batch_dim=0), or features=z. The whole batch is taken as one mini-batch "
            "(minibatches=1 says so)"
        )
    return 1


def _nothing_shared(core: Core, step: Step) -> BalanceResult:
    """Give tasks that share nothing that is trained the weight 1."""
    memory = core.memory
    weights = prefer(core, torch.ones(len(step.present), dtype=torch.float64), step)
    known = memory.weights
    if len(step.present) == 1 and known is not None and not bool(known[step.index].isnan().any()):
        weights = known[step.index]
    elif "shared" not in memory.warned and step.total > 1:
        memory.warned.add("shared")
        one = len(step.present) == 1
        warn(
            "one loss alone does not tell what it shares with others, so its weight is 1: where "
            "tasks take turns, name the shared part by Balancer(..., shared=list of parameters) or "
            "features=z"
            if one
            else "the losses share no parameter that is trained (is the shared part frozen, or its "
            "output detached?): every weight is 1"
        )
    return _weigh_heads(core, step, weights)


def _weigh_heads(core: Core, step: Step, weights: Tensor) -> BalanceResult:
    """Fill ``.grad`` where all parameters are heads', as far as the losses tell."""
    step.bring()
    unknown = step.total > 1 and len(step.present) == 1
    weighted = core.options.weight_heads or unknown
    ordinary(core, step, weights if weighted else torch.ones_like(weights))
    return step.result(weights)


def _from_losses(
    core: Core,
    step: Step,
    shared: list[Tensor],
    *,
    hooked: bool | None = None,
    gradients: list[Tensor] | None = None,
) -> BalanceResult:
    """Take the kernel of the shared parameters, from the losses themselves."""
    if not shared:
        return _nothing_shared(core, step)
    n = core.options.minibatches
    if n > 1 and step.samples is None:
        n = _one_minibatch(core)
    way = ParameterStep(core, step, shared, minibatches=n, hooked=hooked, gradients=gradients)
    if step.scaled or step.parallel:
        result = way.run()
    else:
        with undone_if_not_finite(step):  # gradients of heads are not looked at before
            result = way.run()
    if core.options.source == "auto":
        _auto.note_exact(core, step)
    return result


def _through_view(core: Core, step: Step, view: View) -> BalanceResult:
    """Take the kernel through a representation that carries every gradient."""
    options = core.options
    if options.source != "auto":
        return KernelStep(core, step, view, options.source).run()
    if not _auto.exact_due(core, step):
        return _free_step(core, step, view)
    if options.probe is not None and isinstance(view, NamedView) and _auto.rare(core, step):
        return KernelStep(core, step, view, "probe").run()
    inner = KernelStep(core, step, view, "exact")
    if not _auto.rare(core, step) or (view.separate and options.needs_gramian):
        result = inner.run()
    else:
        result = _exact_and_free(core, step, view, inner)
    _auto.note_exact(core, step)
    return result


def _exact_and_free(core: Core, step: Step, view: View, inner: KernelStep) -> BalanceResult:
    """Make both kernels, and learn the factor between them."""
    gradients, heads = inner.differentiate()
    free = view.kernel(gradients, "blockwise", full=False, ranks=step.ranks, layer=None)
    kernel, jacobian = inner.kernel(gradients)
    kernel = to_cpu(kernel, step)
    _auto.note_ratio(core, step, kernel, free)
    weights, eigenvalues = observe(core, kernel, step)
    inner.finish(gradients, heads, weights, jacobian)
    return step.result(weights, eigenvalues)


def _free_step(core: Core, step: Step, view: View) -> BalanceResult:
    """Look at the representation alone, times the factors of the last exact kernels."""
    inner = KernelStep(core, step, view, "representation")
    gradients, heads = inner.differentiate()
    kernel, _ = inner.kernel(gradients)
    kernel = _auto.corrected(core, step, to_cpu(kernel, step))
    weights, eigenvalues = observe(core, kernel, step)
    inner.finish(gradients, heads, weights, None)
    return step.result(weights, eigenvalues)
