"""What a user may pass as ``features``: one shape for all of it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Branches", "Features", "FeaturesLike", "branch"]


class Branches(Sequence[Tensor]):
    """Views of one shared representation, one for each head. Made by :func:`branch`.

    Args:
        root: The representation.
        views: The views, as many as there are heads.
    """

    def __init__(self, root: Tensor, views: tuple[Tensor, ...]) -> None:
        self.root = root
        self.views = views

    def __getitem__(self, index: Any) -> Any:
        return self.views[index]

    def __len__(self) -> int:
        return len(self.views)

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.views)

    def __repr__(self) -> str:
        return f"Branches(k={len(self)}, shape={tuple(self.root.shape)})"


def branch(features: Tensor, heads: int) -> Branches:
    """Give each of k heads its own view of the shared representation.

    With views, one call of the autograd engine yields the gradient of every task at once, instead
    of one call per task, which matters for small networks. Pass the result to the heads one by one
    and to :meth:`ntkmtl.Balancer.backward` as ``features``.

    Args:
        features: The shared representation z, any shape.
        heads: Number of heads k.

    Returns:
        A sequence of k tensors that share z's memory.

    Raises:
        ValueError: ``heads`` is not positive, or z does not require a gradient.

    Example:
        >>> import torch, ntkmtl
        >>> trunk, heads = torch.nn.Linear(3, 4), [torch.nn.Linear(4, 1) for _ in range(2)]
        >>> z = ntkmtl.branch(trunk(torch.randn(5, 3)), 2)
        >>> losses = [head(view).square().mean() for head, view in zip(heads, z)]
        >>> out = ntkmtl.Balancer("ntkmtl-sr", minibatches=1).backward(losses, features=z)
        >>> out.weights.shape
        torch.Size([2])
    """
    if heads < 1:
        raise ValueError(f"heads must be at least 1, found {heads}")
    if not features.requires_grad:
        raise ValueError(
            "features do not require a gradient: branch the output of the trunk while gradients "
            "are enabled, not a detached tensor"
        )
    return Branches(features, tuple(features.view_as(features) for _ in range(heads)))


FeaturesLike = (
    Tensor | tuple[Tensor, ...] | Sequence[Tensor | None] | Mapping[str, Tensor | None] | Branches
)


@dataclass(frozen=True)
class Features:
    """Where the trunk ends and the heads begin.

    Attributes:
        tensors: What to differentiate with respect to.
        per_task: ``tensors[i]`` belongs to task i alone (views of one representation, or one
            representation per task); otherwise all tasks read all of them.
        root: The representation that per-task views are views of, None if there is none.
        batches: Number of samples of each tensor; all the same, unless each task has a
            representation of its own, of samples of its own.
        batch_dim: The dimension of the samples.
    """

    tensors: tuple[Tensor, ...]
    per_task: bool
    root: Tensor | None
    batches: tuple[int, ...]
    batch_dim: int

    @property
    def batch(self) -> int:
        """Number of samples, of the first tensor where that differs."""
        return self.batches[0]

    @property
    def uneven(self) -> bool:
        """Whether tasks have batches of different sizes."""
        return len(set(self.batches)) > 1

    @property
    def separate(self) -> bool:
        """One representation per task: blocks between tasks do not exist."""
        return self.per_task and self.root is None

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Where the backward pass of the trunk starts."""
        return self.tensors if self.root is None else (self.root,)

    def rows(self, gradient: Tensor) -> Tensor:
        """Bring samples to dimension 0."""
        return gradient.movedim(self.batch_dim, 0) if self.batch_dim else gradient

    def select(self, tasks: Sequence[int]) -> Features:
        """Keep the tensors of some tasks only, where tasks have their own."""
        if not self.per_task or len(tasks) == len(self.tensors):
            return self
        kept = tuple(self.tensors[i] for i in tasks)
        batches = tuple(self.batches[i] for i in tasks)
        return Features(kept, True, self.root, batches, self.batch_dim)

    def joined(self) -> Features:
        """Take views of one representation as that one tensor, which every task reads."""
        assert self.root is not None
        return Features((self.root,), False, None, self.batches[:1], self.batch_dim)

    @staticmethod
    def of(
        features: FeaturesLike,
        names: Sequence[str],
        batch_dim: int = 0,
        absent: Collection[int] = (),
    ) -> Features:
        """Bring what the user passed into one shape.

        Args:
            features: One tensor; a tuple of tensors that every task reads (multi-scale trunks); a
                list or a dict with one tensor per task (attention networks); or :class:`Branches`.
            names: Names of the k tasks.
            batch_dim: The dimension of the samples, the same in all tensors. Its size is the same
                as well, unless each task has a tensor of its own.
            absent: Positions of tasks without a batch this time, whose own tensors may be None, or
                left out of a dict. Another task's stands in their place.

        Raises:
            TypeError: Something that is not a tensor is among them.
            ValueError: Their number, a name or a shape does not fit, or one does not require a
                gradient.
        """
        k = len(names)
        root = None
        per_task = True
        if isinstance(features, Tensor):
            tensors: tuple[Any, ...] = (features,)
            per_task = False
        elif isinstance(features, Branches):
            tensors, root = features.views, features.root
        elif isinstance(features, Mapping):
            wanted = {name for i, name in enumerate(names) if i not in absent}
            if not wanted <= set(features) <= set(names):
                raise ValueError(
                    f"features are given for {sorted(features)}, but the tasks are "
                    f"{sorted(names)}; give one tensor per task"
                )
            tensors = tuple(features.get(name) for name in names)
        elif isinstance(features, (tuple, list)):
            tensors = tuple(features)
            per_task = isinstance(features, list)
        else:
            raise TypeError(
                "features must be a tensor, a tuple of tensors that all tasks share, a list or "
                f"dict of one tensor per task, or what branch() returned; found {type(features)}"
            )
        if per_task and len(tensors) != k:
            raise ValueError(
                f"features holds {len(tensors)} tensors for {k} tasks; give one per task in the "
                "order of the losses, or a tuple if every task reads all of them"
            )
        if absent and per_task:
            standing = next((t for t in tensors if t is not None), None)
            tensors = tuple(
                standing if t is None and i in absent else t for i, t in enumerate(tensors)
            )
        if not tensors:
            raise ValueError("features is empty; give at least one tensor")
        sizes = []
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise TypeError(f"features must be tensors, found {type(tensor)}")
            if not tensor.requires_grad:
                raise ValueError(
                    "features do not require a gradient, so no loss can be differentiated with "
                    "respect to them; pass the trunk's output as it is, not detached and not made "
                    "under torch.no_grad(). Where the trunk is frozen, nothing that is shared is "
                    "trained, and there is nothing to balance"
                )
            if not -tensor.ndim <= batch_dim < tensor.ndim:
                raise ValueError(
                    f"batch_dim={batch_dim} does not exist in features of shape "
                    f"{tuple(tensor.shape)}"
                )
            sizes.append(tensor.shape[batch_dim])
        if len(set(sizes)) != 1 and not (per_task and root is None):
            raise ValueError(
                f"features must agree in the size of dimension {batch_dim}, the samples; found "
                f"{sorted(set(sizes))}"
            )
        return Features(tensors, per_task, root, tuple(sizes), batch_dim)
