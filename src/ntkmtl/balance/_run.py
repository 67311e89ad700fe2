"""One call of ``backward``: reuse weights, divide the graph, or start from the losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ntkmtl._warnings import warn
from ntkmtl.balance import _auto
from ntkmtl.balance._core import Core
from ntkmtl.balance._fill import checked, ordinary, repeated, undone_if_not_finite
from ntkmtl.balance._found_view import FoundView, describe_bypass, shows_samples
from ntkmtl.balance._kernel_step import KernelStep, may_keep
from ntkmtl.balance._named_view import NamedView
from ntkmtl.balance._parameter_step import ParameterStep, known_shared, touched_by_two
from ntkmtl.balance._step import BalanceResult, Step
from ntkmtl.balance._views import View, trainable_now
from ntkmtl.balance._weigh import (
    HIDDEN,
    keep_held,
    observe,
    prefer,
    require_finite_weights,
    to_cpu,
    weigh,
)
from ntkmtl.graph import Cut, FeaturesLike, find_cut

NESTED = (
    "the tasks share a nested tensor, whose gradients have no single shape to take a kernel of: "
    "use source='auto' (method 'ntkmtl-auto') or source='exact', which differentiate the losses "
    "themselves, or name features=z, a padded tensor that every path passes"
)

__all__ = ["run"]


def run(
    core: Core, step: Step, features: FeaturesLike | None, counts: Tensor | None
) -> BalanceResult:
    """Weigh the losses of a step and fill ``.grad``.

    Args:
        core: The Balancer's options and state.
        step: The step.
        features: The representation, if the user names it.
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
    """Return the weights of an earlier step if this step reuses them, else None."""
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
    """Whether some process has no label for a task; all processes get the same answer."""
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
    """Fill ``.grad`` with given weights."""
    options = core.options
    plainly = options.weight_heads and not options.published_ntkmtl
    if plainly and (features is None or options.source == "auto" or core.held is not None):
        repeated(core, step, weights)
        return step.result(weights)
    if features is not None:
        view = NamedView(options, step, features, counts)
        if not view.bypass:
            return KernelStep(core, step, view, options.source).run(weights)
        return _repeated_apart(core, step, view.shared, weights, hooked=True)
    if options.shared is not None:
        shared = trainable_now(options.shared)
    else:
        shared = _known_shared(core, step, find_cut(step.losses, parallel=step.parallel))
    if not shared:
        return _weigh_heads(core, step, weights)
    return _repeated_apart(core, step, shared, weights)


def _known_shared(core: Core, step: Step, cut: Cut) -> list[Tensor]:
    """Return the shared parameters where no exact kernel tells them."""
    if not (cut.opaque or cut.joined):
        return cut.shared
    shared, _, unknown = known_shared(step, cut.shared, core.reached)
    if unknown and step.ranks is None:  # processes may have labels for different tasks here
        shared, _ = touched_by_two(step, cut.shared, core.reached, keep=False)
    return shared


def _repeated_apart(
    core: Core, step: Step, shared: list[Tensor], weights: Tensor, *, hooked: bool | None = None
) -> BalanceResult:
    """Fill ``.grad`` of heads and shared parameters with given weights, without a kernel."""
    way = ParameterStep(core, step, shared, minibatches=1, hooked=hooked)
    if step.scaled or step.late:  # the scaler checks all gradients, or they are checked before
        return way.run(weights)
    with undone_if_not_finite(step):
        return way.run(weights)


def _through_features(
    core: Core, step: Step, features: FeaturesLike, counts: Tensor | None
) -> BalanceResult:
    """Run the step with the graph divided at the user's features."""
    options = core.options
    view = NamedView(options, step, features, counts)
    if options.source != "representation":
        view.bypass = view.bypass or view.shared_above
    if view.bypass and options.source in ("exact", "auto"):
        # Some gradient does not pass through z: differentiate the losses themselves.
        if view.partition.minibatches > 1 and step.samples is None:
            raise ValueError(
                f"{view.bypass}, so the exact kernel of {view.partition.minibatches} mini-batches "
                "cannot be had through them; give losses of single samples, or use minibatches=1"
            )
        return _from_losses(core, step, view.shared, hooked=True)
    if _combines_around(core, view):
        return _from_losses(core, step, view.shared)
    if view.bypass:
        raise ValueError(
            f"{view.bypass}, so that its kernel with respect to them means nothing; {_remedy(step)}"
        )
    return _through_view(core, step, view)


def _combines_around(core: Core, view: View) -> bool:
    """Whether gradients are combined entry by entry, and some input's go around the view."""
    options = core.options
    return view.skips and options.requires == "jacobian" and options.source in ("exact", "auto")


def _remedy(step: Step) -> str:
    """Return advice on what to pass instead."""
    cut = find_cut(step.losses, parallel=step.parallel)
    general = "use source='auto' (method 'ntkmtl-auto') or source='exact', right for any graph"
    if not cut.clean or not cut.targets:
        return general
    return (
        "leave features out, and the tensors that cut every path are found "
        f"({', '.join(sorted({node.name() for node, _ in cut.targets}))}); or {general}"
    )


def _through_cut(core: Core, step: Step, counts: Tensor | None) -> BalanceResult:
    """Run the step with the graph divided at the cut found from the losses."""
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
        return _nothing_shared(core, step, cut.shared_inputs)
    shared = cut.shared if options.shared is None else trainable_now(options.shared)
    seen = _by_gradients(core, step, cut, shared)
    shared, gradients = (shared, None) if seen is None else seen
    if not shared and options.source in ("exact", "auto") and cut.hides_parameters:
        raise ValueError(HIDDEN)
    if not shared and not (cut.targets and cut.custom and options.source not in ("exact", "auto")):
        return _nothing_shared(core, step, cut.shared_inputs, joined=bool(cut.shared))
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
    if seen is not None:
        return _from_losses(core, step, shared, gradients=gradients)
    if cut.nested:
        if source in ("representation", "probe"):
            raise ValueError(NESTED)
        return _from_losses(core, step, shared)
    if _one_by_one(core, step, cut):
        return _from_losses(core, step, shared)
    n = options.minibatches
    known = options.batch_dim is not None or shows_samples(step, cut)
    if n > 1 and source == "exact" and step.samples is not None:
        return _from_losses(core, step, shared)
    if n > 1 and not known:
        n = _one_minibatch(core, step)
    view = FoundView(options, step, cut, n, counts, core.memory.verified)
    if not (options.weight_heads or source == "exact" or options.requires == "jacobian"):
        view.shared = shared if options.shared is not None else _known_shared(core, step, cut)
    if _combines_around(core, view):
        return _from_losses(core, step, shared)
    if options.ema or source == "auto":
        at = [step.present[i] for i in step.local]
        parts = zip(at, cut.signature, strict=True)
        _auto.clear_changed(core, {i: _signature(part) for i, part in parts})
    return _through_view(core, step, view)


def _one_by_one(core: Core, step: Step, cut: Cut) -> bool:
    """Whether a method combines gradients that only the losses themselves give, one by one."""
    options = core.options
    free = options.hooked is False or (options.hooked is None and not step.parallel)
    return cut.apart and options.requires == "jacobian" and options.source == "exact" and free


def _by_gradients(
    core: Core, step: Step, cut: Cut, candidates: list[Tensor]
) -> tuple[list[Tensor], list[Tensor] | None] | None:
    """Return the shared parameters where only gradients show them, and the gradients if kept.

    Returns:
        None if the cut is right. Of joined tensors this is found out once for each parameter.
    """
    exact = core.options.source in ("exact", "auto")
    if not (exact and candidates and (cut.opaque or cut.joined)):
        return None
    if not cut.opaque and known_shared(step, candidates, core.reached)[1]:
        return None
    keep = may_keep(core.options, candidates, step, core.options.needs_gramian)
    found = touched_by_two(step, candidates, core.reached, keep=keep)
    return None if not cut.opaque and len(found[0]) == len(candidates) else found


def _signature(part: tuple[object, ...]) -> str:
    """Return a task's operations on the cut, without shapes, as batch sizes may change."""
    return ",".join(str(entry[0]) if isinstance(entry, tuple) else str(entry) for entry in part)


def _batch(step: Step) -> int | None:
    """Return the number of samples if losses of single samples show the same for all tasks."""
    if step.samples is None:
        return None
    sizes = {s.count for s in step.samples}
    return sizes.pop() if len(sizes) == 1 else None


def _one_minibatch(core: Core, step: Step) -> int:
    """Warn that the whole batch counts as one mini-batch, as samples are not known; return 1."""
    options, memory = core.options, core.memory
    if step.samples is not None:
        sizes = [own.count for own in step.samples]
        remedy = (
            f"the losses of {sizes} samples do not show which dimension of the tensors that tasks "
            "share holds them: give each task as many as its tensors hold, with a mask, "
            "(values, mask), for those without a label"
        )
    else:
        remedy = (
            "pass losses of single samples, of shape (B,), before their mean is taken, or "
            "Balancer(..., batch_dim=0), or features=z"
        )
    if options.requires != "eigenvalues" and options.weighting.requires_cross_terms:
        raise ValueError(
            f"{options.method} compares {options.minibatches} mini-batches, and the losses do not "
            f"tell the samples apart: {remedy}"
        )
    if "minibatches" not in memory.warned:
        memory.warned.add("minibatches")
        warn(
            f"the {options.minibatches} mini-batches of {options.method} need to know where the "
            f"samples are: {remedy}. The whole batch is taken as one mini-batch (minibatches=1 "
            "says so)"
        )
    return 1


def _nothing_shared(
    core: Core, step: Step, inputs: Sequence[Tensor] = (), *, joined: bool = False
) -> BalanceResult:
    """Run a step of tasks that share no trained parameter, but maybe inputs: their weight is 1.

    Args:
        core: The Balancer's options and state.
        step: The step.
        inputs: What they share all the same.
        joined: Whether the graph shows shared parameters, and the gradients none.
    """
    memory = core.memory
    weights = prefer(core, torch.ones(len(step.present), dtype=torch.float64), step)
    known = memory.weights
    if len(step.present) == 1 and known is not None and not bool(known[step.index].isnan().any()):
        weights = known[step.index]
    elif joined:
        _warn_of_zeros(core)
    elif "shared" not in memory.warned and step.total > 1:
        memory.warned.add("shared")
        one = len(step.present) == 1
        warn(
            "one loss alone does not tell what it shares with others, so its weight is 1: where "
            "tasks take turns, name the shared part by Balancer(..., shared=list of parameters) or "
            "features=z"
            if one
            else f"the losses share no parameter that is trained ({_cause(inputs)}): every weight "
            "is 1"
        )
    return _weigh_heads(core, step, weights)


def _cause(inputs: Sequence[Tensor]) -> str:
    if not inputs:
        return "is the shared part frozen, or its output detached?"
    shapes = sorted({tuple(t.shape) for t in inputs})
    return (
        f"only tensors of shape {', '.join(map(str, shapes))} that require a gradient and are not "
        "nn.Parameter, which count as inputs here: make them nn.Parameters if they are trained"
    )


def _warn_of_zeros(core: Core) -> None:
    if "zeros" not in core.memory.warned:
        core.memory.warned.add("zeros")
        warn(
            "no parameter has had a gradient other than zero from two losses, and as the outputs "
            "of the heads are joined, or compiled together, only gradients tell what the losses "
            "share: nothing, or a head that starts at zero sends none to the layers below it yet. "
            "Every weight is 1 until they tell; Balancer(..., shared=list of parameters) tells "
            "from the first step"
        )


def _weigh_heads(core: Core, step: Step, weights: Tensor) -> BalanceResult:
    """Fill ``.grad`` where the losses show no shared parameter."""
    unknown = step.total > 1 and len(step.present) == 1
    weighted = core.options.weight_heads or unknown
    repeated(core, step, weights if weighted else torch.ones_like(weights))
    return step.result(weights)


def _from_losses(
    core: Core,
    step: Step,
    shared: list[Tensor],
    *,
    hooked: bool | None = None,
    gradients: list[Tensor] | None = None,
) -> BalanceResult:
    """Run the step with the exact kernel, differentiated from the losses themselves."""
    if not shared:
        return _nothing_shared(core, step)
    n = core.options.minibatches
    if n > 1 and step.samples is None:
        n = _one_minibatch(core, step)
    way = ParameterStep(core, step, shared, minibatches=n, hooked=hooked, gradients=gradients)
    with checked(step):  # gradients of heads are not looked at before
        result = way.run()
    if core.options.source == "auto":
        _auto.note_exact(core, step)
    return result


def _through_view(core: Core, step: Step, view: View) -> BalanceResult:
    """Run the step through a representation that every gradient passes through."""
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
    """Compute the exact and the free kernel, and update the ratio of their eigenvalues."""
    gradients, heads = inner.differentiate()
    free = view.kernel(gradients, "blockwise", full=False, ranks=step.ranks, layer=None)
    kernel, jacobian = inner.kernel(gradients)
    kernel = to_cpu(kernel, step)
    _auto.note_ratio(core, step, kernel, free)
    weights, eigenvalues = observe(core, kernel, step)
    inner.finish(gradients, heads, weights, jacobian)
    return step.result(weights, eigenvalues)


def _free_step(core: Core, step: Step, view: View) -> BalanceResult:
    """Run the step with the free kernel, multiplied by the average ratios."""
    inner = KernelStep(core, step, view, "representation")
    gradients, heads = inner.differentiate()
    kernel, _ = inner.kernel(gradients)
    kernel = _auto.correct(core, step, to_cpu(kernel, step))
    weights, eigenvalues = observe(core, kernel, step)
    inner.finish(gradients, heads, weights, None)
    return step.result(weights, eigenvalues)
