"""The contract of a weighting: a map from the kernel or the losses to k task weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from ntkmtl._device import with_cpu_default
from ntkmtl.kernel import ExtendedNTK
from ntkmtl.weighting._method import MethodSpec, SearchRange

__all__ = [
    "DEPENDENT",
    "GramianWeighting",
    "LossWeighting",
    "Requires",
    "Weighting",
    "balanced_gramian",
    "check_positive",
]

# Below this share of the largest eigenvalue of their cosines, gradients count as linearly
# dependent: what rounding in float32 leaves of a difference points anywhere.
DEPENDENT = 1e-6

Requires = Literal["losses", "eigenvalues", "gramian", "kernel", "jacobian"]


class Weighting(ABC):
    """Maps what is known of k tasks to k weights.

    A weighting never touches a model or autograd. One that keeps a state keeps it per task, by the
    task's position, so that a task without labels this time is simply not among ``tasks``.

    Attributes:
        requires: What :meth:`weigh` looks at: the losses; the largest eigenvalue of each diagonal
            block; the Gramian; all blocks between all mini-batches, which hold products of
            gradients of independent samples as well; or, by :meth:`combine` instead of
            :meth:`weigh`, the k gradients entry by entry.
        takes_logarithms: Whether it is a method of log losses already.
        depends_on_order: Whether the order of the tasks is a part of the method.
        needs_positive_losses: Whether a negative loss is refused.
        tracks_gradients: Whether it averages gradients over steps, entry by entry, which makes
            sense for parameters only: features of the next batch belong to other samples.
        needs_after_step: Whether :meth:`after_step` wants the losses after the update.
        needs_scores: Whether :meth:`observe` wants to be told after each epoch how well each task
            performs against its single-task network.
        has_head_objective: Whether each head also descends along an objective of its own, made of
            the gradient that it sends to the trunk; see :meth:`head_objective`.
        balancer_defaults: Options of :class:`ntkmtl.Balancer` that the method's own published form
            uses: ``source``, ``pooling``, ``minibatches``, ``weight_heads`` and ``log_losses``.
            What a user gives goes first.
        search_space: What ``ntkmtl tune`` searches beside the learning rate.
        name: The name that :func:`ntkmtl.weighting.create` made it by, None if the class was
            called.
    """

    name: str | None = None
    requires: ClassVar[Requires]
    needs_after_step: ClassVar[bool] = False
    needs_scores: ClassVar[bool] = False
    takes_logarithms: ClassVar[bool] = False
    needs_positive_losses: ClassVar[bool] = False
    depends_on_order: ClassVar[bool] = False
    has_head_objective: ClassVar[bool] = False
    tracks_gradients: ClassVar[bool] = False
    balancer_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    search_space: ClassVar[tuple[SearchRange, ...]] = ()
    _specs: ClassVar[tuple[MethodSpec, ...]] = ()

    @property
    def requires_cross_terms(self) -> bool:
        """Whether blocks between tasks are looked at; without them a kernel is cheaper."""
        return self.requires != "eigenvalues"

    @with_cpu_default
    def __call__(
        self,
        kernel: ExtendedNTK | None = None,
        *,
        losses: Tensor | None = None,
        tasks: Tensor | None = None,
    ) -> Tensor:
        """Return the weights.

        Args:
            kernel: The extended NTK of the tasks, for methods that read one.
            losses: Their losses, shape (k,), for methods that read them.
            tasks: Their positions among all tasks, int64 of shape (k,); 0..k-1 if None.

        Returns:
            float64 weights of shape (k,).

        Raises:
            ValueError: What the method reads is missing.
        """
        if self.requires == "losses":
            if losses is None:
                raise ValueError(f"{type(self).__name__} reads losses: pass losses of shape (k,)")
            count = losses.shape[0]
            device = losses.device
        else:
            if kernel is None:
                raise ValueError(f"{type(self).__name__} reads the kernel: pass an ExtendedNTK")
            count = kernel.tasks
            device = kernel.blocks.device
        if losses is not None:
            losses = losses.detach().to(torch.float64)
        if tasks is None:
            tasks = torch.arange(count, device=device)
        return self.weigh(kernel, losses, tasks)

    def name_tasks(self, names: Sequence[str]) -> None:
        """Be told the names of all tasks, by position; nothing by default.

        Raises:
            ValueError: What the method was given by name is of other tasks.
        """

    @abstractmethod
    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        """Return the float64 weights of the tasks at positions ``tasks``. See :meth:`__call__`."""

    def combine(
        self, jacobian: Tensor, losses: Tensor | None = None, tasks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the combined gradient, for methods that read the k gradients entry by entry.

        Args:
            jacobian: Gradients of the tasks with labels, shape (k, P).
            losses: Their losses, float64 of shape (k,), for methods that read them too.
            tasks: Their positions among all tasks; 0..k-1 if None.

        Returns:
            The combined gradient, shape (P,), and k weights to report, float64.

        Raises:
            TypeError: The method is a weighting of whole gradients.
        """
        raise TypeError(f"{type(self).__name__} weighs whole gradients; it combines none")

    def head_objective(self, own: Tensor, joint: Tensor) -> Tensor:
        """Return what a head minimizes beside its loss, where :attr:`has_head_objective` says so.

        Args:
            own: The task's gradient with respect to the features, which depends on the head.
            joint: The weighted sum of all tasks' gradients, a constant of the same shape.

        Returns:
            A scalar.

        Raises:
            TypeError: The method has no such objective.
        """
        raise TypeError(f"{type(self).__name__} has no objective for heads")

    def head_update(self, plain: Sequence[Tensor], guiding: Sequence[Tensor]) -> list[Tensor]:
        """Combine a head's gradients of its loss and of :meth:`head_objective`.

        Args:
            plain: One gradient per parameter of the head, of its loss.
            guiding: Likewise, of the objective.

        Returns:
            What is added to ``.grad``.

        Raises:
            TypeError: The method has no such objective.
        """
        raise TypeError(f"{type(self).__name__} has no objective for heads")

    def prepare(self, tasks: int, device: torch.device) -> None:
        """Make the state for a number of tasks. Called before the first step; may be called again.

        Args:
            tasks: Number of all tasks.
            device: Where the losses are.
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield what the method learns by the user's optimizer."""
        return iter(())

    def accumulate(self, losses: Tensor, tasks: Tensor, scale: float) -> None:
        """Add the gradients of :meth:`parameters` to their ``.grad``, times ``scale``."""

    def after_step(self, losses: Tensor, tasks: Tensor) -> None:
        """Look at the losses of the same batch after the update, float64 of shape (k,)."""

    def observe(self, scores: Sequence[float] | Tensor) -> None:
        """Take over how well each task performs, where :attr:`needs_scores` says so.

        :func:`ntkmtl.bench.training.train` calls it after each epoch, before :meth:`end_epoch`.

        Args:
            scores: Delta-m of every task against its single-task network in percent, in the order
                of the tasks; lower is better. NaN leaves a task's score as it is.

        Raises:
            TypeError: The method takes no scores.
        """
        raise TypeError(f"{type(self).__name__} takes no scores")

    def end_epoch(self) -> None:
        """Note that an epoch is over."""

    def needs(self) -> Iterator[tuple[str, str]]:
        """Yield what the method learns from besides calls of ``backward``, and how to give it.

        Example:
            >>> from ntkmtl.weighting import create
            >>> [what for what, _ in create("famo").needs()]
            ['after_step']
        """
        if self.needs_after_step:
            yield (
                "after_step",
                "call balancer.after_step(losses) after optimizer.step(), with the losses of the "
                "same batch",
            )
        if next(self.parameters(), None) is not None:
            yield (
                "optimizer",
                "give balancer.parameters() to the optimizer beside the model's parameters",
            )
        if type(self).end_epoch is not Weighting.end_epoch:
            yield (
                "end_epoch",
                "call balancer.end_epoch() after each epoch (no matter where the first epoch is "
                "simply not over yet)",
            )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next weights depend on besides the input.

        The tensors are copies: methods change theirs in place, and a state that was taken must not
        follow them.
        """
        return _copied(self._get_state())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a copy of what :meth:`state_dict` returned.

        Raises:
            ValueError: The state does not belong to this method.
        """
        expected, found = set(self._get_state()), set(state)
        if expected != found:
            raise ValueError(
                f"the state does not belong to {type(self).__name__}: it holds "
                f"{sorted(found)}, expected {sorted(expected)}"
            )
        self._set_state(_copied(state))

    def _get_state(self) -> dict[str, Any]:
        """Return the state, by the same keys at all times; for methods that keep one."""
        return {}

    def _set_state(self, state: dict[str, Any]) -> None:
        """Take over a state with the keys of :meth:`_get_state`.

        Raises:
            ValueError: It is of other tasks.
        """

    def __repr__(self) -> str:
        settings = {k: v for k, v in vars(self).items() if k[0] != "_" and k != "name"}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in settings.items())})"


class LossWeighting(Weighting):
    """A weighting that reads the losses only.

    Its weights are the effective ones, the derivatives of its total with respect to each loss.

    Example:
        >>> import torch
        >>> from ntkmtl import Balancer
        >>> class Inverse(LossWeighting):
        ...     def of_losses(self, losses, tasks):
        ...         return 1 / losses
        >>> x = torch.ones(1, requires_grad=True)
        >>> Balancer(Inverse()).backward([2 * x.sum(), 4 * x.sum()]).weights
        tensor([0.5000, 0.2500])
    """

    requires: ClassVar[Requires] = "losses"

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert losses is not None
        return self.of_losses(losses, tasks)

    @abstractmethod
    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        """Return float64 weights of shape (k,) from float64 losses of shape (k,)."""


class GramianWeighting(Weighting):
    """A weighting that reads the Gramian of the k gradients."""

    requires: ClassVar[Requires] = "gramian"

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        return self.of_gramian(kernel.gramian())

    @abstractmethod
    def of_gramian(self, gramian: Tensor) -> Tensor:
        """Return float64 weights of shape (k,) from a float64 Gramian of shape (k, k)."""


def balanced_gramian(gramian: Tensor) -> tuple[Tensor, float]:
    """Divide a Gramian by the mean of its diagonal.

    Solvers have absolute tolerances; gradients have no absolute scale.

    Returns:
        The quotient, and the divisor: 1 if the Gramian is zero.

    Example:
        >>> import torch
        >>> balanced_gramian(torch.diag(torch.tensor([1e-3, 3e-3], dtype=torch.float64)))
        (tensor([[0.5000, 0.0000],
                [0.0000, 1.5000]], dtype=torch.float64), 0.002)
    """
    mean = float(gramian.diagonal().mean())
    if mean <= 0.0:
        return gramian, 1.0
    return gramian / mean, mean


def check_positive(name: str, value: float, *, zero: bool = False) -> float:
    """Return ``value`` if it is a positive finite number.

    Raises:
        TypeError: It is a string or a truth value.
        ValueError: It is not positive, or not finite.
    """
    if isinstance(value, str | bool):
        raise TypeError(f"{name} must be a number. Found {name}={value!r}.")
    value = float(value)
    if not (value > 0 or (zero and value == 0)) or value == float("inf"):
        kind = "not negative" if zero else "positive"
        raise ValueError(f"{name} must be {kind} and finite. Found {name}={value}.")
    return value


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.detach().clone() if isinstance(value, Tensor) else value
        for key, value in state.items()
    }
