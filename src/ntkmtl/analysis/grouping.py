"""Groups of tasks that help each other, from the affinity between their gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ntkmtl.errors import missing_extra

__all__ = ["Grouping", "group_tasks"]


@dataclass(frozen=True)
class Grouping:
    """A division of tasks into groups.

    Attributes:
        groups: Ascending positions of the tasks of each group; groups are ordered by their first
            task.
        order: All positions in the order of the tree's leaves, which puts similar tasks next to
            each other, for heat maps.
        within: For each group the mean affinity between its tasks; NaN for a group of one.
        between: Mean affinity between tasks of different groups; NaN for a single group.
    """

    groups: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    within: tuple[float, ...]
    between: float

    def names(self, tasks: Sequence[str]) -> list[list[str]]:
        """Return the groups by the names of their tasks.

        Args:
            tasks: Names of the k tasks.

        Raises:
            ValueError: There are not k names.
        """
        if len(tasks) != len(self.order):
            raise ValueError(f"{len(self.order)} tasks were grouped, found {len(tasks)} names")
        return [[tasks[position] for position in group] for group in self.groups]


def group_tasks(affinity: Tensor, groups: int | None = None, *, threshold: float = 0.0) -> Grouping:
    """Group tasks by hierarchical clustering of their affinity.

    Uses average linkage with distance ``1 - affinity``: the two groups with the largest mean
    affinity between their tasks are merged first. Without a number of groups, merging stops when
    the mean affinity of every two groups is below ``threshold``. With the default, groups that
    conflict on average are not merged.

    Args:
        affinity: Cosines between the tasks' gradients, in [-1, 1], symmetric, shape (k, k): of one
            kernel (:meth:`ExtendedNTK.affinity`) or, less noisy, averaged over a run
            (:meth:`Recorder.mean_affinity`).
        groups: Number of groups, from 1 to k; None to decide by ``threshold``.
        threshold: Smallest mean affinity at which groups are merged; ignored with ``groups``.

    Returns:
        The groups.

    Raises:
        ValueError: The matrix is not square, not symmetric, holds NaN or values out of range, or
            ``groups`` is not in 1..k.
        TypeError: The matrix is not a tensor of real numbers, or ``groups`` is not a whole number.
        MissingExtraError: scipy is not installed.

    Example:
        >>> import torch
        >>> affinity = torch.tensor([[1.0, -0.5, 0.8], [-0.5, 1.0, -0.1], [0.8, -0.1, 1.0]])
        >>> group_tasks(affinity).groups
        ((0, 2), (1,))
        >>> group_tasks(affinity, 1).names(["u", "mu", "h"])
        [['u', 'mu', 'h']]
    """
    try:
        from scipy.cluster import hierarchy
        from scipy.spatial.distance import squareform
    except ImportError as error:
        raise missing_extra("grouping of tasks", "bench", error) from error

    values = _checked(affinity)
    k = len(values)
    if groups is not None and (isinstance(groups, bool) or not hasattr(groups, "__index__")):
        raise TypeError(f"groups must be a whole number, found {groups!r}")
    if groups is not None and not 1 <= groups <= k:
        raise ValueError(f"groups must be in 1..{k}, the number of tasks. Found {groups}.")
    if not -1 <= threshold <= 1:
        raise ValueError(f"threshold must be in [-1, 1], found {threshold}")
    if k == 1:
        return Grouping(((0,),), (0,), (math.nan,), math.nan)
    distance = (1.0 - values).clamp_min(0.0).fill_diagonal_(0.0)
    tree = hierarchy.linkage(
        squareform(distance.numpy(), checks=False), method="average", optimal_ordering=True
    )
    order = tuple(hierarchy.leaves_list(tree).tolist())
    if groups is not None:
        # Cut by the number of merges, not by height: with ties no height may give this number.
        labels = hierarchy.cut_tree(tree, n_clusters=groups)[:, 0].tolist()
    else:
        labels = hierarchy.fcluster(tree, 1.0 - threshold, criterion="distance").tolist()
    members: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        members.setdefault(label, []).append(position)
    found = tuple(tuple(group) for group in members.values())
    same = torch.zeros(k, k, dtype=torch.bool)
    for group in found:
        same[torch.tensor(group)[:, None], torch.tensor(group)[None, :]] = True
    return Grouping(
        groups=found,
        order=order,
        within=tuple(_mean_pair(values, group) for group in found),
        between=float(values[~same].mean()),
    )


def _mean_pair(values: Tensor, group: tuple[int, ...]) -> float:
    index = torch.tensor(group)
    block = values[index[:, None], index[None, :]]
    pairs = len(group) * (len(group) - 1)
    return float((block.sum() - block.trace()) / pairs) if pairs else math.nan


def _checked(affinity: Tensor) -> Tensor:
    if not isinstance(affinity, Tensor) or affinity.is_complex():
        raise TypeError(
            f"affinity must be a tensor of real numbers, as kernel.affinity() is; found "
            f"{type(affinity)}"
        )
    if affinity.ndim != 2 or affinity.shape[0] != affinity.shape[1] or not len(affinity):
        raise ValueError(f"affinity must have shape (k, k), found {tuple(affinity.shape)}")
    values = affinity.detach().to("cpu", torch.float64).clone()
    unknown = values.isnan().nonzero().tolist()
    if unknown:
        i, j = unknown[0]
        raise ValueError(
            f"affinity of tasks {i} and {j} is NaN: they were never compared. Record longer, or "
            "take the tasks out that never have labels together"
        )
    # Only rounding may take averages of cosines out of the range.
    if bool((values.abs() > 1 + 1e-6).any()):
        raise ValueError(
            f"affinity must lie in [-1, 1], found {float(values.min())} to {float(values.max())}"
        )
    if not torch.allclose(values, values.T, rtol=0.0, atol=1e-6):
        raise ValueError("affinity must be symmetric")
    return (values + values.T) / 2
