"""Two views of the graph of a step: parted at features that the user names, or at the cut found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from ntkmtl.balance._options import Options
from ntkmtl.balance._step import Step
from ntkmtl.graph import (
    Cut,
    Features,
    FeaturesLike,
    TaskGradients,
    as_real,
    crossing_gradients,
    differentiate,
    feature_gradients,
    has_hooks,
    leaves,
    path_around,
    shape_of,
    starts,
    task_gradients,
    unretained,
    vjp,
)
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.kernel._partition import Partition, require_counts
from ntkmtl.kernel._pooling import Pooling, gram, kernel_from_rows
from ntkmtl.kernel._ranks import Ranks
from ntkmtl.kernel._sources import (
    cut_graph,
    representation_kernel,
    rows_through_features,
    shared_parameters,
    split_batch,
)

__all__ = ["FoundView", "NamedView", "View", "with_zeros"]


class View(Protocol):
    """Where the graph of a step parts into what is shared and what is a task's own.

    Attributes:
        around: Why the representation does not carry all gradients, naming task and parameter;
            empty if it does.
        separate: Whether tasks have representations of their own, so that products between tasks do
            not exist.
        partition: The mini-batches.
    """

    around: str
    separate: bool
    partition: Partition

    @property
    def outputs(self) -> int:
        """Number of tensors where passes over the shared part start."""

    @property
    def shared(self) -> list[Tensor]:
        """The shared parameters."""

    @property
    def below(self) -> list[Tensor]:
        """All leaves that a pass from the representation downwards reaches."""

    @property
    def hooks(self) -> bool:
        """Whether somebody waits for gradients to pass above the shared part."""

    def differentiate(self, *, heads: bool, retain: bool) -> TaskGradients:
        """Return gradients with respect to the representation, and of the heads if asked to."""

    def kernel(
        self,
        gradients: TaskGradients,
        pooling: Pooling,
        *,
        full: bool,
        ranks: Ranks | None,
        layer: tuple[Tensor, float] | None,
    ) -> ExtendedNTK:
        """Return the representation's kernel."""

    def rows(
        self, gradients: TaskGradients, parameters: Sequence[Tensor], *, release: bool
    ) -> Callable[[int], Tensor]:
        """Return a function from a task to its n gradients with respect to parameters."""

    def push(
        self,
        gradients: TaskGradients,
        weights: Sequence[float],
        inputs: Sequence[Tensor] | None = None,
        *,
        retain: bool = False,
    ) -> None:
        """Run the shared part's backward pass with the weighted sum of the tasks' gradients."""

    def pull(
        self, gradients: TaskGradients, weights: Sequence[float], *, retain: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Return what :meth:`push` would add to the ``.grad`` of each parameter."""


def parameters_only(found: Sequence[Tensor]) -> list[Tensor]:
    """Return the parameters among some leaves; all of them where there is none.

    An input that requires a gradient is a leaf as well, but no parameter.
    """
    return [p for p in found if isinstance(p, nn.Parameter)] or list(found)


class NamedView:
    """Parted at features that the user names.

    Args:
        options: The Balancer's.
        step: What is known of this call.
        features: The representation, as the user gave it.
        counts: Labels per task and sample.
        minibatches: The paper's n.

    Raises:
        ValueError: The features do not part the graph, or do not fit the mini-batches.
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
            whole = cut  # views that losses cross are one representation, for every task
        self.whole, self.cut, self.graph = whole, cut, graph
        self.around = path_around(graph, cut, step.local_names)
        self.separate = cut.separate
        if n > 1 and options.batch_dim is None:
            _require_plain_layout(cut)
        if counts is not None and not whole.uneven:
            require_counts(counts, step.total, cut.batch)
            counts = counts[step.index.to(counts.device)]
        self.partition = split_batch(
            whole.select(step.present),
            n,
            counts,
            published=options.preset == "published",
        )

    @property
    def outputs(self) -> int:
        """Number of tensors where passes over the trunk start."""
        return len(self.cut.outputs)

    @cached_property
    def shared(self) -> list[Tensor]:
        """The shared parameters: the user's, or those below the features."""
        own = self.options.shared
        return parameters_only(self.below) if own is None else trainable_now(own)

    @property
    def shared_above(self) -> str:
        """Say which shared parameter that the user named no pass from the features reaches."""
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
    def hooks(self) -> bool:
        """Whether somebody waits for gradients to pass above the shared part."""
        # A hook on the features would change what is read here, and again what is sent down.
        return any(has_hooks(p) for head in self.graph.parameters for p in head) or any(
            map(has_hooks, self.cut.tensors)
        )

    def differentiate(self, *, heads: bool, retain: bool, live: bool = False) -> TaskGradients:
        """Return gradients with respect to the features, and of the heads if asked to."""
        with unretained(self.cut.tensors):
            return feature_gradients(
                self.begin, self.cut, self.graph, heads=heads, retain=retain, differentiable=live
            )

    def known(self, gradients: TaskGradients) -> TaskGradients:
        """Return the gradients of all present tasks, zeros for those of other processes."""
        return with_zeros(gradients, self.whole, self.step)

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
        """Return the features' kernel."""
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

    def push(
        self,
        gradients: TaskGradients,
        weights: Sequence[float],
        inputs: Sequence[Tensor] | None = None,
        *,
        retain: bool = False,
    ) -> None:
        """One pass over the trunk with the weighted sum of the tasks' gradients."""
        outputs, cotangents = self._combined(gradients, weights)
        torch.autograd.backward(outputs, cotangents, inputs=inputs, retain_graph=retain)

    def pull(
        self, gradients: TaskGradients, weights: Sequence[float], *, retain: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Return what :meth:`push` would add to the ``.grad`` of each parameter."""
        return _pulled(*self._combined(gradients, weights), self.below, retain)

    def _combined(
        self, gradients: TaskGradients, weights: Sequence[float]
    ) -> tuple[Sequence[Tensor], list[Tensor]]:
        cut = self.cut
        if cut.separate:
            own = gradients.features[0]
            return cut.outputs, [g * w for g, w in zip(own, weights, strict=True)]
        return cut.outputs, [
            weighted_sum(gradients.stacked(f), weights) for f in range(len(gradients.features))
        ]


def _pulled(
    outputs: Sequence[Tensor | GradientEdge],
    cotangents: Sequence[Tensor],
    parameters: Sequence[Tensor],
    retain: bool,
) -> list[tuple[Tensor, Tensor]]:
    found = differentiate(outputs, parameters, cotangents, retain=retain)
    return [(p, g) for p, g in zip(parameters, found, strict=True) if g is not None]


def _require_plain_layout(cut: Features) -> None:
    """Refuse to guess which dimension of a sequence's features holds the samples."""
    for tensor in cut.tensors:
        if tensor.ndim == 3 or (tensor.ndim == 2 and tensor.shape[0] == 1 < tensor.shape[1]):
            raise ValueError(
                f"features of shape {tuple(tensor.shape)} do not tell which dimension holds the "
                "samples, as recurrent networks and transformers put them second by default: say "
                "Balancer(..., batch_dim=1), or batch_dim=0, or use minibatches=1"
            )


class FoundView:
    """Parted at the cut that is found from the losses.

    Args:
        options: The Balancer's.
        step: What is known of this call.
        cut: The cut of the local losses.
        minibatches: The paper's n.
        counts: Labels per task and sample.
        verified: Cuts whose samples were looked at before; added to.
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
        self.around = describe_bypass(cut, step.local_names)
        self.separate = cut.separate
        self._dims: dict[int, int] = {}
        known = step.samples is not None or options.batch_dim is not None
        if minibatches == 1 and (options.pooling == "blockwise" or not known):
            self.partition = Partition.of(1, 1)  # rows need not be told apart
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
        """The shared parameters: the user's, or those that two or more tasks reach."""
        own = self.options.shared
        return self.cut.shared if own is None else trainable_now(own)

    @cached_property
    def below(self) -> list[Tensor]:
        """All leaves below the cut."""
        return list(leaves([GradientEdge(*edge) for edge in self.cut.targets])[0])

    @property
    def heads(self) -> list[list[Tensor]]:
        """Each task's own parameters."""
        return self.cut.heads

    @property
    def hooks(self) -> bool:
        """Whether somebody waits for gradients to pass above the shared part."""
        return any(has_hooks(p) for head in self.heads for p in head)

    def differentiate(self, *, heads: bool, retain: bool) -> TaskGradients:
        """Return gradients over the edges of the cut, and of the heads if asked to."""
        parameters = self.heads if heads else None
        own, flat = crossing_gradients(self.begin, self.cut, parameters, retain=retain)
        features: list[list[Tensor | None]] = [
            [per_task.get(f) for per_task in own] for f in range(len(self.cut.targets))
        ]
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
        """Return the kernel of the tensors on the cut, of the local tasks."""
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
        """Return the kernel of this process's samples."""
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
        """Return squared norms, or the Gramian: no mini-batches, so rows need not be known."""
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
                part = gram(matrix.float() if matrix.dtype in _HALF else matrix)
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
        """Check once that rows of the cut's tensors belong to samples.

        With the second half of a task's samples left out, their rows must be zero.

        Raises:
            ValueError: They are not.
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
            for target, gradient in task_gradients(start, task, self.cut).items():
                dim = self._dims[target]
                rest = gradient.narrow(dim, count // 2, count - count // 2)
                if bool(rest.any()):
                    raise ValueError(
                        f"dimension {dim} of a tensor of the cut, of shape "
                        f"{tuple(gradient.shape)}, does not hold the samples of task "
                        f"{self.step.local_names[task]}, or its head mixes them (batch norm, say): "
                        "set batch_dim, or use minibatches=1"
                    )
            verified.add(key)

    def _split(self, minibatches: int, counts: Tensor | None) -> Partition:
        """Find the samples in each tensor of the cut, and split them."""
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
        # A task that shares nothing has no tensor of its own here, and must not stand out.
        usual = next((b for b in batches if b is not None), 1)
        sizes = [usual if b is None else b for b in batches]
        published = options.preset == "published"
        if len(set(sizes)) > 1:
            return Partition.per_task(sizes, minibatches, published=published)
        if counts is not None:
            require_counts(counts, step.total, sizes[0])
            counts = counts[step.index.to(counts.device)]
        elif step.samples is not None and any(s.mask is not None for s in step.samples):
            counts = torch.stack(
                [
                    torch.ones_like(s.values) if s.mask is None else s.mask.to(s.values.dtype)
                    for s in step.samples
                ]
            )
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

    def push(
        self,
        gradients: TaskGradients,
        weights: Sequence[float],
        inputs: Sequence[Tensor] | None = None,
        *,
        retain: bool = False,
    ) -> None:
        """One pass over the shared part with the weighted sum of the tasks' gradients."""
        outputs, cotangents = self._combined(gradients, weights)
        torch.autograd.backward(outputs, cotangents, inputs=inputs, retain_graph=retain)

    def pull(
        self, gradients: TaskGradients, weights: Sequence[float], *, retain: bool
    ) -> list[tuple[Tensor, Tensor]]:
        """Return what :meth:`push` would add to the ``.grad`` of each parameter."""
        return _pulled(*self._combined(gradients, weights), self.below, retain)

    def _combined(
        self, gradients: TaskGradients, weights: Sequence[float]
    ) -> tuple[list[GradientEdge], list[Tensor]]:
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


_HALF = (torch.float16, torch.bfloat16)


def _norm(gradient: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=torch.float64)
    return norm


def _sample_dim(shape: tuple[int, ...] | None, size: int | None, asked: int | None) -> int:
    """Return the dimension of the samples in a tensor of the cut.

    Raises:
        ValueError: It does not exist, or cannot be told.
    """
    if asked is not None:
        if shape is not None and not -len(shape) <= asked < len(shape):
            raise ValueError(
                f"batch_dim={asked} does not exist in a tensor of the cut, of shape {shape}; use "
                "minibatches=1, or name features"
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


def describe_bypass(cut: Cut, names: Sequence[str]) -> str:
    """Say which task's gradient does not pass the representation, and why; empty if all do."""
    for name, around in zip(names, cut.bypasses, strict=True):
        for bypass in around:
            what = ""
            if bypass.parameter is not None:
                what = f", of shape {tuple(bypass.parameter.shape)}"
            return f"the loss of task {name} {bypass.reason}{what}"
    return ""


def weighted_sum(gradients: Tensor | Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Return sum_i w_i g_i of gradients of one shape, stacked along dimension 0 or in a list.

    In float32 where they are shorter: a weight may be too large for float16, its product not.
    """
    dtype = gradients[0].dtype
    if dtype in _HALF:
        sums = gradients[0].float() * weights[0]
        for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
            sums.add_(gradient.float(), alpha=weight)
        return sums.to(dtype)
    if isinstance(gradients, Tensor):
        combined = gradients.new_tensor(weights) @ gradients.flatten(1)
        return combined.view(gradients.shape[1:])
    total: Tensor = gradients[0] * weights[0]
    for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
        total.add_(gradient, alpha=weight)
    return total


def trainable_now(shared: Sequence[Tensor]) -> list[Tensor]:
    """Return the shared parameters that are not frozen.

    Raises:
        ValueError: All of them are.
    """
    found = [p for p in shared if p.requires_grad]
    if not found:
        raise ValueError("every shared parameter is frozen; use a method that reads losses only")
    return found


def with_zeros(gradients: TaskGradients, features: Features, step: Step) -> TaskGradients:
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
