"""The kernel that a recorder is shown, made beside the step's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._autograd import (
    TaskGradients,
    feature_gradients,
    path_around,
    vjp,
)
from ntkmtl.kernel._features import Features, FeaturesLike
from ntkmtl.kernel._partition import require_counts
from ntkmtl.kernel._pooling import Pooling
from ntkmtl.kernel._sources import (
    cut_graph,
    exact_kernel,
    representation_kernel,
    rows_through_features,
    shared_parameters,
    split_batch,
)

if TYPE_CHECKING:
    from ntkmtl.analysis import Recorder
    from ntkmtl.balance._balancer import Balancer
    from ntkmtl.balance._step import Step

__all__ = ["recorded_kernel"]


def recorded_kernel(
    balancer: Balancer,
    recorder: Recorder,
    step: Step,
    features: FeaturesLike | None,
    counts: Tensor | None,
) -> ExtendedNTK | None:
    """Return the kernel of this step's tasks with all its blocks, and keep the graph.

    It is made for the recorder alone, so that a training with one takes the very steps of a
    training without, whatever the method reads and how often.

    Args:
        balancer: Whose options count where the recorder leaves them open.
        recorder: What is to be recorded.
        step: What is known of this call.
        features: The representation, as the user gave it.
        counts: Labels per task and sample.

    Returns:
        float64 on the CPU, diagonal blocks only where each task has its own representation; None
        where neither features nor shared parameters are known, in several processes, or in a
        process without labels for some of the tasks.

    Raises:
        ValueError: The features do not part the graph, or ``counts`` does not fit the batch.
    """
    if step.ranks is not None or len(step.local) < len(step.present):
        return None
    if features is None:
        if balancer.shared is None:
            return None
        return _whole_batch(step, list(balancer.shared))
    cut = Features.of(features, step.names, balancer.batch_dim).select(step.present)
    cut, graph = cut_graph(step.losses, cut, step.local_names)
    minibatches = min(recorder.minibatches or balancer.minibatches, *cut.batches)
    if counts is not None and not cut.uneven:
        require_counts(counts, step.total, cut.batch)
        counts = counts[step.index.to(counts.device)]
    gradients: TaskGradients = feature_gradients(step.losses, cut, graph, heads=False, retain=True)
    partition = split_batch(cut, minibatches, counts)
    source, pooling = _own_kernel(balancer, separate=cut.separate)
    if (recorder.source or source) == "representation":
        kernel = representation_kernel(gradients, cut, partition, recorder.pooling or pooling)
        return _on_cpu(kernel, step)
    found = shared_parameters(cut) if balancer.shared is None else balancer.shared
    parameters = [p for p in found if p.requires_grad]
    if path_around(graph, cut):
        # Rows of z do not carry all of the gradient, and there are no mini-batches without them.
        return _whole_batch(step, parameters)
    rows = rows_through_features(gradients, cut, parameters, partition, release=False)
    kernel, _ = exact_kernel(rows, len(step.losses), partition.shares, full=True, keep=False)
    return _on_cpu(kernel, step)


def _own_kernel(balancer: Balancer, *, separate: bool) -> tuple[str, Pooling]:
    """Return source and pooling of what is recorded where the recorder leaves them open."""
    if balancer.weighting.reads == "losses":
        return "representation", "pooled"
    if balancer.source == "auto" or balancer.choice is not None:
        # What the first step is recorded with, before it settles on a source, so that all of a
        # training is of one kind.
        return "representation", "pooled" if separate else "blockwise"
    if balancer.source == "probe":
        return "representation", balancer.pooling
    return balancer.source, balancer.pooling


def _whole_batch(step: Step, parameters: Sequence[Tensor]) -> ExtendedNTK:
    kernel, _ = exact_kernel(
        lambda task: vjp((step.losses[task],), parameters, None)[None],
        len(step.losses),
        torch.ones(1, 1, dtype=torch.float64),
        full=True,
        keep=False,
    )
    return _on_cpu(kernel, step)


def _on_cpu(kernel: ExtendedNTK, step: Step) -> ExtendedNTK:
    kernel = kernel.cpu()
    return kernel if step.scale == 1.0 else kernel / step.scale**2
