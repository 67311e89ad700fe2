"""Autograd's operations, grouped by what they do."""

from __future__ import annotations

from typing import Any

__all__ = [
    "ARRANGING",
    "ASSIGNMENT",
    "COMPILED",
    "ELEMENTWISE",
    "INDEXING",
    "JOINING",
    "LINEAR",
    "LOOKUPS",
    "MOVING",
    "PRODUCTS",
    "REENTRANT",
    "SCALING",
    "SPLITTING",
    "SUMMARIES",
    "TAIL",
    "VIEWS",
    "is_opaque",
    "operation",
]


def _named(names: str) -> frozenset[str]:
    return frozenset(f"{name}Backward" for name in names.split())


LOOKUPS = _named("Embedding EmbeddingBag Index IndexSelect Gather GridSampler2D GridSampler3D")
"""Look up rows of a parameter by indices from the data."""

PRODUCTS = _named(
    "Mm Addmm Bmm Baddbmm Mv Addmv Dot Linear Convolution ThnnConv2D SlowConv2D MkldnnConvolution "
    "Einsum Bilinear Addbmm Matmul CudnnConvolution CompiledFunction"
)
"""Sums of products. If one factor is data, the result is an activation. Compiled graphs are counted
among these."""

SPLITTING = _named("Unbind Split SplitWithSizes Chunk TensorSplit UnsafeSplit")
"""Split one input into several outputs."""

INDEXING = _named("Select Slice Index IndexSelect Gather Narrow Take MaskedSelect") | SPLITTING
"""Take a part of one input."""

ELEMENTWISE = _named(
    "Add Sub Rsub Mul Div Pow Abs Neg Log Log1P Exp Expm1 Sqrt Rsqrt Square Clamp ClampMin "
    "ClampMax Where MaskedFill Maximum Minimum Clone Alias ToCopy Copy Reciprocal Addcmul "
    "Addcdiv Lerp Sign MseLoss L1Loss SmoothL1Loss HuberLoss BinaryCrossEntropy "
    "BinaryCrossEntropyWithLogits KlDiv NllLoss SoftMarginLoss Xlogy Nan2Num NanToNum"
) | {"CopyBackwards"}
"""Elementwise operations, where input and output have the same shape."""

_REDUCTIONS = _named("Mean Sum Nansum Dot Mv")
VIEWS = _named(
    "View Reshape ReshapeAlias UnsafeView Squeeze Unsqueeze Permute Transpose T Expand Flatten"
)
JOINING = _named("Stack Cat")
MOVING = _named("Flip Roll")
"""Move entries along some dimensions, which they save as ``dims``."""

ARRANGING = (VIEWS | JOINING | MOVING | INDEXING) - _named("Expand")
"""Rearrange entries without changing them: gradients keep their norm."""

LINEAR = _named(
    "Mean Sum Add Sub Rsub Mul Div Neg Clone Alias ToCopy Cumsum Max Min Amax Amin Median "
    "Nanmedian Mode Kthvalue Topk Sort Norm LinalgVectorNorm Std"
) | {"CopyBackwards"}
"""Linear in a tensor if the other operands, where there are any, are constants; or, as a maximum or
a norm, with a gradient whose length does not depend on the tensor."""

SUMMARIES = _named(
    "Max Min Amax Amin Median Nanmedian Mode Kthvalue Topk Sort Cumsum Cumprod Logcumsumexp Prod "
    "Norm LinalgVectorNorm Logsumexp Std Var Softplus LogSigmoid Sigmoid LogSoftmax Softmax"
)
"""Further operations between a network's outputs and a loss, but in networks as well."""

SCALING = ELEMENTWISE | VIEWS | _named("Mean Sum")
"""Operations by which learned factors enter a loss."""

TAIL = ELEMENTWISE | _REDUCTIONS | VIEWS | JOINING | MOVING | INDEXING
"""Operations that compute a loss from a network's outputs."""


ASSIGNMENT = "torch::autograd::CopySlices"
"""Writes into a part of a tensor in place."""

COMPILED = "CompiledFunctionBackward"
"""A graph made by torch.compile."""

REENTRANT = "CheckpointFunctionBackward"
"""A reentrant checkpoint, which builds its part of the graph only in the backward pass."""


_NAMES: dict[type, str] = {}


def operation(node: Any) -> str:
    """Return a node's name without the number of its overload.

    Example:
        >>> import torch
        >>> operation(torch.ones(2, requires_grad=True).sum().grad_fn)
        'SumBackward'
    """
    kind = type(node)
    if (known := _NAMES.get(kind)) is not None:
        return known
    name = str(node.name()).rstrip("0123456789")
    if kind.__name__.rstrip("0123456789") == name:  # one class for each operation
        _NAMES[kind] = name
    return name


def is_opaque(node: Any) -> bool:
    """Whether a node may contain a whole network: a compiled graph or a custom function."""
    from torch.autograd.function import BackwardCFunction

    return isinstance(node, BackwardCFunction)
