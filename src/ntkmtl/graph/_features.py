"""The argument ``features`` in all its forms, converted to one class."""

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
    """Return one view of the shared representation for each of k heads.

    With views, one call of the autograd engine yields the gradients of all tasks instead of one
    call per task, which saves time for small networks. Give each head its view, and pass the whole
    result to :meth:`ntkmtl.Balancer.backward` as ``features``.

    Args:
        features: The shared representation z, any shape.
        heads: Number of heads k.

    Returns:
        A sequence of k tensors that share z's memory.

    Raises:
        TypeError: z is not a tensor, or ``heads`` is not a whole number.
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
    if not isinstance(features, Tensor):
        raise TypeError(f"features must be a tensor, found {type(features)}")
    if isinstance(heads, bool) or not hasattr(heads, "__index__"):
        raise TypeError(f"heads must be a whole number, found {heads!r}")
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
        root: The representation that per-task views are views of; None without views.
        batches: Number of samples of each tensor. They differ only where each task has its own
            representation of its own samples.
        batch_dim: The dimension of the samples.
    """

    tensors: tuple[Tensor, ...]
    per_task: bool
    root: Tensor | None
    batches: tuple[int, ...]
    batch_dim: int

    @property
    def batch(self) -> int:
        """Number of samples; of the first tensor if numbers differ."""
        return self.batches[0]

    def sizes(self, tasks: int) -> tuple[int, ...]:
        """Return the number of samples of each of k tasks."""
        return self.batches if self.per_task else (self.batch,) * tasks

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
        """Move the samples' dimension to the front."""
        return gradient.movedim(self.batch_dim, 0) if self.batch_dim else gradient

    def select(self, tasks: Sequence[int]) -> Features:
        """Return the features of some tasks only; all tensors if every task reads all of them."""
        if not self.per_task or len(tasks) == len(self.tensors):
            return self
        kept = tuple(self.tensors[i] for i in tasks)
        batches = tuple(self.batches[i] for i in tasks)
        return Features(kept, True, self.root, batches, self.batch_dim)

    def joined(self) -> Features:
        """Replace views of one representation by that tensor, read by every task."""
        assert self.root is not None
        return Features((self.root,), False, None, self.batches[:1], self.batch_dim)

    @staticmethod
    def of(
        features: FeaturesLike,
        names: Sequence[str],
        batch_dim: int = 0,
        absent: Collection[int] = (),
    ) -> Features:
        """Convert what the user passed.

        Args:
            features: One tensor; a tuple of tensors that every task reads (multi-scale trunks); a
                list or a dict with one tensor per task (attention networks); or :class:`Branches`.
            names: Names of the k tasks.
            batch_dim: The dimension of the samples in all tensors. Its size must agree, unless each
                task has its own tensor.
            absent: Positions of tasks without a batch in this step. Their tensors may be None or
                missing from a dict; another task's tensor takes their place.

        Raises:
            TypeError: ``features`` or one of its entries has a wrong type.
            ValueError: The number of tensors, a name or a shape does not fit, or a tensor does not
                require a gradient.
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
        sizes = [_samples_of(tensor, batch_dim) for tensor in tensors]
        if len(set(sizes)) != 1 and not (per_task and root is None):
            raise ValueError(
                f"features must agree in the size of dimension {batch_dim}, the samples; found "
                f"{sorted(set(sizes))}"
            )
        return Features(tensors, per_task, root, tuple(sizes), batch_dim)


def _samples_of(tensor: Any, batch_dim: int) -> int:
    """Check one of the features, and return its number of samples.

    Raises:
        TypeError: It is not a tensor.
        ValueError: It does not require a gradient, is nested, or has no dimension ``batch_dim``.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"features must be tensors, found {type(tensor)}")
    if not tensor.requires_grad:
        raise ValueError(
            "features do not require a gradient, so no loss can be differentiated with respect to "
            "them; pass the trunk's output as it is, not detached and not made under "
            "torch.no_grad(). Where the trunk is frozen, nothing that is shared is trained, and "
            "there is nothing to balance"
        )
    if tensor.is_nested:
        raise ValueError(
            "features are a nested tensor, whose gradients have no single shape to take a kernel "
            "of: leave features out and use source='auto' (method 'ntkmtl-auto') or "
            "source='exact', or pass a padded tensor that every path passes"
        )
    if not -tensor.ndim <= batch_dim < tensor.ndim:
        raise ValueError(
            f"batch_dim={batch_dim} does not exist in features of shape {tuple(tensor.shape)}"
        )
    return tensor.shape[batch_dim]
