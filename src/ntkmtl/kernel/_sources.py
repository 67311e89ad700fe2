"""Where the extended NTK comes from: the features (SR) or the shared parameters (exact)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ntkmtl.kernel._autograd import (
    TaskGradients,
    feature_gradients,
    head_graph,
    leaves,
    trainable,
    vjp,
)
from ntkmtl.kernel._extended import ExtendedNTK
from ntkmtl.kernel._features import Features, FeaturesLike, sample_gram
from ntkmtl.kernel._partition import Partition, minibatch_sizes
from ntkmtl.kernel._pooling import POOLINGS, Pooling, gram, kernel_from_rows

__all__ = [
    "exact_kernel",
    "extended_ntk",
    "representation_kernel",
    "rows_through_features",
    "shared_parameters",
]


def representation_kernel(
    gradients: TaskGradients,
    features: Features,
    partition: Partition,
    pooling: Pooling,
    *,
    theta: Tensor | None = None,
    full: bool = True,
) -> ExtendedNTK:
    """Return the kernel with respect to the features (Eq. 17 for ``pooled``).

    Several shared tensors count as one long one: their kernels are summed.

    Args:
        gradients: As :func:`feature_gradients` returned them.
        features: The representation.
        partition: The mini-batches.
        pooling: See :func:`kernel_from_rows`.
        theta: The trunk's kernel between samples, float64 of shape (B, B), for
            ``pooling="kernel"``; that of the features if None.
        full: Whether to compute blocks between tasks. Never done for one representation per task.
    """
    full = full and not features.separate
    kernels = []
    for f, per_task in enumerate(gradients.features):
        rows = [features.rows(g) for g in per_task]
        if pooling != "kernel":
            kernels.append(kernel_from_rows(rows, partition, pooling, full=full))
        elif theta is None and features.separate:
            kernels.append(_separate(rows, features, partition))
        else:
            source = features.root if features.root is not None else features.tensors[f]
            between = sample_gram(features.rows(source)) if theta is None else theta
            kernels.append(kernel_from_rows(rows, partition, pooling, theta=between, full=full))
    if len(kernels) == 1:
        return kernels[0]
    shares = kernels[0].shares
    if full:
        return ExtendedNTK(_sum(kernel.values for kernel in kernels), shares=shares)
    return ExtendedNTK(blocks=_sum(kernel.blocks for kernel in kernels), shares=shares)


def _sum(tensors: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(tensors)).sum(dim=0)


def _separate(rows: Sequence[Tensor], features: Features, partition: Partition) -> ExtendedNTK:
    """Kernel pooling where each task has its own representation, hence its own Theta."""
    blocks = []
    for i, row in enumerate(rows):
        own = _of_task(partition, i)
        theta = sample_gram(features.rows(features.tensors[i]))
        blocks.append(kernel_from_rows([row], own, "kernel", theta=theta, full=False).blocks)
    shares = partition.shares.expand(len(rows), -1).to(blocks[0].device)
    return ExtendedNTK(blocks=torch.cat(blocks), shares=shares)


def _of_task(partition: Partition, task: int) -> Partition:
    i = task if len(partition.scales) > 1 else 0
    return Partition(partition.sizes, partition.scales[i : i + 1], partition.shares[i : i + 1])


def rows_through_features(
    gradients: TaskGradients,
    features: Features,
    parameters: Sequence[Tensor],
    partition: Partition,
    *,
    release: bool,
) -> Callable[[int], Tensor]:
    """Return a function from a task to its n gradients with respect to parameters.

    The heads were walked before; each call walks the trunk n times, with the rows of one
    mini-batch.

    Args:
        gradients: Gradients with respect to the features.
        features: The representation.
        parameters: With respect to what.
        partition: The mini-batches.
        release: Free the trunk's graph with the last mini-batch of the last task, when no backward
            pass is to follow: a graph that waits for its tensors to be dropped is still in memory
            while the next batch is run.

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
        scales = partition.scales[task if len(partition.scales) > 1 else 0].tolist()
        result = []
        start = 0
        for u, (size, scale) in enumerate(zip(partition.sizes, scales, strict=True)):
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
) -> tuple[ExtendedNTK, Tensor | None]:
    """Return the kernel with respect to parameters (Eq. 8), tasks streamed.

    Args:
        rows: From a task to its n gradients, shape (n, P).
        tasks: Number of tasks k.
        shares: Share of each task's samples per mini-batch, shape (k, n) or (1, n).
        full: Compute blocks between tasks, which needs all n k gradients at once.
        keep: Return the k whole-batch gradients.

    Returns:
        The kernel, and the gradients of shape (k, P) or None. Memory is O(nP) if neither ``full``
        nor ``keep``.
    """
    blocks = []
    kept: list[Tensor] = []
    means: list[Tensor] = []
    n = shares.shape[1]
    for i in range(tasks):
        own = rows(i)
        share = shares[i if len(shares) > 1 else 0]
        if full:
            kept.append(own)
        else:
            blocks.append(gram(own))
        if keep and not (full and n == 1):
            means.append(own[0] if n == 1 else share.to(own) @ own)
        del own
    all_shares = shares.expand(tasks, -1)
    if not full:
        jacobian = torch.stack(means) if keep else None
        stacked = torch.stack(blocks)
        return ExtendedNTK(blocks=stacked, shares=all_shares.to(stacked.device)), jacobian
    matrix = torch.cat(kept)
    values = gram(matrix).view(tasks, n, tasks, n)
    kernel = ExtendedNTK(values, shares=all_shares.to(values.device))
    if not keep:
        return kernel, None
    return kernel, matrix if n == 1 else torch.stack(means)


def shared_parameters(features: Features) -> list[Tensor]:
    """Find the trunk's parameters: the leaves below the features.

    Raises:
        ValueError: There are none.
    """
    found, _, _ = leaves(features.outputs)
    parameters = trainable(found)
    if not parameters:
        raise ValueError(
            "no trainable parameter lies below the features: the trunk is frozen or was run under "
            'torch.no_grad(). Use source="representation", or give the shared parameters'
        )
    return parameters


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

    With ``features`` alone it is the kernel with respect to the shared representation (Eq. 17);
    with ``parameters`` it is the kernel with respect to them (Eq. 8 and 9, of losses), through the
    features where both are given. The graph is kept and no ``.grad`` changes.

    Args:
        losses: k losses. Scalars, the means over the batch; with ``parameters`` alone and
            ``minibatches`` above 1, per-sample losses of shape (B,) instead.
        features: The shared representation; see :class:`ntkmtl.Balancer`.
        parameters: The shared parameters.
        minibatches: Number n of consecutive mini-batches.
        pooling: How the representation's rows are pooled: ``"pooled"``, ``"blockwise"`` or
            ``"kernel"``. Only without ``parameters``.
        counts: Labels per task and sample, shape (k, B); one each if None.
        batch_dim: Dimension of the samples in the features.

    Returns:
        The kernel, float64, with all blocks unless each task has a representation of its own.

    Raises:
        ValueError: Neither features nor parameters are given, no loss depends on the features, n is
            not in 1..B, or a shape is wrong.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
        >>> theta = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
        >>> z = x @ theta  # one sample, z = (3, 3)
        >>> extended_ntk([z[:, 0].mean(), z.sum(1).mean()], parameters=[theta]).gramian()
        tensor([[ 5.,  5.],
                [ 5., 10.]], dtype=torch.float64)
    """
    names = list(losses) if isinstance(losses, Mapping) else [str(i) for i in range(len(losses))]
    values = list(losses.values()) if isinstance(losses, Mapping) else list(losses)
    k = len(values)
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, found {pooling!r}")
    shared = None if parameters is None else trainable(parameters)
    if shared is not None and not shared:
        raise ValueError("parameters holds no tensor that requires a gradient")
    if features is None:
        if shared is None:
            raise ValueError("give features, parameters, or both")
        rows, shares = _rows_of_losses(values, shared, minibatches)
        return exact_kernel(rows, k, shares, full=True, keep=False)[0]
    scalars = [_scalar(loss, name) for loss, name in zip(values, names, strict=True)]
    cut = Features.of(features, names, batch_dim)
    partition = Partition.of(cut.batch, minibatches, counts)
    if not head_graph(scalars, cut).depends:
        raise ValueError(
            "no loss depends on the features; pass the very tensor that the heads read, not a copy"
        )
    gradients = feature_gradients(scalars, cut, None, retain=True)
    if shared is None:
        return representation_kernel(gradients, cut, partition, pooling)
    through = rows_through_features(gradients, cut, shared, partition, release=False)
    return exact_kernel(through, k, partition.shares, full=True, keep=False)[0]


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
