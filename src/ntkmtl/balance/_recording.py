"""Extra kernel computed for the recorder, independent of the kernel that the method reads."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkmtl._warnings import warn
from ntkmtl.balance._core import Core
from ntkmtl.balance._found_view import FoundView, shows_samples
from ntkmtl.balance._named_view import NamedView
from ntkmtl.balance._options import Options
from ntkmtl.balance._parameter_step import ParameterStep, touched_by_two
from ntkmtl.balance._snapshot import StepRecorder
from ntkmtl.balance._step import Step
from ntkmtl.balance._views import trainable_now
from ntkmtl.graph import FeaturesLike, find_cut, vjp
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._pooling import Pooling
from ntkmtl.kernel._sources import exact_kernel

__all__ = ["recorded_kernel"]


def recorded_kernel(
    core: Core,
    recorder: StepRecorder,
    step: Step,
    features: FeaturesLike | None,
    counts: Tensor | None,
) -> ExtendedNTK | None:
    """Return the kernel of this step's tasks with all its blocks. The graph is kept.

    The method does not read this kernel, so a run with a recorder takes exactly the same steps as a
    run without one.

    Args:
        core: The Balancer's options and state; options apply where the recorder has None.
        recorder: The recorder.
        step: The step.
        features: The representation, if the user names it.
        counts: Labels per task and sample.

    Returns:
        float64 on the CPU; with diagonal blocks only if each task has its own representation. None
        if tasks share nothing, if a gradient is not finite, as a gradient scaler expects in its
        first steps, or in distributed training.

    Raises:
        ValueError: The features do not lie between trunk and losses, or ``counts`` does not fit the
            batch.
    """
    if step.ranks is not None or len(step.local) < len(step.present):
        return None
    options = core.options
    source, pooling = _own_kernel(options)
    source = recorder.source or source
    pooling = recorder.pooling or pooling
    if features is None:
        return _of_found_cut(core, recorder, step, source, pooling)
    asked = recorder.minibatches or options.minibatches
    sizes = NamedView(options, step, features, None, 1).cut.batches
    view = NamedView(options, step, features, counts, min(asked, *sizes))
    gradients = view.differentiate(heads=False, retain=True)
    if source == "representation" and not view.bypass:
        full = not view.separate
        kernel = view.kernel(gradients, pooling, full=full, ranks=None, layer=None)
        return _on_cpu(kernel, step)
    if view.bypass:
        # Some gradient does not pass z, so there are no rows to split into mini-batches.
        return _whole_batch(step, view.shared)
    rows = view.rows(gradients, view.shared, release=False)
    kernel, _ = exact_kernel(rows, len(step.losses), view.partition.shares, full=True, keep=False)
    return _on_cpu(kernel, step)


def _of_found_cut(
    core: Core, recorder: StepRecorder, step: Step, source: str, pooling: Pooling
) -> ExtendedNTK | None:
    """Return the kernel with respect to the cut or to the shared parameters."""
    options = core.options
    cut = find_cut(step.losses, parallel=step.parallel)
    named = options.shared is not None and recorder.source != "representation"
    shared = trainable_now(options.shared) if named and options.shared is not None else cut.shared
    if not shared:
        return None
    n = _minibatches(core, recorder, step)
    through = cut.clean and not cut.nested and pooling == "blockwise"
    if named or source == "exact" or not through:
        if not named and (cut.opaque or cut.joined):
            # A copy, as the run must not depend on what is recorded.
            shared, _ = touched_by_two(step, shared, dict(core.reached), keep=False)
        if n > 1 and step.samples is not None:
            way = ParameterStep(core, step, shared, minibatches=n)
            return _on_cpu(way.kernel(keep=False, full=True)[0], step)
        return _whole_batch(step, shared)
    view = FoundView(options, step, cut, n if shows_samples(step, cut) else 1, None)
    gradients = view.differentiate(heads=False, retain=True)
    full = not view.separate
    return _on_cpu(view.kernel(gradients, "blockwise", full=full, ranks=None, layer=None), step)


def _minibatches(core: Core, recorder: StepRecorder, step: Step) -> int:
    """Return the recorded kernel's n; 1 if samples are not known."""
    asked = recorder.minibatches or core.options.minibatches
    if step.samples is not None:
        return min(asked, *(s.count for s in step.samples))
    if asked > 1 and recorder.minibatches and "recorded" not in core.memory.warned:
        core.memory.warned.add("recorded")
        warn(
            f"the recorder's {asked} mini-batches need features=z, or losses of single samples, of "
            "shape (B,); the whole batch is recorded as one mini-batch"
        )
    return 1


def _own_kernel(options: Options) -> tuple[str, Pooling]:
    """Return the source and pooling to record if the recorder does not set them."""
    if options.requires == "losses" or options.source == "auto":
        return "representation", "blockwise"
    if options.source == "probe":
        return "representation", options.pooling
    return options.source, options.pooling


def _whole_batch(step: Step, parameters: list[Tensor]) -> ExtendedNTK | None:
    begin = step.begin()
    kernel, _ = exact_kernel(
        lambda task: vjp(begin[task][0], parameters, begin[task][1])[None],
        len(step.losses),
        torch.ones(1, 1, dtype=torch.float64),
        full=True,
        keep=False,
    )
    return _on_cpu(kernel, step)


def _on_cpu(kernel: ExtendedNTK, step: Step) -> ExtendedNTK | None:
    kernel = kernel.cpu()
    known = kernel.values if kernel.has_all_blocks else kernel.blocks
    if not bool(known.isfinite().all()):
        return None
    return kernel if step.scale == 1.0 else kernel / step.scale**2
