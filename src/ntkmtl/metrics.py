r"""The two numbers by which multi-task methods are compared: Δm% and mean rank.

Both take one value per metric and method, and the direction of each metric. They work for measured
runs and for published tables.

Example:
    >>> stl = [50.0, 0.25]  # an accuracy and an error
    >>> methods = [[75.0, 0.50], [25.0, 0.125]]
    >>> delta_m(methods, stl, higher_is_better=[True, False]).tolist()
    [25.0, 0.0]
    >>> mean_rank(methods, higher_is_better=[True, False]).tolist()
    [1.5, 1.5]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias, get_args

import torch
from torch import Tensor

from ntkmtl._device import with_cpu_default

__all__ = ["Ties", "delta_m", "mean_rank"]


class _Array(Protocol):
    """Anything that NumPy can read, without a dependency on NumPy."""

    def __array__(self) -> Any: ...


Numbers: TypeAlias = Tensor | Sequence[object] | _Array
"""Numbers as a tensor, a (nested) sequence, a NumPy array or a table of pandas. Metrics are matched
by position; names of metrics in several tables must come in one order."""

Ties: TypeAlias = Literal["average", "published"]
"""How :func:`mean_rank` ranks equal values."""


_NOT_DIRECTIONS = "higher_is_better must be True, False or a sequence of them. Found {!r}."


@with_cpu_default
def delta_m(
    values: Numbers, baseline: Numbers, higher_is_better: bool | Sequence[bool] | Tensor | _Array
) -> Tensor:
    r"""Return Δm%, the average drop relative to a baseline, in percent; lower is better.

    .. math::

        \Delta m\% = \frac{100}{S} \sum_{i=1}^{S} (-1)^{\delta_i}
            \frac{M_{m,i} - M_{b,i}}{M_{b,i}}

    over S metrics, where :math:`\delta_i` is 1 if a higher value of metric i is better, else 0
    (Section 4.1 of the paper). The baseline usually is single-task learning. A negative value means
    that the method is better than the baseline on average. The formula is for positive metrics: a
    negative baseline reverses the sign of its metric's term.

    Args:
        values: Metrics of the methods, of shape (..., S).
        baseline: Metrics of the baseline, of shape (S,), none of them zero.
        higher_is_better: Direction of each metric, of length S, or one for all.

    Returns:
        Δm% in percent, float64 on the CPU, of shape (...): a 0-d tensor for a single method.

    Raises:
        ValueError: Shapes do not match, names of metrics come in another order, the baseline has a
            zero, or a number is not finite.
        TypeError: An argument is not an array of real numbers, or ``higher_is_better`` not boolean.

    Example:
        >>> float(delta_m([3.0, 6.0], [2.0, 4.0], higher_is_better=False))
        50.0
        >>> delta_m([[2.0, 3.0], [4.0, 3.0]], [4.0, 3.0], [True, False]).tolist()
        [25.0, 0.0]
    """
    found = _numbers(values, "values")
    reference = _numbers(baseline, "baseline")
    if reference.ndim != 1 or len(reference) == 0:
        raise ValueError(
            "baseline must have shape (S,), one number per metric. "
            f"Found shape {tuple(reference.shape)}."
        )
    size = len(reference)
    if found.ndim == 0 or found.shape[-1] != size:
        raise ValueError(
            f"values must have shape (..., {size}), as baseline has {size} metrics. "
            f"Found shape {tuple(found.shape)}; put metrics along the last dimension."
        )
    higher = _directions(higher_is_better, size)
    _check_names(values=values, baseline=baseline, higher_is_better=higher_is_better)
    _check_finite(found, "values")
    _check_finite(reference, "baseline")
    if (reference == 0).any():
        at = int((reference == 0).nonzero()[0])
        raise ValueError(
            f"baseline must not hold zeros, as Δm divides by it. Found 0 for metric {at}; "
            "leave that metric out, or use another baseline."
        )
    drop = (found - reference) / reference
    return 100 * torch.where(higher, -drop, drop).mean(dim=-1)


@with_cpu_default
def mean_rank(
    values: Numbers,
    higher_is_better: bool | Sequence[bool] | Tensor | _Array,
    *,
    ties: Ties = "average",
) -> Tensor:
    """Return the rank of each method, averaged over the metrics; 1 is best in every metric.

    Only methods in ``values`` are ranked. The paper does not rank single-task learning, so leave it
    out for comparisons with the paper's tables.

    Args:
        values: Metrics of the methods, of shape (methods, S). Infinite values rank first or last.
        higher_is_better: Direction of each metric, of length S, or one for all.
        ties: Ranks of methods with equal values. ``"average"``: the mean of the ranks that they
            occupy. ``"published"``: the best of these ranks where lower is better, and the worst
            where higher is better, as in the paper's MR columns.

    Returns:
        Mean ranks, float64 on the CPU, of shape (methods,).

    Raises:
        ValueError: Shapes do not match, names of metrics come in another order, a number is NaN,
            or ``ties`` is unknown.
        TypeError: An argument is not an array of real numbers, or ``higher_is_better`` not boolean.

    Example:
        >>> mean_rank([[0.1, 70.0], [0.2, 80.0], [0.3, 70.0]], [False, True]).tolist()
        [1.75, 1.5, 2.75]
        >>> mean_rank([[1.0], [1.0], [2.0]], False, ties="published").tolist()
        [1.0, 1.0, 3.0]
    """
    if ties not in get_args(Ties):
        raise ValueError(f"ties must be one of {', '.join(get_args(Ties))}. Found ties={ties!r}.")
    found = _numbers(values, "values")
    if found.ndim != 2 or found.numel() == 0:
        raise ValueError(
            "values must have shape (methods, S), one row per method and one column per metric. "
            f"Found shape {tuple(found.shape)}."
        )
    higher = _directions(higher_is_better, found.shape[1])
    _check_names(values=values, higher_is_better=higher_is_better)
    _check_no_nan(found, "values")
    score = torch.where(higher, -found, found)
    # better[m, s] is the number of methods ahead of method m in metric s; equal[m, s] the number
    # with the same value, including m itself.
    better = (score[None, :, :] < score[:, None, :]).sum(dim=1).double()
    equal = (score[None, :, :] == score[:, None, :]).sum(dim=1).double()
    if ties == "average":
        ranks = better + (equal + 1) / 2
    else:
        ranks = torch.where(higher, better + equal, better + 1)
    return ranks.mean(dim=1)


def _numbers(source: Numbers, name: str) -> Tensor:
    """Return ``source`` as a detached float64 tensor on the CPU."""
    try:
        tensor = _tensor(source)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(
            f"{name} must be numbers: a tensor, an array, or a nested list with rows of one "
            f"length. Found {type(source).__name__} ({error})."
        ) from error
    if tensor.is_complex():
        raise TypeError(f"{name} must be real numbers. Found dtype {tensor.dtype}.")
    return tensor.to(device="cpu", dtype=torch.float64)


def _tensor(source: object) -> Tensor:
    if isinstance(source, Tensor):
        return source.detach().to_dense()
    if hasattr(source, "filled") and bool(getattr(source, "mask", torch.zeros(1)).any()):
        # A masked array of NumPy would hand out the numbers below its mask.
        raise ValueError("some of its numbers are masked; leave that method or metric out")
    if hasattr(source, "__array__"):
        # torch cannot read pandas tables, but their arrays. They are copied, as sharing the memory
        # of a read-only array would warn, and torch reads no array that runs backward.
        return torch.tensor(source.__array__().copy())
    if isinstance(source, Sequence) and any(hasattr(item, "__array__") for item in source):
        return torch.stack([_tensor(item).to(device="cpu", dtype=torch.float64) for item in source])
    # Without a dtype torch would round Python floats to float32.
    return torch.tensor(source, dtype=torch.float64)


def _directions(source: bool | Sequence[bool] | Tensor | _Array, size: int) -> Tensor:
    """Return ``source`` as a boolean tensor of shape (size,)."""
    if isinstance(source, bool):
        return torch.full((size,), source)
    try:
        if isinstance(source, Tensor):
            tensor = source.detach().cpu()
        elif isinstance(source, Sequence):
            tensor = torch.tensor(source)
        else:
            tensor = torch.tensor(source.__array__().copy())
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise TypeError(_NOT_DIRECTIONS.format(source)) from error
    if tensor.dtype != torch.bool:
        raise TypeError(_NOT_DIRECTIONS.format(source))
    if tensor.ndim == 0:
        return tensor.expand(size)
    if tensor.shape != (size,):
        raise ValueError(
            f"higher_is_better must have one direction for each of the {size} metrics. "
            f"Found shape {tuple(tensor.shape)}."
        )
    return tensor


def _check_names(**sources: object) -> None:
    """Check that tables of pandas name their metrics in one order, as they are read by position."""
    first: tuple[str, list[object]] | None = None
    tables = [
        (argument, table)
        for argument, source in sources.items()
        for table in (source if isinstance(source, list | tuple) else [source])
    ]
    for argument, source in tables:
        # The metrics of a table are its columns, those of a series its index.
        labels = getattr(source, "columns", getattr(source, "index", None))
        names = [] if labels is None or callable(labels) else list(labels)
        if not names or not all(isinstance(name, str) for name in names):
            continue  # numbers of rows, not names
        if first is not None and names != first[1]:
            raise ValueError(
                f"{first[0]} and {argument} must name their metrics in one order, as these are "
                f"matched by position. Found {first[1]} and {names}."
            )
        first = first or (argument, names)


def _check_no_nan(numbers: Tensor, name: str) -> None:
    if numbers.isnan().any():
        at = tuple(numbers.isnan().nonzero()[0].tolist())
        raise ValueError(
            f"{name} must not hold NaN. Found NaN at index {at}; leave that method or metric out, "
            "or look at why the run has no number there."
        )


def _check_finite(numbers: Tensor, name: str) -> None:
    _check_no_nan(numbers, name)
    if numbers.isinf().any():
        at = tuple(numbers.isinf().nonzero()[0].tolist())
        raise ValueError(
            f"{name} must be finite. Found {float(numbers[at])} at index {at}; leave that method "
            "or metric out."
        )
