"""A view of a step's graph, divided at the cut that is found from the losses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ntkmtl.balance._options import Options
from ntkmtl.balance._step import Step
from ntkmtl.balance._views import HALF, require_means, trainable_now, weighted_sum
from ntkmtl.graph import (
    Cut,
    TaskGradients,
    as_real,
    crossing_gradients,
    has_hooks,
    leaves,
    shape_of,
    starts,
    task_gradients,
    vjp,
    zeros_of,
)
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._partition import Partition, require_counts, require_even
from ntkmtl.kernel._pooling import Pooling, gram, kernel_from_rows
from ntkmtl.kernel._ranks import Ranks

__all__ = ["FoundView", "describe_bypass", "shows_samples"]


class FoundView:
    """The graph of a step, divided at the cut that is found from the losses.

    Args:
        options: The Balancer's options.
        step: The step.
        cut: The cut of the local losses.
        minibatches: The paper's n.
        counts: Labels per task and sample.
        verified: Signatures of cuts whose sample dimension was checked before; new ones are added.

    Raises:
        ValueError: The sample dimension of a tensor of the cut cannot be found, or is wrong.
    """

    def __init__(
        self,
        options: Options,
        step: Step,
        cut: Cut,
        minibatches: int,
        counts: Tensor | None,
        verified: set[str] | None = None,
    ) -> None:
        self.options = options
        self.step = step
        self.cut = cut
        self.begin = step.begin()
        self.bypass = describe_bypass(cut, step.local_names)
        self.separate = cut.separate
        self.skips = cut.skips
        self._dims: dict[int, int] = {}
        known = step.samples is not None or options.batch_dim is not None
        if minibatches == 1 and (options.pooling == "blockwise" or not known):
            self.partition = Partition.of(1, 1)  # no need to find the samples
        else:
            self.partition = self._split(minibatches, counts)
            if step.samples is not None and verified is not None:
                self._verify_samples(verified)

    @property
    def outputs(self) -> int:
        """Number of tensors of the cut."""
        return len(self.cut.targets)

    @cached_property
    def shared(self) -> list[Tensor]:
        """The shared parameters: those that the user named, else those that two tasks reach."""
        own = self.options.shared
        return self.cut.shared if own is None else trainable_now(own)

    @cached_property
    def below(self) -> list[Tensor]:
        """All leaves below the cut."""
        return list(leaves([GradientEdge(*edge) for edge in self.cut.targets])[0])

    @property
    def unweighted(self) -> list[Tensor]:
        """Inputs, and parameters of heads, below the cut, which count as leaves of heads."""
        shared = {id(p) for p in self.shared}
        return [leaf for leaf in self.below if id(leaf) not in shared]

    @property
    def heads(self) -> list[list[Tensor]]:
        """For each task the leaves that only it reaches."""
        return self.cut.own_leaves

    @property
    def hooks(self) -> bool:
        """Whether the heads' parameters have hooks."""
        return any(has_hooks(p) for head in self.heads for p in head)

    def differentiate(self, *, heads: bool, retain: bool) -> TaskGradients:
        """Return gradients over the edges of the cut and, with ``heads``, of the heads."""
        parameters = self.heads if heads else None
        own, flat = crossing_gradients(self.begin, self.cut, parameters, retain=retain)
        features: list[list[Tensor | None]] = [
            [per_task.get(f) for per_task in own] for f in range(len(self.cut.targets))
        ]
        for edge, per_task in zip(self.cut.targets, features, strict=True):
            if all(g is None for g in per_task):  # custom functions return None for zero
                per_task[0] = zeros_of(edge)
        if parameters is None:
            return TaskGradients(features)  # type: ignore[arg-type]
        rest = iter(flat)
        by_head = [[(p, g) for p in head if (g := next(rest)) is not None] for head in parameters]
        return TaskGradients(features, by_head)  # type: ignore[arg-type]

    def kernel(
        self,
        gradients: TaskGradients,
        pooling: Pooling,
        *,
        full: bool,
        ranks: Ranks | None,
        layer: tuple[Tensor, float] | None,
    ) -> ExtendedNTK:
        """Return the kernel of the local tasks with respect to the tensors of the cut."""
        if pooling == "kernel":
            raise ValueError(
                "pooling='kernel' joins gradients with the features themselves: pass features=z, "
                "the tensor that the heads read, or give last_layer"
            )
        if ranks is not None and pooling != "blockwise":
            raise ValueError(
                f"pooling={pooling!r} joins samples of all processes, which needs features=z; name "
                "them, or use pooling='blockwise'"
            )
        kernel = self._local_kernel(gradients, pooling, full)
        return kernel if ranks is None else ranks.blockwise(kernel)

    def _local_kernel(self, gradients: TaskGradients, pooling: Pooling, full: bool) -> ExtendedNTK:
        """Return the kernel of this process's mini-batches."""
        if self.partition.minibatches == 1 and pooling == "blockwise":
            return self._whole_batch(gradients, full)
        if len(self._dims) < len(self.cut.targets):
            raise ValueError(
                f"pooling={pooling!r} adds up the samples' gradients, and nothing tells which "
                "dimension holds the samples: pass losses of single samples, of shape (B,), or "
                "Balancer(..., batch_dim=0), or features=z"
            )
        kernels = [
            self._of_target(f, per_task, pooling, full)
            for f, per_task in enumerate(gradients.features)
        ]
        shares = self.partition.shares.expand(self.cut.tasks, -1)
        diagonal = pooling == "blockwise"
        if full:
            values = torch.stack([k.values for k in kernels]).sum(dim=0)
            return ExtendedNTK(values, shares=shares.to(values.device), diagonal=diagonal)
        blocks = torch.stack([k.blocks for k in kernels]).sum(dim=0)
        return ExtendedNTK(blocks=blocks, shares=shares.to(blocks.device), diagonal=diagonal)

    def _whole_batch(self, gradients: TaskGradients, full: bool) -> ExtendedNTK:
        """Return the kernel for n = 1: squared norms of the gradients, or their Gramian."""
        k = self.cut.tasks
        total: Tensor | None = None
        if not full and len(gradients.features) == 1 and self.partition.minibatches == 1:
            stacked = gradients.stacked(0)
            if isinstance(stacked, Tensor):
                flat = as_real(stacked).flatten(1)
                norms = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64)
                return ExtendedNTK(blocks=norms.square().view(k, 1, 1), diagonal=True)
        for per_task in gradients.features:
            rows = [None if g is None else as_real(g) for g in per_task]
            like = next(g for g in rows if g is not None)
            if full:
                matrix = torch.stack(
                    [torch.zeros_like(like) if g is None else g for g in rows]
                ).reshape(k, -1)
                part = gram(matrix.float() if matrix.dtype in HALF else matrix)
            else:
                zero = like.new_zeros((), dtype=torch.float64)
                norms = [zero if g is None else _norm(g) for g in rows]
                part = torch.stack(norms).square()
            total = part if total is None else total + part
        assert total is not None
        if full:
            return ExtendedNTK(total.view(k, 1, k, 1), diagonal=True)
        return ExtendedNTK(blocks=total.view(k, 1, 1), diagonal=True)

    def _of_target(
        self, f: int, per_task: Sequence[Tensor | None], pooling: Pooling, full: bool
    ) -> ExtendedNTK:
        like = next(g for g in per_task if g is not None)
        dim = self._dims[f]
        rows = [torch.zeros_like(like) if g is None else g for g in per_task]
        if dim == 0 and not self.partition.own and all(g is not None for g in per_task):
            stacked = TaskGradients([rows]).stacked(0)
            return kernel_from_rows(stacked, self.partition, pooling, full=full)
        moved = [row.movedim(dim, 0) for row in rows]
        if not self.partition.own:
            return kernel_from_rows(moved, self.partition, pooling, full=full)
        blocks = []
        for i, (row, given) in enumerate(zip(moved, per_task, strict=True)):
            if given is None:
                n = self.partition.minibatches
                blocks.append(torch.zeros(1, n, n, dtype=torch.float64, device=row.device))
                continue
            part = self.partition.of_task(i)
            blocks.append(kernel_from_rows([row], part, pooling, full=False).blocks)
        return ExtendedNTK(blocks=torch.cat(blocks), diagonal=pooling == "blockwise")

    def _verify_samples(self, verified: set[str]) -> None:
        """Check once for each cut that rows of its tensors belong to samples.

        The gradient of the first half of a task's samples must be zero in the rows of the others.

        Raises:
            ValueError: It is not.
        """
        samples = self.step.samples
        assert samples is not None
        for task, own in enumerate(self.cut.crossings):
            key = str(self.cut.signature[task])
            count = samples[task].count
            if key in verified or count < 2 or not own:
                continue
            half = samples[task].values[: count // 2].sum()
            (start,) = starts([half])
            silent = True
            for target, gradient in task_gradients(start, task, self.cut).items():
                silent = silent and not bool(gradient.any())
                dim = self._dims[target]
                rest = gradient.narrow(dim, count // 2, count - count // 2)
                if bool(rest.any()):
                    raise ValueError(
                        f"dimension {dim} of a tensor of the cut, of shape "
                        f"{tuple(gradient.shape)}, does not hold the samples of task "
                        f"{self.step.local_names[task]}, or its head mixes them (batch norm, say): "
                        "set batch_dim, or use minibatches=1"
                    )
            if not silent:  # a head that starts at zero mixes no samples yet
                verified.add(key)

    def _split(self, minibatches: int, counts: Tensor | None) -> Partition:
        """Find the sample dimension of each tensor of the cut, and split the batch."""
        cut, options, step = self.cut, self.options, self.step
        found: dict[tuple[int, int | None], int] = {}
        batches: list[int | None] = [None] * cut.tasks
        for task, own in enumerate(cut.crossings):
            size = None if step.samples is None else step.samples[task].count
            for crossing in own:
                at = (crossing.target, size)
                if at not in found:
                    shape = shape_of(cut.targets[crossing.target])
                    dim = _sample_dim(shape, size, options.batch_dim)
                    self._dims[crossing.target] = dim
                    found[at] = -1 if shape is None else shape[dim]
                if batches[task] not in (None, found[at]):
                    raise ValueError(
                        f"the tensors of the cut hold {batches[task]} and {found[at]} samples for "
                        f"task {step.local_names[task]}; give losses of single samples, name "
                        "features, or use minibatches=1"
                    )
                batches[task] = found[at]
        # A task that shares nothing has no tensor here: give it the usual batch size.
        usual = next((b for b in batches if b is not None), 1)
        sizes = [usual if b is None else b for b in batches]
        published = options.preset == "published"
        require_means(step, counts, minibatches)
        if counts is None and step.masks is not None:
            pairs = zip(step.masks, cut.crossings, strict=True)
            masks = [mask if own else None for mask, own in pairs]
            return Partition.masked(sizes, minibatches, masks, published=published)
        if len(set(sizes)) > 1:
            require_even(counts, sizes)
            return Partition.per_task(sizes, minibatches, published=published)
        if counts is not None:
            require_counts(counts, step.total, sizes[0])
            counts = counts[step.index.to(counts.device)]
        return Partition.of(sizes[0], minibatches, counts, published=published)

    def rows(
        self, gradients: TaskGradients, parameters: Sequence[Tensor], *, release: bool
    ) -> Callable[[int], Tensor]:
        """Return a function from a task to its n gradients with respect to parameters."""

        def rows(task: int) -> Tensor:
            at = [f for f, g in enumerate(gradients.features) if g[task] is not None]
            outputs = [GradientEdge(*self.cut.targets[f]) for f in at]
            own = [gradients.features[f][task] for f in at]
            n = self.partition.minibatches
            if n == 1:
                last = release and task == self.cut.tasks - 1
                return vjp(outputs, parameters, own, retain=not last)[None]
            part = self.partition.of_task(task)
            result, start = [], 0
            for size, scale in zip(part.sizes, part.scales[0].tolist(), strict=True):
                masked = []
                for f, g in zip(at, own, strict=True):
                    piece = torch.zeros_like(g)
                    window = piece.narrow(self._dims[f], start, size)
                    window.copy_(g.narrow(self._dims[f], start, size)).mul_(scale)
                    masked.append(piece)
                result.append(vjp(outputs, parameters, masked))
                start += size
            return torch.stack(result)

        return rows

    def combined(
        self, gradients: TaskGradients, weights: Sequence[float]
    ) -> tuple[list[GradientEdge], list[Tensor]]:
        """Return the cut's edges and the weighted sums of the tasks' gradients there."""
        outputs: list[GradientEdge] = []
        cotangents: list[Tensor] = []
        for f, (edge, per_task) in enumerate(
            zip(self.cut.targets, gradients.features, strict=True)
        ):
            pairs = [(g, w) for g, w in zip(per_task, weights, strict=True) if g is not None]
            if not pairs:
                continue
            outputs.append(GradientEdge(*edge))
            if len(pairs) == len(per_task) and f in gradients.stacks:
                cotangents.append(weighted_sum(gradients.stacks[f], weights))
            else:
                cotangents.append(weighted_sum([g for g, _ in pairs], [w for _, w in pairs]))
        return outputs, cotangents


def _norm(gradient: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=torch.float64)
    return norm


def _sample_dim(shape: tuple[int, ...] | None, size: int | None, asked: int | None) -> int:
    """Return the dimension of the samples in a tensor of the cut.

    Args:
        shape: Shape of the tensor.
        size: Number of samples, None if unknown.
        asked: ``batch_dim`` as the user gave it.

    Raises:
        ValueError: The dimension does not exist, or the shape does not tell which it is.
    """
    if asked is not None:
        if shape is not None and not -len(shape) <= asked < len(shape):
            raise ValueError(
                f"batch_dim={asked} does not exist in a tensor of the cut, of shape {shape}; use "
                "minibatches=1, or name features"
            )
        if shape is not None and size is not None and shape[asked] != size:
            raise ValueError(
                f"batch_dim={asked} of a tensor of the cut, of shape {shape}, does not hold the "
                f"{size} samples that the losses are of; set another batch_dim, use minibatches=1, "
                "or name features"
            )
        return asked
    assert shape is not None
    assert size is not None
    at = [d for d, length in enumerate(shape) if length == size]
    if len(at) != 1:
        raise ValueError(
            f"a tensor of the cut, of shape {shape}, has {len(at)} dimensions of {size}, the "
            "number of samples; say which with batch_dim, or use minibatches=1"
        )
    return at[0]


def shows_samples(step: Step, cut: Cut) -> bool:
    """Whether losses of single samples show where the samples are.

    Where tasks have batches of different sizes, their tensors of the cut must have these sizes.
    """
    if step.samples is None:
        return False
    if len({own.count for own in step.samples}) == 1:
        return True
    shapes = [shape_of(edge) or () for edge in cut.targets]
    return all(
        shapes[crossing.target].count(own.count) == 1
        for own, crossings in zip(step.samples, cut.crossings, strict=True)
        for crossing in crossings
    )


def describe_bypass(cut: Cut, names: Sequence[str]) -> str:
    """Return whose gradient does not pass through the representation and why; "" if all do."""
    for name, around in zip(names, cut.bypasses, strict=True):
        for bypass in around:
            what = ""
            if bypass.parameter is not None:
                what = f", of shape {tuple(bypass.parameter.shape)}"
            return f"the loss of task {name} {bypass.reason}{what}"
    return ""
