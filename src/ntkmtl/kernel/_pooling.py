"""The extended NTK from sample-wise gradients with respect to the representation.

Let G_i = d l_i / d z with one row per sample (B rows), and let c_iu be the scale that turns rows of
mini-batch u into the gradient of its mean loss. All poolings have the form

    K[i,u,j,v] = c_iu c_jv sum_{s in u, t in v} <G_i[s], G_j[t]> Theta(s, t)

and differ in Theta, which approximates the trunk's kernel between samples: 1 (``pooled``, Eq. 17),
the identity (``blockwise``, the published code) or a kernel of the features (``kernel``).

Gradients are scaled to entries of about 1 before products are formed, and the products are scaled
back in float64. So losses of 1e-12 and of 1e12 give the same relative accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ntkmtl.graph import as_real
from ntkmtl.kernel._extended import ExtendedNTK
from ntkmtl.kernel._partition import Partition

__all__ = ["POOLINGS", "Pooling", "gram", "kernel_from_rows", "minibatch_sums", "sample_gram"]

Pooling = Literal["pooled", "blockwise", "kernel"]
POOLINGS: tuple[Pooling, ...] = ("pooled", "blockwise", "kernel")

# Up to this many entries, products are formed in float64 without scaling; above it, in the
# gradients' own dtype after scaling.
_DOUBLE_LIMIT = 1 << 18


def _flat(gradient: Tensor) -> Tensor:
    rows = as_real(gradient).reshape(len(gradient), -1)
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows


def _power_of_two(peak: Tensor) -> Tensor:
    """Return the largest powers of two that are at most ``peak``; 1 where ``peak`` is zero.

    Division by a power of two is exact.
    """
    exponent = torch.frexp(peak).exponent - 1
    return torch.where(peak > 0, torch.ldexp(torch.ones_like(peak), exponent), 1.0)


def _normalized(x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale each slice along dimension 0 so that its largest absolute entry is in [1, 2).

    Returns the scaled slices and the divisors, float64 of shape (len(x),). Slices of zeros stay as
    they are; NaN and infinity are kept.
    """
    scale = _power_of_two(x.abs().flatten(1).amax(dim=1))
    return x / scale.view((-1,) + (1,) * (x.ndim - 1)), scale.to(torch.float64)


_CACHED = 1 << 17
"""Number of float64 entries that fit in a CPU's cache."""
_SLICE = 1 << 24
"""Number of entries that are converted to float64 at a time on a GPU."""


def gram(matrix: Tensor) -> Tensor:
    """Return the Gramian of the rows of a (k, P) matrix, float64 of shape (k, k).

    Summed in float64 over slices of columns: the whole matrix is never copied, and each slice is
    read from memory once.
    """
    rows = len(matrix)
    # Products of float32 or shorter numbers neither overflow nor underflow in float64.
    scaled = matrix.dtype == torch.float64
    if rows == 1 and not scaled:
        norm: Tensor = torch.linalg.vector_norm(matrix, dtype=torch.float64)
        return norm.square().view(1, 1)
    safe = torch.ones(rows, dtype=torch.float64, device=matrix.device)
    if scaled and matrix.numel():
        low, high = matrix.aminmax(dim=1)
        safe = _power_of_two(torch.maximum(high, -low))
    total = torch.zeros(rows, rows, dtype=torch.float64, device=matrix.device)
    entries = _CACHED if matrix.device.type == "cpu" else _SLICE
    for columns in matrix.split(max(1 << 12, entries // max(1, rows)), dim=1):
        part = columns.to(torch.float64)
        if scaled:
            part = part / safe[:, None]
        total += part @ part.T
    return total * safe[:, None] * safe[None, :]


def kernel_from_rows(
    gradients: Tensor | Sequence[Tensor],
    partition: Partition,
    pooling: Pooling,
    *,
    theta: Tensor | None = None,
    full: bool = True,
) -> ExtendedNTK:
    """Return the extended NTK of k tasks from their gradients with respect to one representation.

    Args:
        gradients: The gradient G_i of each task's mean loss, shape (B, ...): one tensor of shape
            (k, B, ...), or k tensors, which are processed one by one where that saves memory. With
            ``full=False`` shapes may differ in all dimensions except B.
        partition: The mini-batches.
        pooling: Which approximation of the trunk's kernel between samples.
        theta: The kernel between samples, shape (B, B), for ``pooling="kernel"`` only.
        full: Whether to compute blocks between different tasks.

    Returns:
        The kernel, float64.

    Raises:
        ValueError: ``pooling`` is unknown, or ``theta`` is missing or not used.

    Example:
        >>> import torch
        >>> G = torch.tensor([[[1.0], [3.0]], [[2.0], [-2.0]]])  # k = 2 tasks, B = 2 samples
        >>> K = kernel_from_rows(list(G), Partition.of(2, 1), "pooled")
        >>> K.gramian()
        tensor([[16.,  0.],
                [ 0.,  0.]], dtype=torch.float64)
        >>> kernel_from_rows(list(G), Partition.of(2, 1), "blockwise").gramian()
        tensor([[10., -4.],
                [-4.,  8.]], dtype=torch.float64)
    """
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, found {pooling!r}")
    if (theta is not None) != (pooling == "kernel"):
        raise ValueError('theta belongs to pooling="kernel", and that needs it')
    if full:
        make = {"pooled": _pooled_full, "blockwise": _blockwise_full, "kernel": _kernel_full}
    else:
        make = {"pooled": _pooled, "blockwise": _blockwise, "kernel": _kernel}
    values = make[pooling](gradients, partition, theta)
    k, device = len(gradients), gradients[0].device
    shares = partition.shares.to(device).expand(k, -1)
    diagonal = pooling == "blockwise"
    if full:
        scales = partition.scales.to(device)
        values = values * scales[:, :, None, None] * scales[None, None, :, :]
        return ExtendedNTK(values, shares=shares, diagonal=diagonal)
    values = values * partition.scale_products.to(device)
    return ExtendedNTK(blocks=values, shares=shares, diagonal=diagonal)


def _stack(gradients: Tensor | Sequence[Tensor]) -> Tensor:
    """Stack gradients to shape (k, B, D), with half precision converted to float32."""
    whole = gradients if isinstance(gradients, Tensor) else torch.stack(list(gradients))
    stacked = as_real(whole).reshape(*whole.shape[:2], -1)
    return stacked.float() if stacked.dtype in (torch.float16, torch.bfloat16) else stacked


def minibatch_sums(gradients: Tensor | Sequence[Tensor], partition: Partition) -> Tensor:
    """Sum the rows of each mini-batch, shape (k, n, D); half precision becomes float32."""
    sums = partition.indicator(_flat(gradients[0]))
    if isinstance(gradients, Tensor):
        return sums @ _stack(gradients)
    return torch.stack([sums @ _flat(g) for g in gradients])


def _pooled(
    gradients: Tensor | Sequence[Tensor], partition: Partition, theta: Tensor | None
) -> Tensor:
    if not isinstance(gradients, Tensor):
        return torch.cat([_pooled_block(minibatch_sums([g], partition)) for g in gradients])
    return _pooled_block(minibatch_sums(gradients, partition))


def _pooled_block(rows: Tensor) -> Tensor:
    if rows.numel() <= _DOUBLE_LIMIT:
        rows = rows.to(torch.float64)
        return rows @ rows.mT
    rows, peak = _normalized(rows)
    return (rows @ rows.mT).to(torch.float64) * peak.square()[:, None, None]


def _pooled_full(
    gradients: Tensor | Sequence[Tensor], partition: Partition, theta: Tensor | None
) -> Tensor:
    rows, peak = _normalized(minibatch_sums(gradients, partition))
    k, n, _ = rows.shape
    flat = rows.flatten(0, 1)
    values = (flat @ flat.T).to(torch.float64).view(k, n, k, n)
    return values * peak[:, None, None, None] * peak[None, None, :, None]


def _blockwise(
    gradients: Tensor | Sequence[Tensor], partition: Partition, theta: Tensor | None
) -> Tensor:
    # float64 holds the square of every float32.
    if isinstance(gradients, Tensor):
        norms = torch.linalg.vector_norm(_stack(gradients), dim=2, dtype=torch.float64)
    else:
        norms = torch.stack(
            [torch.linalg.vector_norm(_flat(g), dim=1, dtype=torch.float64) for g in gradients]
        )
    squares = norms.square()
    return torch.diag_embed(squares @ partition.indicator(squares).T)


def _blockwise_full(
    gradients: Tensor | Sequence[Tensor], partition: Partition, theta: Tensor | None
) -> Tensor:
    stacked, peak = _normalized(_stack(gradients))
    per_sample = stacked.transpose(0, 1)  # (B, k, D)
    grams = (per_sample @ per_sample.mT).to(torch.float64)  # (B, k, k)
    by_minibatch = torch.einsum("ub,bij->uij", partition.indicator(grams), grams)
    values = torch.diag_embed(by_minibatch.permute(1, 2, 0))  # (k, k, n, n)
    return values.transpose(1, 2) * peak[:, None, None, None] * peak[None, None, :, None]


def _kernel(
    gradients: Tensor | Sequence[Tensor], partition: Partition, theta: Tensor | None
) -> Tensor:
    assert theta is not None
    if isinstance(gradients, Tensor):
        return _kernel_block(_stack(gradients), partition, theta)
    return torch.cat([_kernel_block(_flat(g)[None], partition, theta) for g in gradients])


def _kernel_block(stacked: Tensor, partition: Partition, theta: Tensor) -> Tensor:
    sums = partition.indicator(theta)
    if stacked.numel() <= _DOUBLE_LIMIT:
        rows = stacked.to(torch.float64)
        return sums @ (rows @ rows.mT * theta) @ sums.T
    rows, peak = _normalized(stacked)
    weighted = (rows @ rows.mT).to(torch.float64) * theta
    return sums @ weighted @ sums.T * peak.square()[:, None, None]


def _kernel_full(
    gradients: Tensor | Sequence[Tensor], partition: Partition, theta: Tensor | None
) -> Tensor:
    assert theta is not None
    rows, peak = _normalized(_stack(gradients))
    k, batch, _ = rows.shape
    flat = rows.flatten(0, 1)
    sums = partition.indicator(theta)
    blocks = []
    for row in rows:  # one task at a time: k B^2 entries in memory, not k^2 B^2
        products = (row @ flat.T).to(torch.float64).view(batch, k, batch) * theta[:, None, :]
        blocks.append(torch.einsum("ub,bjc,vc->ujv", sums, products, sums))
    values = torch.stack(blocks)
    return values * peak[:, None, None, None] * peak[None, None, :, None]


def sample_gram(features: Tensor) -> Tensor:
    """Return <z_s, z_t> for all pairs of samples, float64 of shape (B, B).

    Args:
        features: Samples along dimension 0, shape (B, ...).
    """
    rows = as_real(features.detach()).reshape(len(features), -1)
    if rows.dtype in (torch.float16, torch.bfloat16):
        rows = rows.float()
    return (rows @ rows.T).to(torch.float64)
