"""The contract of a weighting: a map from the kernel or the losses to k task weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, get_args

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
    "check_jacobian",
    "check_known",
    "check_positive",
    "check_tasks",
    "require_known_input",
]

# Gradients count as linearly dependent if an eigenvalue of their matrix of cosines is below this
# share of the largest: the float32 difference of nearly parallel gradients is noise.
DEPENDENT = 1e-6

Requires = Literal["losses", "eigenvalues", "gramian", "kernel", "jacobian"]


class Weighting(ABC):
    """A map from the kernel or the losses of k tasks to k weights.

    A weighting does not use a model or autograd. A weighting with a state keeps it by the tasks'
    positions, so that tasks without labels can be absent from ``tasks``.

    Attributes:
        requires: What :meth:`weigh` reads. ``"losses"``; ``"eigenvalues"``, the largest of each
            diagonal block; ``"gramian"``; or ``"kernel"``, all blocks between all mini-batches,
            with products of gradients of independent samples. ``"jacobian"``: the method has
            :meth:`combine` instead of :meth:`weigh` and reads the k gradients entry by entry.
        takes_logarithms: Whether the method takes logarithms of the losses itself.
        depends_on_order: Whether the result depends on the order of the tasks.
        needs_positive_losses: Whether the method raises for negative losses.
        tracks_gradients: Whether it averages gradients over steps, entry by entry. This is possible
            for parameters only, as features of the next batch belong to other samples.
        needs_after_step: Whether the method needs :meth:`after_step`.
        needs_scores: Whether the method needs :meth:`observe` after each epoch.
        has_head_objective: Whether each head also minimizes an objective of the gradient that it
            sends to the trunk; see :meth:`head_objective`.
        balancer_defaults: Defaults of :class:`ntkmtl.Balancer` options in the method's published
            form: ``source``, ``pooling``, ``minibatches``, ``weight_heads`` and ``log_losses``.
        search_space: Settings that ``ntkmtl tune`` searches besides the learning rate.
        name: The name passed to :func:`ntkmtl.weighting.create`; None if the class was called.
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
        """Whether the method reads blocks between tasks. Without them a kernel is cheaper."""
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
            kernel: The extended NTK of the tasks, for methods that read a kernel.
            losses: Their losses, shape (k,), for methods that read losses.
            tasks: Their positions among all tasks, int64 of shape (k,); None for 0..k-1.

        Returns:
            float64 weights of shape (k,).

        Raises:
            ValueError: The kernel or the losses that the method reads are missing, not finite, or
                of another number of tasks; the method keeps a state for fewer tasks than there
                are; or it returned other than k weights.
            TypeError: An argument, or what the method returned, has a wrong type.
        """
        label = type(self).__name__
        if kernel is not None and not isinstance(kernel, ExtendedNTK):
            raise TypeError(
                f"kernel must be an ntkmtl.ExtendedNTK, found {type(kernel)}"
                + ("; losses are passed by name, losses=..." if isinstance(kernel, Tensor) else "")
            )
        if losses is not None and (not isinstance(losses, Tensor) or losses.is_complex()):
            raise TypeError(f"losses must be a tensor of k real numbers, found {losses!r}")
        if self.requires == "losses":
            if losses is None:
                raise ValueError(f"{label} reads losses: pass losses of shape (k,)")
            if losses.ndim != 1 or not len(losses):
                raise ValueError(f"losses must have shape (k,), found {tuple(losses.shape)}")
            count, device = len(losses), losses.device
        else:
            if kernel is None:
                raise ValueError(f"{label} reads the kernel: pass an ExtendedNTK")
            count, device = kernel.tasks, kernel.blocks.device
            if losses is not None and losses.shape != (count,):
                raise ValueError(
                    f"losses must have shape ({count},), as the kernel has {count} tasks; found "
                    f"{tuple(losses.shape)}"
                )
            _require_finite(kernel.values if kernel.has_all_blocks else kernel.blocks, "kernel")
        if losses is not None:
            losses = losses.detach().to(torch.float64, copy=True)  # a method may change it in place
            if not all(map(math.isfinite, losses.tolist())):  # of a few, faster than by a tensor
                _require_finite(losses, "losses")
        tasks = check_tasks(tasks, count, device)
        try:
            weights = self.weigh(kernel, losses, tasks)
        except IndexError:
            if (known := _tasks_of_state(self)) is not None:
                check_known(tasks, known, label)
            raise
        return _checked(weights, count, label)

    def name_tasks(self, names: Sequence[str]) -> None:
        """Receive the names of all tasks, in order. Does nothing by default.

        Args:
            names: The names.

        Raises:
            ValueError: A setting of the method names a task that does not exist.
        """

    @abstractmethod
    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        """Return the float64 weights of the tasks at positions ``tasks``, shape (k,).

        Args:
            kernel: The extended NTK of these tasks; None if it was not given.
            losses: Their losses, float64 of shape (k,); None if they were not given.
            tasks: Their positions among all tasks, int64 of shape (k,).
        """

    def combine(
        self, jacobian: Tensor, losses: Tensor | None = None, tasks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the combined gradient, for methods that read the k gradients entry by entry.

        Args:
            jacobian: Gradients of the tasks with labels, shape (k, P).
            losses: Their losses, float64 of shape (k,), for methods that read them too.
            tasks: Their positions among all tasks; None for 0..k-1.

        Returns:
            The combined gradient, shape (P,), and k weights to report, float64.

        Raises:
            TypeError: The method does not combine gradients, but computes weights; or an argument
                has a wrong type.
            ValueError: A shape is wrong.
        """
        raise TypeError(f"{type(self).__name__} weighs whole gradients; it combines none")

    def head_objective(self, own: Tensor, joint: Tensor) -> Tensor:
        """Return what a head minimizes besides its loss; for :attr:`has_head_objective`.

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
            plain: Gradients of the loss, one per parameter of the head.
            guiding: Gradients of the objective, one per parameter of the head.

        Returns:
            The gradients to add to ``.grad``.

        Raises:
            TypeError: The method has no such objective.
        """
        raise TypeError(f"{type(self).__name__} has no objective for heads")

    def prepare(self, tasks: int, device: torch.device) -> None:
        """Create the state. Called before the first step, and possibly again later.

        Args:
            tasks: Number of all tasks.
            device: Device of the losses.
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that the user's optimizer updates."""
        return iter(())

    def accumulate(self, losses: Tensor, tasks: Tensor, scale: float) -> None:
        """Add the gradients of :meth:`parameters` to their ``.grad``. Does nothing by default.

        Args:
            losses: The losses, float64 of shape (k,).
            tasks: Their positions among all tasks.
            scale: Factor of these gradients: 1 / m if m batches make one step.
        """

    def after_step(self, losses: Tensor, tasks: Tensor) -> None:
        """Receive the losses of the same batch after the update. Does nothing by default.

        Args:
            losses: The losses, float64 of shape (k,).
            tasks: Their positions among all tasks.
        """

    def observe(self, scores: Sequence[float] | Tensor) -> None:
        """Receive how well each task performs; for :attr:`needs_scores`.

        :func:`ntkmtl.bench.training.train` calls it after each epoch, before :meth:`end_epoch`.

        Args:
            scores: Delta-m of each task relative to its single-task network in percent, in the
                order of the tasks; lower is better. NaN keeps a task's last score.

        Raises:
            TypeError: The method does not use scores.
        """
        raise TypeError(f"{type(self).__name__} takes no scores")

    def end_epoch(self) -> None:
        """Receive that an epoch is over."""

    def needs(self) -> Iterator[tuple[str, str]]:
        """Yield pairs: a call that the method needs besides ``backward``, and how to make it.

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
                "call balancer.end_epoch() after each epoch (ignore this if the first epoch is not "
                "over yet)",
            )

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next weights depend on besides the input.

        Tensors are copied, as methods change their own tensors in place.
        """
        return _copied(self._get_state())

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a copy of a state from :meth:`state_dict`.

        Args:
            state: What :meth:`state_dict` of the same method returned.

        Raises:
            TypeError: It is not a dict.
            ValueError: The state does not belong to this method.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"a state of {type(self).__name__} is a dict, found {type(state)}")
        expected, found = set(self._get_state()), set(state)
        if expected != found:
            raise ValueError(
                f"the state does not belong to {type(self).__name__}: it holds "
                f"{sorted(found)}, expected {sorted(expected)}"
            )
        self._set_state(_copied(state))

    def _get_state(self) -> dict[str, Any]:
        """Return the state, for methods that have one. The keys must always be the same."""
        return {}

    def _set_state(self, state: dict[str, Any]) -> None:
        """Restore a state with the keys of :meth:`_get_state`.

        Raises:
            ValueError: The state is for other tasks.
        """

    def __repr__(self) -> str:
        settings = {k: v for k, v in vars(self).items() if k[0] != "_" and k != "name"}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in settings.items())})"


class LossWeighting(Weighting):
    """A weighting that reads the losses only.

    Its weights are effective weights: the derivatives of its total with respect to each loss.

    Example:
        >>> import torch
        >>> class Inverse(LossWeighting):
        ...     def of_losses(self, losses, tasks):
        ...         return 1 / losses
        >>> Inverse()(losses=torch.tensor([0.5, 4.0]))
        tensor([2.0000, 0.2500], dtype=torch.float64)
    """

    requires: ClassVar[Requires] = "losses"

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert losses is not None
        return self.of_losses(losses, tasks)

    @abstractmethod
    def of_losses(self, losses: Tensor, tasks: Tensor) -> Tensor:
        """Return the weights, float64 of shape (k,).

        Args:
            losses: The losses, float64 of shape (k,).
            tasks: Their positions among all tasks, int64 of shape (k,).
        """


class GramianWeighting(Weighting):
    """A weighting that reads the Gramian of the k gradients.

    Example:
        >>> import torch
        >>> class InverseNorm(GramianWeighting):
        ...     def of_gramian(self, gramian):
        ...         return 1 / gramian.diagonal().sqrt()
        >>> kernel = ExtendedNTK(torch.diag(torch.tensor([4.0, 1.0])).reshape(2, 1, 2, 1))
        >>> InverseNorm()(kernel)
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """

    requires: ClassVar[Requires] = "gramian"

    def weigh(self, kernel: ExtendedNTK | None, losses: Tensor | None, tasks: Tensor) -> Tensor:
        assert kernel is not None
        return self.of_gramian(kernel.gramian())

    @abstractmethod
    def of_gramian(self, gramian: Tensor) -> Tensor:
        """Return float64 weights of shape (k,) from ``gramian``, float64 of shape (k, k)."""


def balanced_gramian(gramian: Tensor) -> tuple[Tensor, float]:
    """Divide a Gramian by the mean of its diagonal.

    Used before solvers with absolute tolerances, as gradients have no absolute scale.

    Returns:
        The quotient and the divisor, which is 1 if the Gramian is zero.

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
        TypeError: The value is a string or a boolean.
        ValueError: The value is not positive, or not finite.
    """
    if isinstance(value, str | bool):
        raise TypeError(f"{name} must be a number. Found {name}={value!r}.")
    value = float(value)
    if not (value > 0 or (zero and value == 0)) or value == float("inf"):
        kind = "not negative" if zero else "positive"
        raise ValueError(f"{name} must be {kind} and finite. Found {name}={value}.")
    return value


def require_known_input(kind: type[Weighting]) -> None:
    """Check that a class says what its weights are made of.

    Raises:
        TypeError: Its ``requires`` is missing, or unknown.
    """
    found = getattr(kind, "requires", None)
    if found not in get_args(Requires):
        raise TypeError(
            f"{kind.__name__}.requires must be one of {', '.join(get_args(Requires))}; found "
            f"{found!r}. Derive from LossWeighting or GramianWeighting, which set it, or set it"
        )


def _checked(weights: Any, count: int, label: str) -> Tensor:
    """Return a method's weights as float64 without a gradient.

    Raises:
        TypeError: They are not a tensor of real numbers.
        ValueError: They are not one for each task.
    """
    if not isinstance(weights, Tensor) or weights.is_complex():
        raise TypeError(f"{label} must return a tensor of real weights, returned {weights!r}")
    if weights.shape != (count,):
        raise ValueError(
            f"{label} must return one weight for each of the {count} tasks, of shape ({count},); "
            f"returned shape {tuple(weights.shape)}"
        )
    return weights.detach().to(torch.float64, copy=True)


def check_tasks(tasks: Any, count: int, device: torch.device | None = None) -> Tensor:
    """Return the positions of tasks among all tasks; 0..k-1 for None.

    Args:
        tasks: What was given for them.
        count: Number of tasks k.
        device: Device of the positions made for None.

    Raises:
        ValueError: They are not an int64 tensor of shape (k,), or not k different positions.
    """
    if tasks is None:
        return torch.arange(count, device=device)
    if isinstance(tasks, Tensor) and tasks.shape == (count,) and tasks.dtype == torch.int64:
        positions = tasks.tolist()
        if len(set(positions)) == count and min(positions) >= 0:
            return tasks
    raise ValueError(
        f"tasks must be the positions of the {count} tasks, int64 of shape ({count},), each once "
        f"and counted from 0; found {tasks!r}"
    )


def check_jacobian(jacobian: Any, losses: Any, tasks: Any, label: str) -> Tensor:
    """Check what :meth:`Weighting.combine` is given, and return the tasks' positions.

    Raises:
        TypeError: The gradients are not a tensor of floating-point numbers, or the losses are not
            a tensor of real numbers.
        ValueError: A shape is wrong, or ``tasks`` are not positions.
    """
    if not isinstance(jacobian, Tensor) or not jacobian.is_floating_point():
        found = jacobian.dtype if isinstance(jacobian, Tensor) else type(jacobian)
        raise TypeError(
            f"{label} combines k gradients, a tensor of real floating-point numbers of shape "
            f"(k, P); found {found}"
        )
    if jacobian.ndim != 2 or not len(jacobian):
        raise ValueError(
            f"{label} combines k gradients, of shape (k, P); found {tuple(jacobian.shape)}"
        )
    positions = check_tasks(tasks, len(jacobian))
    if losses is None:
        return positions
    if not isinstance(losses, Tensor) or losses.is_complex():
        found = losses.dtype if isinstance(losses, Tensor) else type(losses)
        raise TypeError(f"losses must be a tensor of k real numbers, found {found}")
    if losses.shape != jacobian.shape[:1]:
        raise ValueError(
            f"losses must have shape ({len(jacobian)},), as there are {len(jacobian)} gradients; "
            f"found {tuple(losses.shape)}"
        )
    return positions


def check_known(tasks: Tensor, known: int, label: str) -> None:
    """Check that a method keeps a state for all tasks.

    Raises:
        ValueError: A position is beyond those that it keeps a state for.
    """
    if int(tasks.max()) >= known:
        raise ValueError(
            f"{label} keeps a state for {known} tasks, found the positions {tasks.tolist()}; make "
            "a new one for other tasks"
        )


def _require_finite(values: Tensor, what: str) -> None:
    """Raise if an entry is NaN or infinite: many methods would make finite weights of it.

    Raises:
        ValueError: One is.
    """
    # The sum first, which costs less; a sum of finite numbers may overflow.
    if not math.isfinite(float(values.detach().sum())) and not bool(values.isfinite().all()):
        bad = values[~values.isfinite()].flatten()[0]
        raise ValueError(
            f"the {what} must be finite, found {float(bad)}: weights made of it would mean nothing"
        )


def _tasks_of_state(weighting: Weighting) -> int | None:
    """Return the number of tasks that a method keeps numbers for, None if it keeps none."""
    kept = [
        len(value)
        for value in weighting.state_dict().values()
        if isinstance(value, Tensor) and value.ndim and value.is_floating_point()
    ]
    return min(kept, default=None)


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: value.detach().clone() if isinstance(value, Tensor) else value
        for key, value in state.items()
    }
