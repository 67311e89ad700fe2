"""A view of a step's graph, divided at features that the user names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ntkmtl.balance._options import Options
from ntkmtl.balance._step import Step
from ntkmtl.balance._views import (
    parameters_only,
    require_means,
    trainable_now,
    weighted_sum,
)
from ntkmtl.graph import (
    Features,
    FeaturesLike,
    HeadGraph,
    TaskGradients,
    feature_gradients,
    has_hooks,
    path_around,
    unretained,
)
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._partition import Partition, require_counts
from ntkmtl.kernel._pooling import Pooling
from ntkmtl.kernel._ranks import Ranks
from ntkmtl.kernel._sources import (
    cut_graph,
    representation_kernel,
    rows_through_features,
    shared_parameters,
    split_batch,
)

__all__ = ["NamedView"]


class NamedView:
    """The graph of a step, divided at features that the user names.

    Args:
        options: The Balancer's options.
        step: The step.
        features: The representation, as the user passed it.
        counts: Labels per task and sample.
        minibatches: The paper's n; None for the Balancer's.

    Raises:
        ValueError: The features do not lie between trunk and losses, or cannot be split into
            mini-batches.
    """

    def __init__(
        self,
        options: Options,
        step: Step,
        features: FeaturesLike,
        counts: Tensor | None,
        minibatches: int | None = None,
    ) -> None:
        self.options = options
        self.step = step
        n = options.minibatches if minibatches is None else minibatches
        absent = set(range(step.total)) - set(step.present)
        whole = Features.of(features, step.names, options.batch_dim or 0, absent)
        local = whole.select([step.present[i] for i in step.local])
        self.begin = step.begin()
        cut, graph = cut_graph(self.begin, local, step.local_names)
        if cut is not local:
            whole = cut  # losses cross the views, which therefore count as one tensor
        self.whole, self.cut, self.graph = whole, cut, graph
        self.bypass, self.skips = path_around(graph, cut, step.local_names)
        self.separate = cut.separate
        if n > 1 and options.batch_dim is None:
            _require_plain_layout(cut)
        if counts is not None and not whole.uneven:
            require_counts(counts, step.total, cut.batch)
            counts = counts[step.index.to(counts.device)]
        require_means(step, counts, n)
        split = whole.select(step.present)
        published = options.preset == "published"
        masks = None if counts is not None or n == 1 else _masks(step, split, graph)
        if masks is None:
            self.partition = split_batch(split, n, counts, published=published)
        else:
            sizes = split.sizes(len(masks))
            self.partition = Partition.masked(sizes, n, masks, published=published)

    @property
    def outputs(self) -> int:
        """Number of tensors where the trunk's backward pass starts."""
        return len(self.cut.outputs)

    @cached_property
    def shared(self) -> list[Tensor]:
        """The shared parameters: those that the user named, else those below the features."""
        own = self.options.shared
        return parameters_only(self.below) if own is None else trainable_now(own)

    @property
    def shared_above(self) -> str:
        """Which parameter in ``shared`` is reached around the features, in words; "" if none."""
        named = {id(p) for p in self.options.shared or ()}
        for name, head in zip(self.step.local_names, self.graph.parameters, strict=True):
            for parameter in head:
                if id(parameter) in named:
                    return (
                        f"shared= names a parameter of shape {tuple(parameter.shape)} that the "
                        f"loss of task {name} reaches around the features"
                    )
        return ""

    @cached_property
    def below(self) -> list[Tensor]:
        """All leaves below the features."""
        return shared_parameters(self.cut)

    @property
    def unweighted(self) -> list[Tensor]:
        """None: all that is below the features is the shared part, as the user says."""
        return []

    @property
    def hooks(self) -> bool:
        """Whether the heads' parameters or the features have hooks."""
        # A hook on the features would be applied twice: to the gradients read here, and to those
        # of the trunk's backward pass.
        return any(has_hooks(p) for head in self.graph.parameters for p in head) or any(
            map(has_hooks, self.cut.tensors)
        )

    def differentiate(self, *, heads: bool, retain: bool, live: bool = False) -> TaskGradients:
        """Return gradients with respect to the features and, with ``heads``, to the heads."""
        with unretained(self.cut.tensors):
            return feature_gradients(
                self.begin, self.cut, self.graph, heads=heads, retain=retain, differentiable=live
            )

    def known(self, gradients: TaskGradients) -> TaskGradients:
        """Return the gradients of all present tasks, zeros for those without a label here."""
        return _with_zeros(gradients, self.whole, self.step)

    @property
    def everywhere(self) -> Features:
        """The features of all present tasks."""
        return self.whole.select(self.step.present)

    def kernel(
        self,
        gradients: TaskGradients,
        pooling: Pooling,
        *,
        full: bool,
        ranks: Ranks | None,
        layer: tuple[Tensor, float] | None,
    ) -> ExtendedNTK:
        """Return the kernel with respect to the features."""
        inputs, constant = (None, 0.0) if layer is None else layer
        return representation_kernel(
            self.known(gradients),
            self.everywhere,
            self.partition,
            pooling,
            inputs=inputs,
            constant=constant,
            full=full,
            ranks=ranks,
        )

    def rows(
        self, gradients: TaskGradients, parameters: Sequence[Tensor], *, release: bool
    ) -> Callable[[int], Tensor]:
        """Return a function from a task to its n gradients with respect to parameters."""
        inner = rows_through_features(
            self.known(gradients), self.everywhere, parameters, self.partition, release=release
        )

        def rows(task: int) -> Tensor:
            with unretained(self.cut.outputs):
                return inner(task)

        return rows

    def combined(
        self, gradients: TaskGradients, weights: Sequence[float]
    ) -> tuple[Sequence[Tensor], list[Tensor]]:
        """Return the features and the weighted sums of the tasks' gradients there."""
        cut = self.cut
        if cut.separate:
            own = gradients.features[0]
            return cut.outputs, [g * w for g, w in zip(own, weights, strict=True)]
        return cut.outputs, [
            weighted_sum(gradients.stacked(f), weights) for f in range(len(gradients.features))
        ]


def _require_plain_layout(cut: Features) -> None:
    """Raise where the features' shape does not tell which dimension holds the samples."""
    for tensor in cut.tensors:
        if tensor.ndim == 3 or (tensor.ndim == 2 and tensor.shape[0] == 1 < tensor.shape[1]):
            raise ValueError(
                f"features of shape {tuple(tensor.shape)} do not tell which dimension holds the "
                "samples, as recurrent networks and transformers put them second by default: say "
                "Balancer(..., batch_dim=1), or batch_dim=0, or use minibatches=1"
            )


def _masks(step: Step, features: Features, graph: HeadGraph) -> list[Tensor | None] | None:
    """Return which samples of each present task have a label; None if all have, or nothing tells.

    Raises:
        ValueError: The features hold another number of samples.
    """
    if step.masks is None:
        return None
    masks: list[Tensor | None] = [None] * len(step.present)
    sizes = features.sizes(len(masks))
    known = zip(step.local, step.local_names, step.masks, graph.borders, strict=True)
    for position, name, mask, border in known:
        if mask is None or not border:  # a task that does not read the features has other samples
            continue
        masks[position] = mask
        if len(mask) != sizes[position]:
            raise ValueError(
                f"the mask of task {name} tells of {len(mask)} samples, and the features hold "
                f"{sizes[position]} along dimension {features.batch_dim}: set batch_dim, take the "
                "mean over all but the samples, or use minibatches=1"
            )
    return masks


def _with_zeros(gradients: TaskGradients, features: Features, step: Step) -> TaskGradients:
    """Add zero gradients for tasks that have labels in other processes only."""
    if len(step.local) == len(step.present):
        return gradients
    place = {position: i for i, position in enumerate(step.local)}
    filled: list[list[Tensor]] = []
    for f, per_task in enumerate(gradients.features):
        row = []
        for position, task in enumerate(step.present):
            if position in place:
                row.append(per_task[place[position]])
            else:
                like = features.tensors[task if features.per_task else f]
                row.append(torch.zeros_like(like))
        filled.append(row)
    return TaskGradients(filled, gradients.heads)
