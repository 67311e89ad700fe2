"""The extended NTK with respect to the features (SR) or to the shared parameters (exact)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from ntkmtl._device import with_cpu_default
from ntkmtl.graph import (
    Features,
    FeaturesLike,
    HeadGraph,
    Start,
    TaskGradients,
    feature_gradients,
    head_graph,
    leaves,
    path_around,
    read_parameters,
    require_cut,
    starts,
    trainable,
    vjp,
)
from ntkmtl.kernel._extended import ExtendedNTK
from ntkmtl.kernel._free_memory import require_memory
from ntkmtl.kernel._partition import Partition, minibatch_sizes, require_counts, require_even
from ntkmtl.kernel._pooling import POOLINGS, Pooling, gram, kernel_from_rows, sample_gram
from ntkmtl.kernel._ranks import Ranks

__all__ = [
    "cut_graph",
    "exact_kernel",
    "extended_ntk",
    "representation_kernel",
    "rows_through_features",
    "shared_parameters",
    "split_batch",
]


def representation_kernel(
    gradients: TaskGradients,
    features: Features,
    partition: Partition,
    pooling: Pooling,
    *,
    inputs: Tensor | None = None,
    constant: float = 0.0,
    full: bool = True,
    ranks: Ranks | None = None,
) -> ExtendedNTK:
    """Return the kernel with respect to the features (Eq. 17 for ``pooled``).

    Several shared tensors count as one concatenated tensor: their kernels are summed.

    Args:
        gradients: Result of :func:`feature_gradients`.
        features: The representation.
        partition: The mini-batches.
        pooling: See :func:`kernel_from_rows`.
        inputs: For ``pooling="kernel"``, the vectors whose Gram matrix is the kernel between
            samples, shape (B, ...); the features themselves if None.
        constant: Number added to that Gram matrix.
        full: Whether to compute blocks between tasks. Ignored if each task has its own
            representation: then there are none.
        ranks: In distributed training all processes, whose mini-batches are included.
    """
    full = full and not features.separate
    kernels = []
    for f in range(len(gradients.features)):
        stack = gradients.stacked(f)
        rows = stack if features.batch_dim == 0 else [features.rows(g) for g in stack]
        if partition.own and inputs is not None:
            raise ValueError(
                "last_layer saw one batch, but the tasks have batches of different sizes; leave "
                "last_layer out"
            )
        if partition.own or (pooling == "kernel" and features.separate and inputs is None):
            # Each task has its own representation, and so its own kernel between samples.
            parts = [
                _one(
                    [row],
                    partition.of_task(i),
                    pooling,
                    features.rows(features.tensors[i]),
                    constant,
                    False,
                    ranks,
                ).blocks
                for i, row in enumerate(rows)
            ]
            diagonal = pooling == "blockwise"
            kernels.append(ExtendedNTK(blocks=torch.cat(parts), diagonal=diagonal))
            continue
        source = features.root if features.root is not None else features.tensors[f]
        between = features.rows(source) if inputs is None else inputs
        kernels.append(_one(rows, partition, pooling, between, constant, full, ranks))
    shares = partition.shares.expand(len(gradients.features[0]), -1)
    if len(kernels) == 1:
        kernel = kernels[0]
    else:
        diagonal = all(k.is_diagonal for k in kernels)
        if full:
            values = torch.stack([k.values for k in kernels]).sum(dim=0)
            kernel = ExtendedNTK(values, diagonal=diagonal)
        else:
            blocks = torch.stack([k.blocks for k in kernels]).sum(dim=0)
            kernel = ExtendedNTK(blocks=blocks, diagonal=diagonal)
    return kernel if ranks is not None else kernel.with_shares(shares.to(kernel.blocks.device))


def _one(
    rows: Tensor | Sequence[Tensor],
    partition: Partition,
    pooling: Pooling,
    between: Tensor,
    constant: float,
    full: bool,
    ranks: Ranks | None,
) -> ExtendedNTK:
    """Return the kernel of one tensor, with the mini-batches of all processes."""
    if ranks is not None and pooling == "pooled":
        return ranks.pooled(rows, partition, full=full)
    if ranks is not None and pooling == "kernel":
        return ranks.through_features(rows, between, partition, constant=constant, full=full)
    theta = sample_gram(between) + constant if pooling == "kernel" else None
    kernel = kernel_from_rows(rows, partition, pooling, theta=theta, full=full)
    return ranks.blockwise(kernel) if ranks is not None and pooling == "blockwise" else kernel


def rows_through_features(
    gradients: TaskGradients,
    features: Features,
    parameters: Sequence[Tensor],
    partition: Partition,
    *,
    release: bool,
) -> Callable[[int], Tensor]:
    """Return a function from a task to its n gradients with respect to parameters.

    Each call of that function runs n backward passes through the trunk, each with the rows of one
    mini-batch.

    Args:
        gradients: Gradients with respect to the features.
        features: The representation.
        parameters: With respect to what.
        partition: The mini-batches.
        release: Free the trunk's graph in the last pass of the last task, as no backward pass
            follows. Otherwise the graph may stay in memory while the next batch runs.

    Returns:
        ``rows(i)`` of shape (n, P): gradients of the mean losses of task i's mini-batches.
    """

    def rows(task: int) -> Tensor:
        if features.per_task:
            outputs = features.outputs if features.root is not None else (features.tensors[task],)
            cotangents = [gradients.features[0][task]]
        else:
            outputs = features.tensors
            cotangents = [per_task[task] for per_task in gradients.features]
        n = partition.minibatches
        keep_graph = not (release and task == len(gradients.features[0]) - 1)
        if n == 1:
            return vjp(outputs, parameters, cotangents, retain=keep_graph)[None]
        part_of_task = partition.of_task(task)
        scales = part_of_task.scales[0].tolist()
        result = []
        start = 0
        for u, (size, scale) in enumerate(zip(part_of_task.sizes, scales, strict=True)):
            masked = []
            for g in cotangents:
                part = torch.zeros_like(g)
                window = part.narrow(features.batch_dim, start, size)
                window.copy_(g.narrow(features.batch_dim, start, size)).mul_(scale)
                masked.append(part)
            result.append(vjp(outputs, parameters, masked, retain=keep_graph or u < n - 1))
            start += size
        return torch.stack(result)

    return rows


def exact_kernel(
    rows: Callable[[int], Tensor],
    tasks: int,
    shares: Tensor,
    *,
    full: bool,
    keep: bool,
    ranks: Ranks | None = None,
) -> tuple[ExtendedNTK, Tensor | None]:
    """Return the kernel with respect to parameters (Eq. 8), one task at a time.

    Args:
        rows: From a task to its n gradients, shape (n, P).
        tasks: Number of tasks k.
        shares: Share of each task's samples per mini-batch, shape (k, n) or (1, n).
        full: Compute blocks between tasks, which needs all n k gradients at once.
        keep: Return the k whole-batch gradients as well.
        ranks: In distributed training all processes, whose mini-batches are included.

    Returns:
        The kernel, and this process's gradients of shape (k, P) or None. Memory is O(nP) if neither
        ``full`` nor ``keep``.

    Raises:
        ValueError: The gradients of all tasks do not fit in free memory.
    """
    product = gram if ranks is None else ranks.gram
    processes = 1 if ranks is None else ranks.size
    average = None if ranks is None else ranks.mean
    blocks = []
    matrix = torch.empty(0)
    means: list[Tensor] = []
    n = shares.shape[1]
    for i in range(tasks):
        own = rows(i)
        if i == 0 and (full or keep):
            require_memory(tasks, own if full else own[:1])
        share = shares[i if len(shares) > 1 else 0]
        if full:
            found = own if average is None else average[i : i + 1].to(own) @ own
            if i == 0:
                # Filled row by row: torch.cat at the end would hold all rows twice.
                matrix = found.new_empty(tasks * len(found), found.shape[1])
            matrix[i * len(found) : (i + 1) * len(found)] = found
        else:
            blocks.append(product(own))
        if keep and not (full and n == 1 and average is None):
            means.append(own[0] if n == 1 else share.to(own) @ own)
        del own
    if not full:
        kernel = ExtendedNTK(blocks=torch.stack(blocks))
        jacobian = torch.stack(means) if keep else None
    elif average is not None:
        kernel = ExtendedNTK(product(matrix).view(tasks, 1, tasks, 1))
        jacobian = torch.stack(means) if keep else None
    else:
        # Rows are ordered by process, task and mini-batch; the kernel needs the task first.
        order = (processes, tasks, n)
        values = product(matrix).view(order + order).permute(1, 0, 2, 4, 3, 5)
        kernel = ExtendedNTK(values.reshape(tasks, processes * n, tasks, processes * n))
        jacobian = None if not keep else matrix if n == 1 else torch.stack(means)
    if ranks is None:
        kernel = kernel.with_shares(shares.expand(tasks, -1).to(kernel.blocks.device))
    return kernel, jacobian


def cut_graph(
    begin: Sequence[Start], features: Features, names: Sequence[str]
) -> tuple[Features, HeadGraph]:
    """Find the graph between the features and the losses.

    Args:
        begin: Where the backward pass of each task starts.
        features: The representation.
        names: Names of the tasks.

    Returns:
        The features and the graph above them. Views of one representation are replaced by that
        tensor if losses come from one operation (stack, unbind) and so reach every head's view.

    Raises:
        ValueError: The features do not lie between the trunk and the losses.
    """
    graph = head_graph(begin, features)
    if graph.crosses and features.root is not None:
        features = features.joined()
        graph = head_graph(begin, features)
    require_cut(graph, names)
    return features, graph


def split_batch(
    features: Features,
    minibatches: int,
    counts: Tensor | None = None,
    *,
    published: bool = False,
) -> Partition:
    """Split the batch, or each task's own batch, into mini-batches.

    Raises:
        ValueError: n is not in 1..B, or counts are given for batches of different sizes.
    """
    if not features.uneven:
        return Partition.of(features.batch, minibatches, counts, published=published)
    require_even(counts, features.batches)
    return Partition.per_task(features.batches, minibatches, published=published)


def shared_parameters(features: Features) -> list[Tensor]:
    """Find the trunk's parameters: the leaves below the features.

    Raises:
        ValueError: There are no trainable ones.
    """
    parameters = trainable(leaves(features.outputs)[0])
    if not parameters:
        raise ValueError(
            "no trainable parameter lies below the features: the trunk is frozen or was run under "
            'torch.no_grad(). Use source="representation", or give the shared parameters'
        )
    return parameters


@with_cpu_default
@torch.enable_grad()
def extended_ntk(
    losses: Sequence[Tensor] | Mapping[str, Tensor],
    features: FeaturesLike | None = None,
    parameters: Iterable[Tensor] | None = None,
    *,
    minibatches: int = 1,
    pooling: Pooling = "pooled",
    counts: Tensor | None = None,
    batch_dim: int = 0,
) -> ExtendedNTK:
    """Return the extended NTK of k losses on one batch split into n mini-batches.

    With ``features`` alone it is the kernel with respect to the shared representation (Eq. 17).
    With ``parameters`` it is the kernel with respect to them (Eq. 8 and 9, for losses). If both are
    given and all parameters lie below the features, it is computed through the features, which is
    cheaper. The graph is kept and no ``.grad`` changes.

    Args:
        losses: k losses. Scalars, the means over the batch; with ``parameters`` alone and
            ``minibatches`` above 1, per-sample losses of shape (B,) instead.
        features: The shared representation; see :class:`ntkmtl.Balancer`.
        parameters: The shared parameters.
        minibatches: Number n of consecutive mini-batches.
        pooling: How the representation's rows are pooled: ``"pooled"`` (Eq. 17 to the letter),
            ``"blockwise"`` (the published code, and what ``ntkmtl-sr`` reads) or ``"kernel"``. Only
            without ``parameters``.
        counts: Number of labels per task and sample, shape (k, B); None for one each. Only with
            ``features``.
        batch_dim: Dimension of the samples in the features.

    Returns:
        The kernel, float64. It has all blocks unless each task has its own representation.

    Raises:
        ValueError: Neither features nor parameters are given, an option does not apply, no loss
            depends on the features or on the parameters, n is not in 1..B, or a shape is wrong.
        TypeError: An argument has a wrong type.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        >>> theta = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
        >>> z = x @ theta  # one sample, z = (3, 3)
        >>> extended_ntk([z[:, 0].mean(), z.sum(1).mean()], parameters=[theta]).gramian()
        tensor([[ 5.,  5.],
                [ 5., 10.]], dtype=torch.float64)
    """
    names, values = _named_losses(losses)
    k = len(values)
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, found {pooling!r}")
    whole: tuple[tuple[str, Any], ...] = (("minibatches", minibatches), ("batch_dim", batch_dim))
    for name, number in whole:
        if isinstance(number, bool) or not isinstance(number, Integral):
            raise TypeError(f"{name} must be a whole number, found {number!r}")
    shared = None if parameters is None else trainable(read_parameters(parameters, "parameters"))
    if shared is not None and pooling != "pooled":
        raise ValueError(
            f"pooling={pooling!r} says how rows of a representation are pooled, and the kernel of "
            "parameters has none; leave parameters out, or pooling"
        )
    if features is None:
        if shared is None:
            raise ValueError("give features, parameters, or both")
        if counts is not None:
            raise ValueError(
                "counts tells the labels of the samples that features hold; give features too, or "
                "leave counts out"
            )
        below = {id(p) for p in leaves(values)[0]}
        if all(p.is_leaf for p in shared) and not any(id(p) in below for p in shared):
            raise ValueError(
                "no loss depends on the parameters: are they another network's, or was it copied?"
            )
        rows, shares = _rows_of_losses(values, shared, minibatches)
        return exact_kernel(rows, k, shares, full=True, keep=False)[0]
    scalars = [_scalar(loss, name) for loss, name in zip(values, names, strict=True)]
    cut = Features.of(features, names, batch_dim)
    if counts is not None and not cut.uneven:
        require_counts(counts, k, cut.batch)
    partition = split_batch(cut, minibatches, counts)
    begin = starts(scalars)
    cut, graph = cut_graph(begin, cut, names)
    around, _ = path_around(graph, cut, names)
    if around and shared is None:
        raise ValueError(
            f"{around}, so that the kernel with respect to them means nothing; give parameters"
        )
    if shared is not None and not around:
        above = {id(p) for own in graph.parameters for p in own}
        if any(id(p) in above for p in shared):
            around = "some of the parameters lie above the features, in the heads"
    if around and shared is not None:
        if minibatches > 1:
            raise ValueError(
                f"{around}, so the kernel of {minibatches} mini-batches cannot be had through "
                "them; use minibatches=1, or per-sample losses without features"
            )
        rows, shares = _rows_of_losses(scalars, shared, 1)
        return exact_kernel(rows, k, shares, full=True, keep=False)[0]
    gradients = feature_gradients(begin, cut, graph, heads=False, retain=True)
    if shared is None:
        return representation_kernel(gradients, cut, partition, pooling)
    through = rows_through_features(gradients, cut, shared, partition, release=False)
    return exact_kernel(through, k, partition.shares, full=True, keep=False)[0]


def _named_losses(losses: Any) -> tuple[list[str], list[Tensor]]:
    """Return names and losses.

    Raises:
        TypeError: They are not losses.
        ValueError: There are none, or one has no gradient.
    """
    if isinstance(losses, Mapping):
        names, values = [str(name) for name in losses], list(losses.values())
    else:
        scalar = isinstance(losses, Tensor) and losses.ndim == 0
        if isinstance(losses, str) or scalar or not isinstance(losses, Iterable):
            raise TypeError(f"losses must be a sequence or a dict of k losses, found {losses!r}")
        values = list(losses)
        names = [str(i) for i in range(len(values))]
    if not values:
        raise ValueError("losses is empty; give one loss per task")
    for name, loss in zip(names, values, strict=True):
        if not isinstance(loss, Tensor) or loss.is_complex():
            kind = loss.dtype if isinstance(loss, Tensor) else type(loss)
            raise TypeError(
                f"the loss of task {name} must be a tensor of real numbers, found {kind}"
            )
        if not loss.requires_grad:
            raise ValueError(
                f"the loss of task {name} does not require a gradient: look for a detach() or "
                "torch.no_grad() on its way"
            )
    return names, values


def _scalar(loss: Tensor, name: str) -> Tensor:
    if loss.numel() != 1:
        raise ValueError(
            f"the loss of task {name} must be a scalar, found shape {tuple(loss.shape)}; take its "
            "mean over the batch"
        )
    return loss.reshape(())


def _rows_of_losses(
    losses: Sequence[Tensor], parameters: Sequence[Tensor], minibatches: int
) -> tuple[Callable[[int], Tensor], Tensor]:
    if minibatches == 1:
        means = [[loss.mean()] for loss in losses]
        shares = torch.ones(1, 1, dtype=torch.float64)
    else:
        batch = {loss.shape for loss in losses}
        if len(batch) != 1 or len(next(iter(batch))) != 1:
            raise ValueError(
                f"with parameters alone, {minibatches} mini-batches need per-sample losses of "
                f"shape (B,), found {sorted(tuple(s) for s in batch)}; give them, or features too"
            )
        sizes = minibatch_sizes(losses[0].shape[0], minibatches)
        means = [[part.mean() for part in loss.split(sizes)] for loss in losses]
        shares = torch.tensor([sizes], dtype=torch.float64) / losses[0].shape[0]

    def rows(task: int) -> Tensor:
        return torch.stack([vjp((mean,), parameters, None) for mean in means[task]])

    return rows, shares
